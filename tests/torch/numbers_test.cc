// What the libtorch optimizers compute: against torch's own in fp32, against a formula, at every residency.
#include <algorithm>

#include "tests/torch/rig.h"

namespace bitpager::testing {
namespace {

using optim::PagedAdam8bit;
using optim::PagedAdam8bitOptions;
using optim::PagedAdamW8bit;
using optim::PagedAdamW8bitOptions;
using optim::PagedLion8bit;
using optim::PagedLion8bitOptions;

const std::vector<std::vector<std::int64_t>> kShapes = {{300, 70}, {17}, {64, 128}};

TEST(PagedAdamW8bit, With32BitStatesIsTorchsAdamW) {
  const Rig rig;
  Tensors ours = MakeParameters(kShapes), theirs = MakeParameters(kShapes);
  PagedAdamW8bit optimizer(ours, PagedAdamW8bitOptions(1e-3).weight_decay(0.1).optim_bits(32), rig.Paging());
  torch::optim::AdamW reference(theirs, torch::optim::AdamWOptions(1e-3).weight_decay(0.1));
  Steps(optimizer, ours, 1, 20);
  Steps(reference, theirs, 1, 20);
  // Theirs decays before the update, ours behind it: lr * weight_decay of an update, 20 times.
  EXPECT_LT(GreatestDifference(ours, theirs), 5e-6);
  EXPECT_GT(GreatestDifference(ours, MakeParameters(kShapes)), 5e-3);
}

TEST(PagedAdam8bit, With32BitStatesIsTorchsAdam) {
  const Rig rig;
  Tensors ours = MakeParameters(kShapes), theirs = MakeParameters(kShapes);
  PagedAdam8bit optimizer(ours, PagedAdam8bitOptions(1e-3).optim_bits(32), rig.Paging());
  torch::optim::Adam reference(theirs, torch::optim::AdamOptions(1e-3));
  Steps(optimizer, ours, 1, 20);
  Steps(reference, theirs, 1, 20);
  EXPECT_LT(GreatestDifference(ours, theirs), 2e-6);
}

TEST(PagedAdamW8bit, With8BitStatesStaysNearTorchsAdamW) {
  const Rig rig;
  Tensors ours = MakeParameters(kShapes), theirs = MakeParameters(kShapes);
  const Tensors start = MakeParameters(kShapes);
  PagedAdamW8bit optimizer(ours, PagedAdamW8bitOptions(1e-3), rig.Paging());
  torch::optim::AdamW reference(theirs, torch::optim::AdamWOptions(1e-3));
  Steps(optimizer, ours, 1, 20);
  Steps(reference, theirs, 1, 20);
  EXPECT_LT(MeanDifference(ours, theirs), 0.1 * MeanDifference(theirs, start));
  EXPECT_GT(MeanDifference(ours, theirs), 0);  // they are 8 bits
}

TEST(PagedLion8bit, With32BitStateFollowsItsFormula) {
  const Rig rig;
  Tensors ours = MakeParameters(kShapes), reference = MakeParameters(kShapes);
  PagedLion8bit optimizer(ours, PagedLion8bitOptions(1e-3).weight_decay(0.1).optim_bits(32), rig.Paging());
  Tensors momenta;
  for (const torch::Tensor& p : reference) momenta.push_back(torch::zeros_like(p));
  for (std::uint64_t step = 1; step <= 10; ++step) {
    SetGradients(ours, step);
    optimizer.step();
    const torch::NoGradGuard no_grad;
    for (std::size_t i = 0; i < ours.size(); ++i) {
      const torch::Tensor& g = ours[i].grad();
      reference[i].mul_(1 - 1e-3 * 0.1);
      reference[i].sub_(torch::sign(0.9 * momenta[i] + 0.1 * g) * 1e-3);
      momenta[i] = 0.99 * momenta[i] + 0.01 * g;
    }
  }
  // A sign may flip where the sum is 0 but for rounding.
  EXPECT_LT(MeanDifference(ours, reference), 1e-6);
}

template <typename Optimizer, typename Options>
std::vector<std::string> TrainAt(std::uint64_t device_pages, std::uint64_t& moved_bytes) {
  const DaemonProcess daemon(Flags(device_pages));
  const auto session = daemon.Open("residency");
  Tensors parameters = MakeParameters({{300, 1000}, {17}, {70'000}, {256}});
  Optimizer optimizer(parameters, Options(1e-3), optim::PagingOptions().session(session));
  Steps(optimizer, parameters, 1, 6);
  std::vector<std::string> bits = Bits(parameters);
  for (const torch::Tensor& p : parameters) bits.push_back(StateBits(optimizer, p));
  const auto usage = session->GetUsage();
  EXPECT_TRUE(usage.ok());
  moved_bytes = usage->loaded_bytes;
  return bits;
}

TEST(PagedOptimizer, GivesTheSameBitsInOneWindowAsWhenAllIsResident) {
  std::uint64_t moved_bytes = 0;
  const auto whole = TrainAt<PagedAdamW8bit, PagedAdamW8bitOptions>(1024, moved_bytes);
  EXPECT_EQ(moved_bytes, 0U);
  EXPECT_EQ((TrainAt<PagedAdamW8bit, PagedAdamW8bitOptions>(4, moved_bytes)), whole);
  EXPECT_GT(moved_bytes, 100 * kPageBytes);
  const auto lion = TrainAt<PagedLion8bit, PagedLion8bitOptions>(1024, moved_bytes);
  EXPECT_EQ((TrainAt<PagedLion8bit, PagedLion8bitOptions>(4, moved_bytes)), lion);
  EXPECT_GT(moved_bytes, 50 * kPageBytes);
}

TEST(PagedOptimizer, StepsPrivateMemoryToTheSameBits) {
  const Rig rig;
  Tensors shared = MakeParameters({{100, 100}}), other = MakeParameters({{100, 100}});
  std::vector<float> memory(10'000);
  std::memcpy(memory.data(), other[0].data_ptr(), memory.size() * sizeof(float));
  Tensors borrowed = {torch::from_blob(memory.data(), {100, 100}).requires_grad_()};
  PagedAdamW8bit first(shared, {}, rig.Paging()), second(borrowed, {}, rig.Paging());
  Steps(first, shared, 1, 3);
  ::testing::internal::CaptureStderr();
  Steps(second, borrowed, 1, 3);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), ::testing::HasSubstr("stays in private memory"));
  EXPECT_EQ(borrowed[0].data_ptr(), memory.data());  // still the owner's
  EXPECT_EQ(Bits(borrowed), Bits(shared));
}

TEST(PagedOptimizer, TakesTheParametersMemoryOrder) {
  const Rig rig;
  Tensors plain = MakeParameters({{8, 3, 20, 30}});
  Tensors channels = {plain[0].detach().contiguous(at::MemoryFormat::ChannelsLast).clone().requires_grad_()};
  const auto options = PagedAdamW8bitOptions(1e-2).optim_bits(32);  // blocks follow memory, 32 bits have none
  PagedAdamW8bit first(plain, options, rig.Paging()), second(channels, options, rig.Paging());
  Steps(first, plain, 1, 2);
  Steps(second, channels, 1, 2);  // its gradients are contiguous
  EXPECT_FALSE(channels[0].is_contiguous());
  EXPECT_TRUE(torch::equal(plain[0], channels[0]));
}

TEST(PagedOptimizer, StepsHalfPrecision) {
  const Rig rig;
  for (const torch::Dtype dtype : {torch::kHalf, torch::kBFloat16}) {
    Tensors parameters = MakeParameters({{100, 100}}, 1, dtype);
    Tensors full = {parameters[0].detach().to(torch::kFloat).requires_grad_()};
    const auto options = PagedAdamW8bitOptions(1e-1).weight_decay(0);  // which rounds once more
    PagedAdamW8bit optimizer(parameters, options, rig.Paging());
    PagedAdamW8bit reference(full, options, rig.Paging());
    SetGradients(parameters, 1);
    full[0].mutable_grad() = parameters[0].grad().to(torch::kFloat);
    optimizer.step();
    reference.step();
    EXPECT_TRUE(torch::equal(parameters[0], full[0].to(dtype)));
  }
}

TEST(PagedOptimizer, LeavesBlocksWithNanAloneAndNamesTheTensor) {
  const Rig rig;
  Tensors parameters = MakeParameters({{5000}, {4, 1024}});
  PagedAdamW8bit optimizer(parameters, {}, rig.Paging());
  SetGradients(parameters, 1);
  parameters[1].mutable_grad()[0][5] = std::numeric_limits<float>::quiet_NaN();
  const torch::Tensor before = parameters[1].detach().clone();
  const Refused refused = RefusalOf([&] { optimizer.step(); });
  EXPECT_EQ(refused.code, wire::Code::kNonFinite);
  EXPECT_THAT(refused.text, ::testing::HasSubstr("1 blocks"));
  EXPECT_THAT(refused.text, ::testing::HasSubstr("parameter 1 of group 0, of shape [4, 1024]"));
  const torch::Tensor same = (parameters[1].detach() == before).flatten();
  EXPECT_TRUE(same.slice(0, 0, 256).all().item<bool>());
  EXPECT_FALSE(same.slice(0, 256).any().item<bool>());
  EXPECT_EQ(optimizer.states_of(parameters[1]).step(), 1);
  PagedAdamW8bit careless(parameters, {}, rig.Paging().on_nonfinite(optim::OnNonFinite::kPropagate));
  careless.step();
  EXPECT_TRUE(torch::isnan(parameters[1]).any().item<bool>());
}

}  // namespace
}  // namespace bitpager::testing
