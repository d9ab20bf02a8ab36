// Requests: their order, their windows, their ends.
#include "tests/paging/driver.h"

namespace bitpager::paging {
namespace {

using wire::Code;

// ---- requests

TEST(Pager, RefusesRangesOutsideTheJobsExtents) {
  Driver d(SmallPages(20));
  const auto job = d.Job(1);
  const auto other = d.Job(2);
  const auto arena = d.Extent(job, 10);
  EXPECT_EQ(d.pager.Submit({job, Access::kRead, {{arena, 5, 6}}}).status().code(), Code::kOutOfRange);
  EXPECT_EQ(d.pager.Submit({job, Access::kRead, {{arena, ~0ULL, 2}}}).status().code(), Code::kOutOfRange);
  EXPECT_EQ(d.pager.Submit({job, Access::kRead, {{{99}, 0, 1}}}).status().code(), Code::kNotFound);
  EXPECT_EQ(d.pager.Submit({other, Access::kRead, {{arena, 0, 1}}}).status().code(), Code::kNotFound);
  EXPECT_EQ(d.pager.Submit({{7}, Access::kRead, {}}).status().code(), Code::kNotFound);
}

TEST(Pager, FinishesARequestOfNoPages) {
  Driver d(SmallPages(20));
  const auto job = d.Job(1);
  const auto arena = d.Extent(job, 10);
  d.Run(job, {});
  d.Run(job, {{arena, 3, 0}, {arena, 10, 0}});
  EXPECT_TRUE(d.visits.empty());
}

TEST(Pager, VisitsRangesInOrder) {
  Driver d(SmallPages(8));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 9);
  const auto b = d.Extent(job, 9, true, 0, wire::ExtentKind::kQuantizedWeight);
  d.Run(job, {{b, 2, 5}, {a, 0, 9}, {b, 1, 3}});
  std::vector<PageRef> expected;
  for (std::uint64_t i = 2; i < 7; ++i) expected.push_back({b, i});
  for (std::uint64_t i = 0; i < 9; ++i) expected.push_back({a, i});
  for (std::uint64_t i = 1; i < 4; ++i) expected.push_back({b, i});
  EXPECT_EQ(d.visits, expected);
}

TEST(Pager, RunsRequestsOfAJobInOrderOfArrival) {
  Driver d(SmallPages(8));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 30);
  for (std::uint64_t i = 0; i < 10; ++i) d.Ask(job, {{a, 3 * i, 3}});
  d.Settle();
  ASSERT_EQ(d.visits.size(), 30U);
  for (std::uint64_t i = 0; i < 30; ++i) EXPECT_EQ(d.visits[i].index, i);
}

PagerConfig OverlappingPages(std::uint64_t frames) {
  PagerConfig config = SmallPages(frames, 4);
  config.windows_in_flight = 2;
  config.loads_over_resident = true;
  return config;
}

TEST(Pager, HandsOutAnOverwriteThatFitsTheShareTogether) {
  Driver d(OverlappingPages(60));
  const auto job = d.Job(1);
  const auto states = d.Extent(job, 50);
  const auto weight = d.Extent(job, 40, true, 0, wire::ExtentKind::kQuantizedWeight);
  d.Run(job, {{states, 0, 50}});  // its pages are to be stored before the weight fits
  const auto id = d.Ask(job, {{weight, 0, 40}}, Access::kOverwrite);
  for (d.Pump(); d.outstanding_runs() == 0; d.Pump()) {
    d.pager.CheckInvariants();
    ASSERT_TRUE(d.CompleteOne());
  }
  EXPECT_EQ(d.outstanding_run_pages(), 40U) << "all windows in one decision";
  d.Settle();
  EXPECT_TRUE(d.finished.count(id.value));
}

// The device begins while the rest is decided; then nothing needs to happen before that.
TEST(Pager, HandsOutTheFirstPagesOfALargeRequestInADecisionOfTheirOwn) {
  PagerConfig config = OverlappingPages(60);
  config.first_pages = 10;
  Driver d(config);
  const auto job = d.Job(1);
  const auto states = d.Extent(job, 50);
  d.Run(job, {{states, 0, 50}});
  for (const std::uint64_t pages : {50U, 12U, 9U}) {
    const auto id = d.Ask(job, {{states, 0, pages}});
    EXPECT_EQ(d.Pump(), pages > 12) << pages;
    EXPECT_EQ(d.outstanding_run_pages(), std::min<std::uint64_t>(pages, 12));
    EXPECT_FALSE(d.Pump());
    EXPECT_EQ(d.outstanding_run_pages(), pages);
    d.Settle();
    EXPECT_TRUE(d.finished.count(id.value));
  }
}

