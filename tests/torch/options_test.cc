// The contract with libtorch: options of groups, closures, schedulers, gradients that are missing or cannot
// be stepped.
#include "tests/torch/rig.h"

namespace bitpager::testing {
namespace {

using optim::PagedAdamW8bit;
using optim::PagedAdamW8bitOptions;
using optim::PagedLion8bit;
using optim::PagedLion8bitOptions;
using ::testing::HasSubstr;
using torch::optim::OptimizerParamGroup;

const PagedAdamW8bitOptions& OptionsOf(const torch::optim::Optimizer& optimizer, std::size_t group) {
  return dynamic_cast<const PagedAdamW8bitOptions&>(optimizer.param_groups()[group].options());
}

std::unique_ptr<PagedAdamW8bitOptions> Own(PagedAdamW8bitOptions options) {
  return std::make_unique<PagedAdamW8bitOptions>(std::move(options));
}

TEST(GroupOptions, AreKeptAndInheritWhatTheyDoNotSay) {
  const Rig rig;
  Tensors parameters = MakeParameters({{10}, {10}, {10}});
  std::vector<OptimizerParamGroup> groups;
  groups.emplace_back(Tensors{parameters[0]});
  groups.emplace_back(Tensors{parameters[1]}, Own(PagedAdamW8bitOptions().weight_decay(0.0)));
  PagedAdamW8bit optimizer(groups, PagedAdamW8bitOptions(0.5).eps(1e-6).weight_decay(0.2), rig.Paging());
  optimizer.add_param_group(
      OptimizerParamGroup({parameters[2]}, Own(PagedAdamW8bitOptions(0.25).optim_bits(32))));
  EXPECT_TRUE(OptionsOf(optimizer, 0) == PagedAdamW8bitOptions(0.5).eps(1e-6).weight_decay(0.2));
  EXPECT_TRUE(OptionsOf(optimizer, 1) == PagedAdamW8bitOptions(0.5).eps(1e-6).weight_decay(0.0));
  EXPECT_TRUE(OptionsOf(optimizer, 2) ==
              PagedAdamW8bitOptions(0.25).eps(1e-6).weight_decay(0.2).optim_bits(32));
}

TEST(GroupOptions, AreWhatEachGroupIsSteppedWith) {
  const Rig rig;
  Tensors parameters = MakeParameters({{5000}, {5000}, {5000}});
  const Tensors start = MakeParameters({{5000}, {5000}, {5000}});
  PagedAdamW8bit optimizer({OptimizerParamGroup({parameters[0]})},
                           PagedAdamW8bitOptions(1e-2).weight_decay(0.0), rig.Paging());
  optimizer.add_param_group(OptimizerParamGroup({parameters[1]}, Own(PagedAdamW8bitOptions(0.0))));
  SetGradients(parameters, 1);
  optimizer.step();
  EXPECT_NE(Bits(parameters[0]), Bits(start[0]));
  EXPECT_EQ(Bits(parameters[1]), Bits(start[1]));
  // A group that comes after steps has arenas of its own and counts from 1.
  optimizer.add_param_group(
      OptimizerParamGroup({parameters[2]}, Own(PagedAdamW8bitOptions(0.1).optim_bits(32))));
  SetGradients(parameters, 2);
  optimizer.step();
  EXPECT_NEAR((parameters[2] - start[2]).abs().mean().item<double>(), 0.1, 1e-4);  // Adam's first step
  EXPECT_EQ(optimizer.states_of(parameters[0]).step(), 2);
  EXPECT_EQ(optimizer.states_of(parameters[2]).step(), 1);
}

TEST(GroupOptions, OfAnotherOptimizerOrOutOfRangeAreRefused) {
  const Rig rig;
  Tensors parameters = MakeParameters({{10}, {10}});
  PagedAdamW8bit optimizer(Tensors{parameters[0]}, {}, rig.Paging());
  const auto add = [&](std::unique_ptr<torch::optim::OptimizerOptions> options) {
    return RefusalOf(
        [&] { optimizer.add_param_group(OptimizerParamGroup({parameters[1]}, std::move(options))); });
  };
  EXPECT_THAT(add(std::make_unique<torch::optim::AdamWOptions>()).text, HasSubstr("of another optimizer"));
  EXPECT_THAT(add(Own(PagedAdamW8bitOptions(-1.0))).text, HasSubstr("invalid learning rate: -1"));
  EXPECT_THAT(add(Own(PagedAdamW8bitOptions(std::nan("")))).text, HasSubstr("invalid learning rate"));
  EXPECT_THAT(add(Own(PagedAdamW8bitOptions().betas({0.9, 1.0}))).text, HasSubstr("beta at index 1"));
  EXPECT_THAT(add(Own(PagedAdamW8bitOptions().optim_bits(16))).text, HasSubstr("8 or 32"));
  EXPECT_EQ(optimizer.param_groups().size(), 1U);
  EXPECT_THAT(RefusalOf([&] { PagedAdamW8bit(parameters, PagedAdamW8bitOptions().eps(-1)); }).text,
              HasSubstr("invalid epsilon"));
  const Refused twice =
      RefusalOf([&] { optimizer.add_param_group(OptimizerParamGroup(Tensors{parameters[0]})); });
  EXPECT_THAT(twice.text, HasSubstr("in the optimizer already"));
}

TEST(PagedOptimizer, TakesLibtorchsSchedulers) {
  const Rig rig;
  Tensors parameters = MakeParameters({{10}});
  PagedAdamW8bit optimizer(parameters, 1e-2, rig.Paging());
  torch::optim::StepLR scheduler(optimizer, 1, 0.5);
  for (int i = 0; i < 3; ++i) {
    SetGradients(parameters, 1);
    optimizer.step();
    scheduler.step();
  }
  EXPECT_DOUBLE_EQ(optimizer.param_groups()[0].options().get_lr(), 1e-2 * 0.25);
}

TEST(PagedOptimizer, RunsClosuresWithGradientsAndReturnsTheLoss) {
  const Rig rig;
  Tensors parameters = MakeParameters({{100}, {7}});
  const std::string untouched = Bits(parameters[1]);
  PagedAdamW8bit optimizer(parameters, 1e-1, rig.Paging());
  double first = 0, last = 0;
  const torch::NoGradGuard no_grad;  // the closure has gradients all the same
  for (int i = 0; i < 20; ++i) {
    last = optimizer
               .step([&] {
                 optimizer.zero_grad();
                 torch::Tensor loss = parameters[0].square().sum();
                 loss.backward();
                 return loss;
               })
               .item<double>();
    if (i == 0) first = last;
  }
  EXPECT_LT(last, 0.2 * first);
  EXPECT_EQ(Bits(parameters[1]), untouched);  // it never had a gradient
  EXPECT_FALSE(optimizer.states_of(parameters[1]).state1().defined());
  EXPECT_EQ(optimizer.states_of(parameters[1]).step(), 0);
  EXPECT_FALSE(optimizer.step().defined());
}

TEST(PagedOptimizer, RefusesWhatItCannotStepAndStepsNothing) {
  const Rig rig;
  Tensors parameters = MakeParameters({{100}, {10, 5}});
  PagedAdamW8bit optimizer(parameters, {}, rig.Paging());
  SetGradients(parameters, 1);
  const auto before = Bits(parameters);
  const auto step = [&] { return RefusalOf([&] { optimizer.step(); }); };
  parameters[1].mutable_grad() = parameters[1].grad().to_sparse();
  const Refused sparse = step();
  EXPECT_EQ(sparse.code, wire::Code::kInvalidArgument);
  EXPECT_THAT(sparse.text, HasSubstr("the gradient of parameter 1 of group 0, of shape [10, 5]"));
  EXPECT_THAT(sparse.text, HasSubstr("is sparse"));
  EXPECT_EQ(Bits(parameters), before);
  EXPECT_EQ(optimizer.states_of(parameters[0]).step(), 0);

  Tensors doubles = {torch::randn({8}, torch::kDouble).requires_grad_()};
  PagedAdamW8bit of_doubles(doubles, {}, rig.Paging());
  SetGradients(doubles, 1);
  EXPECT_THAT(RefusalOf([&] { of_doubles.step(); }).text, HasSubstr("none of Float, Half and BFloat16"));
  Tensors meta = {torch::randn({8}, torch::kMeta).requires_grad_()};
  PagedAdamW8bit of_meta(meta, {}, rig.Paging());
  EXPECT_THAT(RefusalOf([&] { of_meta.prepare(); }).text, HasSubstr("meta device"));
  const torch::Tensor whole = torch::randn({100});
  Tensors views = {whole.slice(0, 0, 60).requires_grad_(), whole.slice(0, 50).requires_grad_()};
  PagedAdamW8bit of_views(views, {}, rig.Paging());
  EXPECT_THAT(RefusalOf([&] { of_views.prepare(); }).text, HasSubstr("share memory"));
  Tensors gaps = {torch::randn({10, 10}).select(1, 0).requires_grad_()};
  PagedAdamW8bit of_gaps(gaps, {}, rig.Paging());
  EXPECT_THAT(RefusalOf([&] { of_gaps.prepare(); }).text, HasSubstr("gaps"));
}

TEST(PagedOptimizer, StepsViewsOfOneStorage) {
  const Rig rig;
  const torch::Tensor whole = MakeParameters({{20'000}})[0].detach();
  Tensors views = {whole.slice(0, 0, 9'000).requires_grad_(), whole.slice(0, 9'000).requires_grad_()};
  Tensors apart = {views[0].detach().clone().requires_grad_(), views[1].detach().clone().requires_grad_()};
  PagedAdamW8bit first(views, {}, rig.Paging()), second(apart, {}, rig.Paging());
  Steps(first, views, 1, 3);
  Steps(second, apart, 1, 3);
  EXPECT_EQ(Bits(views), Bits(apart));
  EXPECT_EQ(views[1].data_ptr(), whole.data_ptr<float>() + 9'000);
}

TEST(PagedOptimizer, KeepsSmallParametersIn32Bits) {
  const Rig rig;
  Tensors parameters = MakeParameters({{4096}, {4095}, {300}, {0}});
  std::vector<OptimizerParamGroup> groups;
  groups.emplace_back(Tensors{parameters[0], parameters[1], parameters[3]});
  groups.emplace_back(Tensors{parameters[2]}, Own(PagedAdamW8bitOptions().min_8bit_size(257)));
  PagedAdamW8bit optimizer(groups, {}, rig.Paging());
  SetGradients(parameters, 1);
  optimizer.step();
  const auto first = optimizer.states_of(parameters[0]);
  EXPECT_EQ(first.state1().scalar_type(), torch::kByte);
  EXPECT_EQ(first.state2().sizes(), parameters[0].sizes());
  EXPECT_EQ(first.absmax2().numel(), 16);
  EXPECT_EQ(optimizer.states_of(parameters[1]).state1().scalar_type(), torch::kFloat);
  EXPECT_FALSE(optimizer.states_of(parameters[1]).absmax1().defined());
  EXPECT_EQ(optimizer.states_of(parameters[2]).absmax1().numel(), 2);
  EXPECT_EQ(optimizer.states_of(parameters[3]).step(), 1);  // without elements
}

}  // namespace
}  // namespace bitpager::testing
