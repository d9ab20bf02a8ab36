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

}  // namespace
}  // namespace bitpager::testing