// Each further decision is the larger, the more work the device has already.
TEST(Pager, HandsOutTheMoreInADecisionTheMoreWentBefore) {
  PagerConfig config = OverlappingPages(300);
  config.first_pages = 10;
  config.growth = 2;
  Driver d(config);
  const auto job = d.Job(1);
  const auto states = d.Extent(job, 280);
  d.Run(job, {{states, 0, 280}});
  (void)d.Ask(job, {{states, 0, 280}});
  for (const std::uint64_t so_far : {12U, 36U, 108U}) {
    EXPECT_TRUE(d.Pump());
    EXPECT_EQ(d.outstanding_run_pages(), so_far);
  }
  EXPECT_FALSE(d.Pump());
  EXPECT_EQ(d.outstanding_run_pages(), 280U);
  d.Settle();
}

TEST(Pager, StreamsAnOverwriteThatDoesNotFitTheShare) {
  Driver d(OverlappingPages(32));
  const auto job = d.Job(1);
  const auto weight = d.Extent(job, 40, true, 0, wire::ExtentKind::kQuantizedWeight);
  for (int i = 0; i < 3; ++i) d.Run(job, {{weight, 0, 40}}, Access::kOverwrite);
  EXPECT_EQ(d.visits.size(), 120U);
}

// Each fits its share, both together do not fit at once: neither holds a part and waits for the rest.
TEST(Pager, OverwritesOfTwoJobsDoNotWaitForEachOther) {
  for (std::uint64_t seed = 1; seed <= 30; ++seed) {
    Driver d(OverlappingPages(48), seed);
    const auto a = d.Job(1);
    const auto b = d.Job(2);
    const auto first = d.Extent(a, 48, true, 0, wire::ExtentKind::kQuantizedWeight);
    const auto second = d.Extent(b, 48, true, 0, wire::ExtentKind::kQuantizedWeight);
    for (int i = 0; i < 3; ++i) {
      (void)d.Ask(a, {{first, 8ULL * i, 24}}, Access::kOverwrite);
      (void)d.Ask(b, {{second, 4ULL * i, 24}}, Access::kOverwrite);
    }
    d.Settle();
    EXPECT_TRUE(d.idle(a) && d.idle(b));
    EXPECT_EQ(d.visits.size(), 6 * 24U);
  }
}

TEST(Pager, RunsAResidentRequestWithoutWaiting) {
  Driver d(SmallPages(100));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 50);
  d.Run(job, {{a, 0, 50}});
  (void)d.Ask(job, {{a, 0, 50}});
  Actions actions;
  d.pager.Pump(actions);
  ASSERT_EQ(actions.runs.size(), 13U);
  EXPECT_TRUE(actions.loads.empty());
  EXPECT_TRUE(actions.runs.back().last);
  EXPECT_FALSE(actions.runs[11].last);
}

TEST(Pager, OverlapsLoadRunAndWriteBack) {
  Driver d(SmallPages(60, 4));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 240);
  for (int i = 0; i < 3; ++i) d.Run(job, {{a, 0, 240}});
  d.Ask(job, {{a, 0, 240}});
  bool all_three = false;
  for (int i = 0; i < 5000 && !all_three; ++i) {
    d.Pump();
    all_three = d.outstanding_loads() > 0 && d.outstanding_stores() > 0 && d.outstanding_runs() > 0;
    if (!d.CompleteOne()) break;
  }
  EXPECT_TRUE(all_three);
}

TEST(Pager, StreamsThroughABudgetOfOneWindow) {
  for (const std::uint32_t window : {1U, 2U, 3U, 8U}) {
    Driver d(SmallPages(window, window));
    const auto job = d.Job(1);
    const auto a = d.Extent(job, 50);
    for (int i = 0; i < 3; ++i) d.Run(job, {{a, 0, 50}});
    EXPECT_EQ(d.visits.size(), 150U);
  }
}

TEST(Pager, LoadsNothingForPagesThatWereNeverWritten) {
  Driver d(SmallPages(8));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 40);
  d.Run(job, {{a, 0, 40}}, Access::kRead);
  EXPECT_EQ(d.loaded, 0U);
  EXPECT_EQ(d.stored, 0U);
  d.Run(job, {{a, 0, 40}}, Access::kUpdate);
  EXPECT_EQ(d.loaded, 0U);
  d.Run(job, {{a, 0, 40}}, Access::kRead);
  EXPECT_GE(d.loaded, 32U);
}

TEST(Pager, LoadsNothingThatIsOverwritten) {
  Driver d(SmallPages(8));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 40);
  for (int i = 0; i < 3; ++i) d.Run(job, {{a, 0, 40}}, Access::kOverwrite);
  EXPECT_EQ(d.loaded, 0U);
}

