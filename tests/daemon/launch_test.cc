// How resident windows are put into launches.
#include <gtest/gtest.h>

#include "tests/support/in_process_daemon.h"
#include "tests/support/raw_trainer.h"

namespace bitpager::testing {
namespace {

constexpr std::uint32_t kLongLaunches = 4096;

daemon::Settings RoomySettings() {
  daemon::Settings settings = TestSettings();
  settings.pager.device_frames = 256;
  settings.pager.host_frames = 2048;
  settings.pager.window_pages = 8;
  // As for every device that likes long launches.
  settings.pager.loads_over_resident = true;
  settings.pager.first_pages = 96;
  settings.host_budget_bytes = settings.pager.host_frames * kTestPageBytes;
  return settings;
}

// Of the third step, when all is resident: so many launches. Its numbers are right.
std::int64_t LaunchesOf(std::uint64_t pages) {
  InProcessDaemon daemon(RoomySettings(), kLongLaunches);
  auto client = daemon.Open("job");
  RawTrainer trainer(*client, {pages * 6144});
  EXPECT_TRUE(trainer.Create().ok());
  ShadowArena shadow = trainer.Shadow();
  std::int64_t before = 0;
  for (std::uint64_t step = 1; step <= 3; ++step) {
    before = daemon.device->steps;
    trainer.StepOk(step);
    shadow.Step(step);
  }
  trainer.ExpectParams(shadow);
  return daemon.device->steps - before;
}

TEST(Launch, OfAFewResidentPagesIsOne) {
  EXPECT_EQ(LaunchesOf(40), 1);
}

TEST(Launch, OfManyBeginsWithAShortOneSoThatTheDeviceNeedNotWait) {
  EXPECT_EQ(LaunchesOf(160), 2);
}

TEST(Launch, IsTimedFromItsTurnOn) {
  InProcessDaemon daemon(RoomySettings(), kLongLaunches);
  daemon.device->on_step = [&] { daemon.clock.AdvanceMs(7); };
  auto client = daemon.Open("job");
  RawTrainer trainer(*client, {160 * 6144});
  EXPECT_TRUE(trainer.Create().ok());
  trainer.StepOk(1);
  const std::int64_t before = daemon.device->steps;
  const wire::CompletionRecord done = trainer.Step(2);
  ASSERT_EQ(RawClient::CodeOf(done), wire::Code::kOk) << RawClient::TextIn(done);
  EXPECT_EQ(daemon.device->steps - before, 2);
  EXPECT_EQ(done.values[6], 7'000'000U) << "the first alone";
  EXPECT_EQ(done.values[4], 14'000'000U);
}

TEST(Launch, AStepThatIsExpectedHasAnIdleDeviceMakeReady) {
  InProcessDaemon daemon(RoomySettings(), kLongLaunches);
  auto client = daemon.Open("job");
  wire::RequestRecord record;
  record.version = wire::kWireVersion;
  record.op = wire::Op::kExpect;
  client->Push(record);
  daemon.Settle();
  EXPECT_EQ(daemon.device->expected, 1);
  const auto done = client->Pop();
  ASSERT_TRUE(done.has_value());
  EXPECT_EQ(RawClient::CodeOf(*done), wire::Code::kOk);
  RawTrainer trainer(*client, {40 * 6144});
  EXPECT_TRUE(trainer.Create().ok());
  ShadowArena shadow = trainer.Shadow();
  trainer.StepOk(1);
  shadow.Step(1);
  trainer.ExpectParams(shadow);
}

}  // namespace
}  // namespace bitpager::testing
