// The scan-aware policy against the optimum: pages moved in by repeated patterns of access.
#include <algorithm>

#include "tests/paging/belady.h"
#include "tests/paging/driver.h"

namespace bitpager::paging {
namespace {

PagerConfig Config(std::uint64_t frames, std::uint32_t window = 8) {
  PagerConfig config;
  config.device_frames = frames;
  config.host_frames = 100000;
  config.window_pages = window;
  return config;
}

struct Moved {
  double in = 0;  // pages a step
  double out = 0;
};

// Runs `step` for `warm` + `steps` rounds and returns what the last `steps` moved, per round.
template <typename Step>
Moved PerStep(Driver& d, int warm, int steps, Step step) {
  for (int i = 0; i < warm; ++i) step();
  const std::uint64_t in = d.loaded;
  const std::uint64_t out = d.stored;
  for (int i = 0; i < steps; ++i) step();
  return {static_cast<double>(d.loaded - in) / steps, static_cast<double>(d.stored - out) / steps};
}

class CyclicArena : public testing::TestWithParam<std::pair<int, int>> {};

TEST_P(CyclicArena, MovesWithinAWindowOfTheOptimum) {
  const auto [pages, budget] = GetParam();
  Driver d(Config(static_cast<std::uint64_t>(budget)));
  d.check_each = false;
  const auto job = d.Job(1);
  const auto arena = d.Extent(job, static_cast<std::uint64_t>(pages));
  const Moved moved = PerStep(d, 6, 24, [&] { d.Run(job, {{arena, 0, static_cast<std::uint64_t>(pages)}}); });
  const double optimum = std::max(0, pages - budget);
  EXPECT_LE(moved.in, optimum + 8) << "in, optimum " << optimum;
  EXPECT_LE(moved.out, optimum + 8) << "out, optimum " << optimum;
  EXPECT_GE(moved.in, optimum - 8);
  d.pager.CheckInvariants();
}

INSTANTIATE_TEST_SUITE_P(Budgets, CyclicArena,
                         testing::Values(std::pair(200, 200), std::pair(200, 100), std::pair(200, 20),
                                         std::pair(200, 8), std::pair(1000, 500), std::pair(1000, 900),
                                         std::pair(1000, 100), std::pair(97, 41), std::pair(200, 192)));

std::uint64_t OptimumIn(const std::vector<std::uint32_t>& one_step, int warm, int steps,
                        std::uint64_t frames) {
  std::vector<std::uint32_t> visits;
  for (int i = 0; i < warm + steps; ++i) visits.insert(visits.end(), one_step.begin(), one_step.end());
  return BeladyMisses(visits, frames, one_step.size() * static_cast<std::size_t>(warm));
}

// Weights, read page by page through layers, in the orders of training.
Moved RunWeights(std::uint64_t frames, const std::vector<std::uint32_t>& one_step, std::uint64_t pages) {
  Driver d(Config(frames));
  d.check_each = false;
  const auto job = d.Job(1);
  const auto weights = d.Extent(job, pages, true, 0, wire::ExtentKind::kQuantizedWeight);
  d.Run(job, {{weights, 0, pages}}, Access::kOverwrite);
  return PerStep(d, 10, 10, [&] {
    for (std::size_t at = 0; at < one_step.size();) {
      std::size_t end = at + 1;
      while (end < one_step.size() && end - at < 4 && one_step[end] == one_step[end - 1] + 1) ++end;
      d.Run(job, {{weights, one_step[at], end - at}}, Access::kRead);
      at = end;
    }
  });
}

std::vector<std::uint32_t> ZigZag(std::uint32_t pages) {
  std::vector<std::uint32_t> visits;
  for (std::uint32_t i = 0; i < pages; ++i) visits.push_back(i);
  for (std::uint32_t layer = pages / 4; layer-- > 0;) {
    for (std::uint32_t i = 0; i < 4; ++i) visits.push_back(4 * layer + i);
  }
  return visits;
}

TEST(Pager, FollowsForwardAndBackwardWithinAWindowOfBelady) {
  for (const std::uint64_t frames : {100U, 50U, 16U, 8U}) {
    const auto visits = ZigZag(120);
    const Moved moved = RunWeights(frames, visits, 120);
    const double optimum = static_cast<double>(OptimumIn(visits, 10, 10, frames)) / 10;
    EXPECT_LE(moved.in, optimum + 8) << frames << " frames, optimum " << optimum;
    EXPECT_EQ(moved.out, 0) << "clean pages leave without a copy";
  }
}

std::vector<std::uint32_t> Checkpointed(std::uint32_t pages) {
  std::vector<std::uint32_t> visits;
  for (std::uint32_t i = 0; i < pages; ++i) visits.push_back(i);
  const std::uint32_t segment = 24;
  for (std::uint32_t first = pages; first > 0; first -= segment) {
    for (std::uint32_t i = first - segment; i < first; ++i) visits.push_back(i);
    for (std::uint32_t layer = first / 4; layer-- > (first - segment) / 4;) {
      for (std::uint32_t i = 0; i < 4; ++i) visits.push_back(4 * layer + i);
    }
  }
  return visits;
}

TEST(Pager, FollowsGradientCheckpointingWithinAWindowOfBelady) {
  for (const std::uint64_t frames : {96U, 60U, 40U}) {
    const auto visits = Checkpointed(120);
    const Moved moved = RunWeights(frames, visits, 120);
    const double optimum = static_cast<double>(OptimumIn(visits, 10, 10, frames)) / 10;
    EXPECT_LE(moved.in, optimum + 8) << frames << " frames, optimum " << optimum;
  }
}

TEST(Pager, LruMovesEverythingInACycle) {
  PagerConfig config = Config(90);
  config.policy = Policy::kLru;
  Driver d(config);
  d.check_each = false;
  const auto job = d.Job(1);
  const auto arena = d.Extent(job, 100);
  const Moved moved = PerStep(d, 3, 4, [&] { d.Run(job, {{arena, 0, 100}}); });
  EXPECT_GE(moved.out, 90) << "the optimum is 10";
}

TEST(Pager, ClockRunsTheSameWorkload) {
  PagerConfig config = Config(90);
  config.policy = Policy::kClock;
  Driver d(config);
  const auto job = d.Job(1);
  const auto arena = d.Extent(job, 100);
  const Moved moved = PerStep(d, 3, 4, [&] { d.Run(job, {{arena, 0, 100}}); });
  EXPECT_GE(moved.in, 10);
  EXPECT_LE(moved.in, 100);
}

TEST(Pager, ForgetsPagesOfAPhaseThatEnded) {
  Driver d(Config(60));
  d.check_each = false;
  const auto job = d.Job(1);
  const auto first = d.Extent(job, 50);
  const auto second = d.Extent(job, 50);
  for (int i = 0; i < 6; ++i) d.Run(job, {{first, 0, 50}});
  const Moved moved = PerStep(d, 12, 4, [&] { d.Run(job, {{second, 0, 50}}); });
  EXPECT_LE(moved.in, 8) << "the second phase fits, once the first one's pages are taken for dead";
}

TEST(Pager, EvictsCleanPagesBeforeDirtyOnesAtEqualDistance) {
  Driver d(Config(64));
  const auto job = d.Job(1);
  const auto arena = d.Extent(job, 64);
  const auto more = d.Extent(job, 8);
  for (int i = 0; i < 4; ++i) {
    d.Run(job, {{arena, 0, 64}});
    d.Run(job, {{more, 0, 8}});
  }
  d.pager.Evict(job, 0, Reason::kCommand);
  d.Settle();
  for (std::uint64_t page = 0; page < 56; ++page) {  // every second page clean, the others dirty
    d.Run(job, {{arena, page, 1}}, page % 2 == 0 ? Access::kRead : Access::kUpdate);
  }
  const std::uint64_t stored = d.stored;
  const std::uint64_t dropped = d.dropped;
  d.Run(job, {{arena, 56, 8}}, Access::kRead);
  d.Run(job, {{more, 0, 8}}, Access::kRead);
  EXPECT_EQ(d.stored - stored, 0U);
  EXPECT_GE(d.dropped - dropped, 8U);
}

}  // namespace
}  // namespace bitpager::paging