TEST(Pager, DropsCleanPagesWithoutACopy) {
  Driver d(SmallPages(8));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 40);
  d.Run(job, {{a, 0, 40}});
  d.pager.Evict(job, 0, Reason::kCommand);
  d.Settle();
  const std::uint64_t stored = d.stored;
  for (int i = 0; i < 3; ++i) d.Run(job, {{a, 0, 40}}, Access::kRead);
  EXPECT_EQ(d.stored, stored);
  EXPECT_GT(d.dropped, 60U);
}

TEST(Pager, CancelledBeforeItStartsIsNotApplied) {
  Driver d(SmallPages(8));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 40);
  const auto first = d.Ask(job, {{a, 0, 40}});
  const auto second = d.Ask(job, {{a, 0, 40}});
  d.pager.Cancel(second);
  EXPECT_FALSE(d.pager.Started(second));
  d.Settle();
  EXPECT_EQ(d.visits.size(), 40U);
  EXPECT_TRUE(d.finished.count(first.value) && d.finished.count(second.value));
}

TEST(Pager, CancelledInTheMiddleKeepsWhatRan) {
  Driver d(SmallPages(8));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 40);
  const auto id = d.Ask(job, {{a, 0, 40}});
  while (!d.pager.Started(id)) {
    d.Pump();
    d.CompleteOne();
  }
  d.pager.Cancel(id);
  d.Settle();
  EXPECT_TRUE(d.finished.count(id.value));
  EXPECT_GT(d.visits.size(), 0U);
  EXPECT_LT(d.visits.size(), 40U);
  d.Run(job, {{a, 0, 40}});
}

TEST(Pager, ACancelledOverwriteLeavesTheOldContent) {
  Driver d(SmallPages(8));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 16);
  d.Run(job, {{a, 0, 16}});
  d.pager.Evict(job, 0, Reason::kCommand);
  d.Settle();
  const auto id = d.Ask(job, {{a, 0, 16}}, Access::kOverwrite);
  d.Pump();
  d.pager.Cancel(id);
  d.Settle();
  EXPECT_EQ(d.visits.size(), 16U);
  d.Run(job, {{a, 0, 16}}, Access::kRead);  // the driver compares contents
}

// ---- endings

TEST(Pager, ARemovedExtentLivesUntilItsRunsAreDone) {
  Driver d(SmallPages(20, 4));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 12);
  const auto id = d.Ask(job, {{a, 0, 12}});
  while (d.outstanding_runs() == 0) {
    d.Pump();
    d.CompleteOne();
  }
  d.Remove(a);
  d.Pump();
  d.pager.CheckInvariants();
  EXPECT_GT(d.FramesOf(1), 0U);
  EXPECT_FALSE(d.finished.count(id.value));
  d.Settle();
  EXPECT_TRUE(d.finished.count(id.value));
  EXPECT_EQ(d.FramesOf(1), 0U);
  EXPECT_EQ(d.pager.used_host_frames(), 0U);
}

TEST(Pager, ARemovedJobGoesWithItsLastFrame) {
  Driver d(SmallPages(20, 4));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 12);
  d.Ask(job, {{a, 0, 12}});
  while (d.outstanding_runs() == 0) {
    d.Pump();
    d.CompleteOne();
  }
  d.pager.RemoveJob(job);
  d.Pump();
  EXPECT_TRUE(d.pager.Usage(job));
  d.Settle();
  EXPECT_FALSE(d.pager.Usage(job));
  EXPECT_EQ(d.pager.free_frames(), 20U);
}

TEST(Pager, CountsWhatItMoved) {
  Driver d(SmallPages(10, 2));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 40, true, 0, wire::ExtentKind::kQuantizedWeight);
  for (int i = 0; i < 3; ++i) d.Run(job, {{a, 0, 40}});
  const JobUsage usage = *d.pager.Usage(job);
  EXPECT_EQ(usage.loaded_pages, d.loaded);
  EXPECT_EQ(usage.stored_pages, d.stored);
  EXPECT_EQ(usage.dropped_pages, d.dropped);
  EXPECT_EQ(usage.pages_by_kind[1], 40U);
  EXPECT_EQ(usage.resident_by_kind[1], d.FramesOf(1));
  EXPECT_EQ(usage.host_frames, 40U);
  EXPECT_LE(usage.dirty_pages, usage.resident_frames);
}

TEST(PagerDeathTest, AbortsOnACompletionThatNobodyAskedFor) {
  Driver d(SmallPages(10, 2));
  const auto a = d.Extent(d.Job(1), 4);
  EXPECT_DEATH(d.pager.LoadDone({a, 0}), "not loading");
  EXPECT_DEATH(d.pager.RunDone({77}, 0), "unknown request");
}

}  // namespace
}  // namespace bitpager::paging
