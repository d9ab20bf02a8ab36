// Steps on an accelerator's clock: time beside what the bytes need on the link, and beside the compute.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/paging/driver.h"
#include "tests/paging/overlap_sim.h"

namespace bitpager::paging {
namespace {

constexpr std::uint64_t kPages = 3878;  // 1e9 parameters' two 8-bit states in pages of 512 KiB
constexpr std::uint32_t kWindow = 32;
constexpr std::uint64_t kRoomy = 4800;  // frames for all of them

PagerConfig Accelerator(std::uint64_t frames) {
  PagerConfig config;
  config.device_frames = frames;
  config.host_frames = 16384;
  config.segment_frames = kWindow;
  config.window_pages = kWindow;
  config.windows_in_flight = 6;
  config.least_under_way = 3 * kWindow;
  config.loads_over_resident = true;
  config.first_pages = 96;
  return config;
}

class SpilledShare : public ::testing::TestWithParam<int> {};

TEST_P(SpilledShare, StepTakesWhatItsBytesNeed) {
  const auto spilled = static_cast<std::uint64_t>(GetParam());
  const std::uint64_t frames =
      std::max<std::uint64_t>(3 * kWindow, kPages * (100 - spilled) / 100 / kWindow * kWindow);
  OverlapSim sim(Accelerator(frames), kPages);
  OverlapSim::Step step;
  for (int i = 0; i < 20; ++i) step = sim.RunStep();  // nothing may drift or break up with time
  const std::uint64_t optimum = kPages - frames;
  EXPECT_GE(step.pages_in, optimum);
  EXPECT_LE(step.pages_in, optimum + 3 * kWindow);
  EXPECT_LE(step.pages_out, optimum + 3 * kWindow);
  const double least_us = std::max(step.in_us, static_cast<double>(kPages) * Timing{}.page_step_us);
  EXPECT_LE(step.us, 1.10 * least_us);
  EXPECT_LE(step.copies, (step.pages_in + step.pages_out) * 8 / (7 * kWindow))
      << "neighbours are copied in one piece";
  sim.pager.CheckInvariants();
}

INSTANTIATE_TEST_SUITE_P(, SpilledShare, ::testing::Range(10, 101, 10));

// Copies that cost more each, and a step kernel of 2.8 ms for 1e9 parameters.
Timing CostlyCopies() {
  Timing timing;
  timing.page_copy_us = 41.3 / 4;
  timing.copy_us = 10;
  timing.page_step_us = 2.9 / 4;
  return timing;
}

struct Spilled {
  std::uint64_t percent;
  double most_ms;       // with a pause between steps, in which pages may move
  double most_busy_ms;  // without
};

class StepTime : public ::testing::TestWithParam<Spilled> {};

TEST_P(StepTime, IsBounded) {
  const std::uint64_t frames =
      std::max<std::uint64_t>(3 * kWindow, kPages * (100 - GetParam().percent) / 100);
  for (const bool pause : {true, false}) {
    OverlapSim sim(Accelerator(kRoomy), kPages, CostlyCopies(), frames);
    for (int i = 0; i < 10; ++i) (void)sim.RunStep(pause);
    for (int i = 0; i < 5; ++i) {
      const OverlapSim::Step step = sim.RunStep(pause);
      EXPECT_LE(step.us / 1000, pause ? GetParam().most_ms : GetParam().most_busy_ms) << pause;
      EXPECT_LE(step.pages_in, kPages - frames + 4 * kWindow - 1);
    }
    sim.pager.CheckInvariants();
  }
}

INSTANTIATE_TEST_SUITE_P(, StepTime,
                         ::testing::Values(Spilled{0, 2.9, 2.9}, Spilled{5, 3.1, 3.6}, Spilled{10, 4.9, 5.7},
                                           Spilled{25, 11.3, 12.3}, Spilled{50, 21.4, 22.5},
                                           Spilled{75, 31.7, 32.8}, Spilled{90, 37.8, 38.8},
                                           Spilled{100, 40.9, 41.9}));

TEST(Overlap, ThePauseBehindAStepBringsTheFirstPagesOfTheNext) {
  OverlapSim sim(Accelerator(kRoomy), kPages, CostlyCopies(), kPages / 2);
  for (int i = 0; i < 5; ++i) (void)sim.RunStep();
  const Traffic before = sim.pager.Usage({1})->traffic;
  (void)sim.RunStep();
  const Traffic after = sim.pager.Usage({1})->traffic;
  const auto prefetch = static_cast<std::size_t>(Reason::kPrefetch);
  EXPECT_EQ(after.to_device[prefetch] - before.to_device[prefetch], 2 * kWindow);
  EXPECT_LE(sim.pager.Usage({1})->resident_frames, kPages / 2 - kWindow) << "room for the first loads";
  // An operator's eviction is not undone by it.
  sim.EvictAll();
  EXPECT_EQ(sim.pager.Usage({1})->resident_frames, 0U);
  sim.pager.CheckInvariants();
}

// Small states of 32 bits are stepped first, and are the last to leave: a step would wait for them.
TEST(Overlap, AStepDoesNotWaitForItsSmallStates) {
  for (const std::uint64_t percent : {5, 10, 20, 50, 80}) {
    const std::uint64_t frames = (kPages + 1) * (100 - percent) / 100;
    OverlapSim sim(Accelerator(kRoomy), kPages, CostlyCopies(), frames, 1);
    for (int i = 0; i < 10; ++i) (void)sim.RunStep();
    const OverlapSim::Step step = sim.RunStep();
    OverlapSim alone(Accelerator(kRoomy), kPages, CostlyCopies(), frames - 1);
    for (int i = 0; i < 10; ++i) (void)alone.RunStep();
    const OverlapSim::Step than = alone.RunStep();
    EXPECT_LE(step.us, than.us + 250) << percent << "%";
    EXPECT_LE(step.pages_in, than.pages_in) << percent << "%";
  }
}

// A phase that sends an arena away comes right behind a step, before the pause's pages.
TEST(Overlap, AnExtentSentAwayRightBehindAStepStaysAway) {
  constexpr std::uint64_t kExtent = 12 * kWindow;
  Driver d(Accelerator(kExtent / 2));
  const wire::JobId job = d.Job(1);
  const wire::ExtentId extent = d.Extent(job, kExtent);
  for (int i = 0; i < 3; ++i) d.Run(job, {{extent, 0, kExtent}});
  const wire::RequestId id = d.Ask(job, {{extent, 0, kExtent}});
  while (d.finished.count(id.value) == 0) {
    d.Pump();
    if (d.finished.count(id.value) != 0) break;
    ASSERT_TRUE(d.CompleteOne());
  }
  d.pager.EvictExtent(extent, Reason::kPrefetch);
  d.Settle();
  EXPECT_EQ(d.pager.Usage(job)->resident_frames, 0U);
}

// As the buckets of a backward pass are stepped one by one: the next pages are not those of the last part.
TEST(Overlap, ThePauseBehindAPartOfAStepBringsTheNextPartsPages) {
  constexpr std::uint64_t kParts = 4;
  constexpr std::uint64_t kPart = 5 * kWindow;
  Driver d(Accelerator(3 * kWindow));
  const wire::JobId job = d.Job(1);
  const wire::ExtentId extent = d.Extent(job, kParts * kPart);
  const auto step = [&] {
    for (std::uint64_t part = 0; part < kParts; ++part) d.Run(job, {{extent, part * kPart, kPart}});
  };
  for (int i = 0; i < 3; ++i) step();
  const JobUsage before = *d.pager.Usage(job);
  step();
  const JobUsage after = *d.pager.Usage(job);
  EXPECT_LE(after.loaded_pages - before.loaded_pages, kParts * kPart) << "none leaves before it was used";
  const auto prefetch = static_cast<std::size_t>(Reason::kPrefetch);
  EXPECT_EQ(after.traffic.to_device[prefetch] - before.traffic.to_device[prefetch], kParts * 2 * kWindow);
}

// Small states of 32 bits are stepped first, and stay: what comes is of the arena behind them.
TEST(Overlap, ThePauseBringsPagesOfTheFirstPartThatLacksSome) {
  constexpr std::uint64_t kLarge = 20 * kWindow;
  Driver d(Accelerator(kLarge / 2));
  const wire::JobId job = d.Job(1);
  const wire::ExtentId large = d.Extent(job, kLarge);
  const wire::ExtentId small = d.Extent(job, 1);
  const auto step = [&] {
    d.Run(job, {{small, 0, 1}});
    d.Run(job, {{large, 0, kLarge}});
  };
  for (int i = 0; i < 4; ++i) step();
  const JobUsage before = *d.pager.Usage(job);
  step();
  const JobUsage after = *d.pager.Usage(job);
  const auto prefetch = static_cast<std::size_t>(Reason::kPrefetch);
  EXPECT_GE(after.traffic.to_device[prefetch] - before.traffic.to_device[prefetch], kWindow);
  d.pager.RemoveExtent(large);  // nothing of it is expected any more
  d.Run(job, {{small, 0, 1}});
  d.pager.CheckInvariants();
}

TEST(Overlap, AnEvictionRightBehindAStepIsNotUndone) {
  OverlapSim sim(Accelerator(kRoomy), kPages, CostlyCopies(), kPages / 2);
  for (int i = 0; i < 5; ++i) (void)sim.RunStep();
  (void)sim.RunStep(false);  // what the pause is for has not begun
  sim.EvictAll();
  EXPECT_EQ(sim.pager.Usage({1})->resident_frames, 0U);
}

class StreamBuffers : public ::testing::TestWithParam<std::uint64_t> {};

TEST_P(StreamBuffers, LinkIsBusyThroughoutAStepFromTheHost) {
  OverlapSim sim(Accelerator(GetParam()), kPages);
  (void)sim.RunStep();  // pages are fresh: nothing to load
  for (int i = 0; i < 3; ++i) {
    sim.EvictAll();
    const OverlapSim::Step step = sim.RunStep(false);  // evicted before the pause brings anything
    EXPECT_EQ(step.pages_in, kPages);
    EXPECT_LE(step.us, 1.06 * step.in_us);
  }
}

INSTANTIATE_TEST_SUITE_P(, StreamBuffers,
                         ::testing::Values(1 * kWindow, 2 * kWindow, 3 * kWindow, 6 * kWindow, 12 * kWindow));

TEST(Overlap, ALimitLoweredAtAnyTimeOfAStepLetsItEnd) {
  for (const std::uint64_t quota : {32, 48, 64, 96, 160}) {
    for (int at = 1; at < 400; at += 7) {
      PagerConfig config = Accelerator(1600);
      config.segment_frames = 64;
      OverlapSim sim(config, 800, {}, 400);
      (void)sim.RunStep();
      (void)sim.RunStep();
      const bool ended = sim.RunStep(20'000, [&](int look) {
        if (look != at) return;
        const JobSpec lowered{.name = "job", .device_quota_frames = quota};
        EXPECT_TRUE(sim.pager.SetJob({1}, lowered).ok());
      });
      ASSERT_TRUE(ended) << quota << " frames from look " << at;
      sim.pager.CheckInvariants();
      EXPECT_LE(sim.pager.Usage({1})->resident_frames, quota);
    }
  }
}

TEST(Overlap, AJobWithoutEvictablePagesSteps) {
  Pager pager(Accelerator(8 * kWindow));
  ASSERT_TRUE(pager.AddJob({1}, {.name = "job"}).ok());
  const auto leaving = pager.AddExtent({.job = {1}, .pages = 4 * kWindow});
  const auto staying = pager.AddExtent({.job = {1}, .pages = 4, .evictable = false});
  ASSERT_TRUE(leaving.ok() && staying.ok());
  Actions actions;
  ASSERT_TRUE(pager.Submit({.job = {1}, .ranges = {{*leaving, 0, 4 * kWindow}}}).ok());
  pager.Pump(actions);
  pager.RemoveExtent(*leaving);  // its pages are on their way in
  ASSERT_TRUE(pager.Submit({.job = {1}, .ranges = {{*staying, 0, 4}}}).ok());
  pager.Pump(actions);
  pager.CheckInvariants();
}

TEST(Overlap, AllResidentTakesTheCompute) {
  OverlapSim sim(Accelerator(kPages + kWindow), kPages);
  (void)sim.RunStep();
  const OverlapSim::Step step = sim.RunStep();
  EXPECT_EQ(step.pages_in + step.pages_out, 0U);
  EXPECT_LE(step.us, 1.02 * static_cast<double>(kPages) * Timing{}.page_step_us);
}

}  // namespace
}  // namespace bitpager::paging
