// The pager's own time: bounds far above what it needs, so that only a wrong order of growth fails.
#include <chrono>

#include "tests/paging/driver.h"

namespace bitpager::paging {
namespace {

using Clock = std::chrono::steady_clock;

double MicrosecondsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

// Sixteen jobs of 70,000 pages together, all resident.
class LargePager : public testing::Test {
 protected:
  static constexpr std::uint64_t kJobs = 16;
  static constexpr std::uint64_t kPages = 4375;
  LargePager() : pager(Config()) {
    for (std::uint64_t n = 1; n <= kJobs; ++n) {
      EXPECT_TRUE(pager.AddJob({n}, {"job"}).ok());
      arenas.push_back(*pager.AddExtent({{n}, wire::ExtentKind::kOptimizerState, kPages, true, 0}));
      Complete({n}, kPages);
    }
  }
  static PagerConfig Config() {
    PagerConfig config;
    config.device_frames = kJobs * kPages;
    config.host_frames = kJobs * kPages;
    return config;
  }
  // Runs a request over the first `count` pages; the microseconds that the pager took.
  double Complete(wire::JobId job, std::uint64_t count) {
    double spent = 0;
    Actions actions;
    auto start = Clock::now();
    const auto id = pager.Submit({job, Access::kUpdate, {{arenas[job.value - 1], 0, count}}});
    while (true) {
      pager.Pump(actions);
      spent += MicrosecondsSince(start);
      if (!actions.finished.empty()) break;
      start = Clock::now();
      for (const LoadAction& load : actions.loads) pager.LoadDone(load.page);
      for (const RunAction& run : actions.runs) pager.RunDone(*id, run.window);
      actions = {};
    }
    return spent;
  }
  Pager pager;
  std::vector<wire::ExtentId> arenas;
};

TEST_F(LargePager, AnIdlePumpTakesMicroseconds) {
  double best = 1e9;
  for (int i = 0; i < 1000; ++i) {
    Actions actions;
    const auto start = Clock::now();
    pager.Pump(actions);
    best = std::min(best, MicrosecondsSince(start));
  }
  RecordProperty("microseconds", std::to_string(best));
  std::printf("idle Pump: %.2f us\n", best);
  EXPECT_LT(best, 50);
}

TEST_F(LargePager, AResidentRequestOfAThousandPagesTakesAFractionOfAMillisecond) {
  double best = 1e9;
  for (int i = 0; i < 20; ++i) best = std::min(best, Complete({3}, 1000));
  std::printf("resident request of 1000 pages: %.1f us\n", best);
  EXPECT_LT(best, 3000);
}

}  // namespace
}  // namespace bitpager::paging
