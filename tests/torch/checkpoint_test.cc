// Saving and loading, sessions, and the daemon's end.
#include <csignal>
#include <cstdlib>
#include <sstream>

#include "tests/torch/rig.h"

namespace bitpager::testing {
namespace {

using optim::PagedAdamW8bit;
using optim::PagedAdamW8bitOptions;
using optim::PagedLion8bit;
using optim::PagedLion8bitOptions;
using ::testing::HasSubstr;

const std::vector<std::vector<std::int64_t>> kShapes = {{100, 70}, {17}, {64, 128}};

std::string Saved(const torch::optim::Optimizer& optimizer) {
  std::ostringstream file;
  torch::serialize::OutputArchive archive;
  optimizer.save(archive);
  archive.save_to(file);
  return file.str();
}

void Load(torch::optim::Optimizer& optimizer, const std::string& saved) {
  std::istringstream file(saved);
  torch::load(optimizer, file);
}

Tensors CopyOf(const Tensors& tensors) {
  Tensors copies;
  for (const torch::Tensor& tensor : tensors) copies.push_back(tensor.detach().clone().requires_grad_());
  return copies;
}

template <typename Optimizer, typename Options>
void ContinuesBitForBit() {
  const Rig rig;
  Tensors parameters = MakeParameters(kShapes);
  Optimizer whole(parameters, Options(1e-2).weight_decay(0.3), rig.Paging());
  Steps(whole, parameters, 1, 3);
  whole.param_groups()[0].options().set_lr(5e-3);
  const std::string saved = Saved(whole);
  Tensors resumed = CopyOf(parameters);
  Steps(whole, parameters, 4, 6);

  Optimizer second(resumed, Options(1.0), rig.Paging());  // its options come from the archive
  Load(second, saved);
  EXPECT_DOUBLE_EQ(second.param_groups()[0].options().get_lr(), 5e-3);
  Steps(second, resumed, 4, 6);
  EXPECT_EQ(Bits(resumed), Bits(parameters));
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    EXPECT_EQ(StateBits(second, resumed[i]), StateBits(whole, parameters[i]));
  }
}

TEST(Checkpoint, OfAdamWContinuesBitForBit) {
  ContinuesBitForBit<PagedAdamW8bit, PagedAdamW8bitOptions>();
}
TEST(Checkpoint, OfLionContinuesBitForBit) {
  ContinuesBitForBit<PagedLion8bit, PagedLion8bitOptions>();
}

TEST(Checkpoint, LeavesTheRunAsItWas) {
  const Rig rig;
  Tensors saved = MakeParameters(kShapes), plain = MakeParameters(kShapes);
  PagedAdamW8bit first(saved, {}, rig.Paging()), second(plain, {}, rig.Paging());
  Steps(first, saved, 1, 2);
  Steps(second, plain, 1, 2);
  const std::string file = Saved(first);
  EXPECT_GT(file.size(), 2U * (7000 + 8192));  // the states are in it
  const auto& light = static_cast<optim::PagedParamState&>(*first.state().at(saved[0].unsafeGetTensorImpl()));
  EXPECT_FALSE(light.state1().defined());  // and no longer in this process
  EXPECT_EQ(Saved(first).size(), file.size());
  Load(first, file);  // into the optimizer that wrote it
  Steps(first, saved, 3, 4);
  Steps(second, plain, 3, 4);
  EXPECT_EQ(Bits(saved), Bits(plain));
}

TEST(Checkpoint, KeepsTheWidthOfEachState) {
  const Rig rig;
  Tensors parameters = MakeParameters({{5000}, {5000}});
  PagedAdamW8bit wide(parameters, PagedAdamW8bitOptions().optim_bits(32), rig.Paging());
  SetGradients(parameters, 1);
  wide.step();
  Tensors others = CopyOf(parameters);
  PagedAdamW8bit narrow(others, {}, rig.Paging());
  Load(narrow, Saved(wide));
  EXPECT_EQ(narrow.states_of(others[0]).state1().scalar_type(), torch::kFloat);
}

TEST(Checkpoint, ThatDoesNotFitChangesNothing) {
  const Rig rig;
  Tensors parameters = MakeParameters(kShapes), same = MakeParameters(kShapes);
  PagedAdamW8bit optimizer(parameters, 1e-2, rig.Paging()), reference(same, 1e-2, rig.Paging());
  Steps(optimizer, parameters, 1, 2);
  Steps(reference, same, 1, 2);

  Tensors of_lion = MakeParameters(kShapes);
  PagedLion8bit lion(of_lion, {}, rig.Paging());
  Steps(lion, of_lion, 1, 1);
  EXPECT_THAT(RefusalOf([&] { Load(optimizer, Saved(lion)); }).text, HasSubstr("another optimizer wrote it"));
  EXPECT_THAT(RefusalOf([&] { Load(lion, Saved(optimizer)); }).text, HasSubstr("two moments"));

  Tensors of_torch = MakeParameters(kShapes);
  torch::optim::AdamW theirs(of_torch);
  Steps(theirs, of_torch, 1, 1);
  EXPECT_THAT(RefusalOf([&] { Load(optimizer, Saved(theirs)); }).text,
              HasSubstr("another optimizer wrote it"));

  Tensors larger = MakeParameters({{100, 71}, {17}, {64, 128}});
  PagedAdamW8bit of_another_model(larger, {}, rig.Paging());
  Steps(of_another_model, larger, 1, 1);
  EXPECT_THAT(RefusalOf([&] { Load(optimizer, Saved(of_another_model)); }).text, HasSubstr("another model"));
  Tensors fewer = MakeParameters({{100, 70}});
  PagedAdamW8bit smaller(fewer, {}, rig.Paging());
  EXPECT_ANY_THROW(Load(optimizer, Saved(smaller)));
  EXPECT_ANY_THROW(Load(optimizer, "no archive"));

  EXPECT_DOUBLE_EQ(optimizer.param_groups()[0].options().get_lr(), 1e-2);
  Steps(optimizer, parameters, 3, 4);
  Steps(reference, same, 3, 4);
  EXPECT_EQ(Bits(parameters), Bits(same));
}

TEST(Sessions, AreSharedByDefaultAndEndWithTheLastOptimizer) {
  const DaemonProcess daemon(Flags());
  ::setenv("BITPAGER_SOCKET", daemon.socket().c_str(), 1);
  Tensors first = MakeParameters({{5000}}), second = MakeParameters({{5000}});
  {
    PagedAdamW8bit one(first), two(second);
    Steps(one, first, 1, 1);
    Steps(two, second, 1, 1);
    ASSERT_EQ(one.sessions().size(), 1U);
    EXPECT_EQ(one.sessions(), two.sessions());
    EXPECT_NE(one.name(), two.name());
    EXPECT_EQ(daemon.Status()->sessions.size(), 1U);
  }
  EXPECT_TRUE(WaitUntil([&] { return daemon.Status()->sessions.empty(); }, Millis(10'000)));
  ::unsetenv("BITPAGER_SOCKET");
}

TEST(PagedOptimizer, GivesItsPagesBackWithItsEnd) {
  const Rig rig;
  Tensors parameters = MakeParameters({{50'000}});
  const auto state_bytes = [&] { return rig.session->GetUsage()->state_bytes; };
  {
    PagedAdamW8bit optimizer(parameters, {}, rig.Paging());
    optimizer.prepare();
    EXPECT_GT(state_bytes(), 100'000U);
    EXPECT_EQ(optimizer.extents().size(), 1U);
    optimizer.drop();
    EXPECT_EQ(state_bytes(), 0U);
    Steps(optimizer, parameters, 1, 1);
    EXPECT_GT(state_bytes(), 100'000U);
    PagedAdamW8bit moved(std::move(optimizer));
    Steps(moved, parameters, 2, 2);
    EXPECT_EQ(moved.states_of(parameters[0]).step(), 2);
  }
  EXPECT_EQ(state_bytes(), 0U);
}

TEST(PagedOptimizer, TellsRefusalsOfTheDaemonAndCanGoOn) {
  const Rig rig;
  Tensors parameters = MakeParameters({{5000}}), more = MakeParameters({{5000}});
  PagedAdamW8bit first(parameters, {}, rig.Paging().name("same"));
  PagedAdamW8bit second(more, {}, rig.Paging().name("same"));
  first.prepare();
  SetGradients(more, 1);
  EXPECT_EQ(RefusalOf([&] { second.step(); }).code, wire::Code::kAlreadyExists);
  EXPECT_EQ(second.states_of(more[0]).step(), 0);
  first.drop();
  second.step();
  EXPECT_EQ(second.states_of(more[0]).step(), 1);
}

TEST(PagedOptimizer, CountsNoStepThatWasNotApplied) {
  const Rig rig;
  Tensors parameters = MakeParameters({{5000}});
  PagedAdamW8bit optimizer(parameters, {}, rig.Paging());
  Steps(optimizer, parameters, 1, 1);
  rig.session->Disconnect();
  EXPECT_EQ(RefusalOf([&] { Steps(optimizer, parameters, 2, 2); }).code, wire::Code::kUnreachable);
  const auto& state = static_cast<optim::PagedParamState&>(*optimizer.state().begin()->second);
  EXPECT_EQ(state.step(), 1);
}

TEST(PagedOptimizer, SaysThatTheDaemonIsGone) {
  Rig rig;
  Tensors parameters = MakeParameters({{5000}});
  PagedAdamW8bit optimizer(parameters, {}, rig.Paging());
  Steps(optimizer, parameters, 1, 1);
  rig.daemon.Signal(SIGKILL);
  ASSERT_TRUE(rig.daemon.Wait(Millis(10'000)));
  const Refused lost = RefusalOf([&] { Steps(optimizer, parameters, 2, 2); });
  EXPECT_EQ(lost.code, wire::Code::kDaemonLost) << lost.text;
  EXPECT_FALSE(lost.text.empty());
}

}  // namespace
}  // namespace bitpager::testing
