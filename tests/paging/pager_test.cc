// The pager's behaviours, one by one.
#include <set>

#include "tests/paging/driver.h"

namespace bitpager::paging {
namespace {

using wire::Code;

PagerConfig Config(std::uint64_t frames, std::uint32_t window = 4, std::uint32_t segment = 1) {
  PagerConfig config;
  config.page_bytes = 4096;
  config.device_frames = frames;
  config.host_frames = 10000;
  config.window_pages = window;
  config.segment_frames = segment;
  return config;
}

// ---- admission

TEST(Pager, RefusesAJobThatLeavesNoWindowForEveryJob) {
  Driver d(Config(11));
  d.Job(1);
  d.Job(2);
  const wire::Status status = d.pager.AddJob({3}, {"third"});
  EXPECT_EQ(status.code(), Code::kBudgetExceeded);
  EXPECT_NE(status.message().find("4096 bytes (1 pages)"), std::string::npos) << status.message();
}

TEST(Pager, CountsAJobOfFewPagesByItsPages) {
  Driver d(Config(11));
  d.Extent(d.Job(1), 2);
  d.Job(2);
  EXPECT_TRUE(d.pager.AddJob({3}, {"third"}).ok());
}

TEST(Pager, RefusesAQuotaUnderOneWindow) {
  Driver d(Config(11));
  JobSpec spec{"small", 1.0, 3, 0};
  EXPECT_EQ(d.pager.AddJob({1}, spec).code(), Code::kInvalidArgument);
  spec.device_quota_frames = 4;
  EXPECT_TRUE(d.pager.AddJob({1}, spec).ok());
  spec.device_quota_frames = 2;
  EXPECT_EQ(d.pager.SetJob({1}, spec).code(), Code::kInvalidArgument);
}

TEST(Pager, RefusesWeightsThatAreNotPositive) {
  Driver d(Config(11));
  EXPECT_EQ(d.pager.AddJob({1}, {"a", 0.0}).code(), Code::kInvalidArgument);
  EXPECT_EQ(d.pager.AddJob({1}, {"a", -1.0}).code(), Code::kInvalidArgument);
}

TEST(Pager, RefusesAJobTwice) {
  Driver d(Config(20));
  d.Job(1);
  EXPECT_EQ(d.pager.AddJob({1}, {"again"}).code(), Code::kAlreadyExists);
}

TEST(Pager, CommitsHostFramesAtAdmission) {
  PagerConfig config = Config(8);
  config.host_frames = 10;
  Driver d(config);
  const auto job = d.Job(1);
  d.Extent(job, 7);
  EXPECT_EQ(d.pager.used_host_frames(), 7U);
  auto refused = d.pager.AddExtent({job, wire::ExtentKind::kOptimizerState, 4, true, 0});
  EXPECT_EQ(refused.status().code(), Code::kBudgetExceeded);
  EXPECT_NE(refused.status().message().find("missing 4096 bytes"), std::string::npos);
  d.pager.CheckInvariants();
}

TEST(Pager, KeepsTheHostQuota) {
  Driver d(Config(8));
  const auto job = d.Job(1, {"a", 1.0, 0, 5});
  d.Extent(job, 5);
  EXPECT_EQ(d.pager.AddExtent({job, wire::ExtentKind::kOptimizerState, 1, true, 0}).status().code(),
            Code::kQuotaExceeded);
}

TEST(Pager, LaysAnExtentsHostFramesSideBySide) {
  Driver d(Config(8));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 10);
  d.Extent(job, 3);
  d.Remove(a);
  const auto b = d.Extent(job, 20);
  for (std::uint64_t i = 1; i < 20; ++i) {
    EXPECT_EQ(d.pager.HostFrameOf({b, i}), d.pager.HostFrameOf({b, 0}) + i);
  }
}

TEST(Pager, CommitsDeviceFramesOfPagesThatStay) {
  Driver d(Config(12));
  const auto job = d.Job(1);
  const auto fixed = d.Extent(job, 8, false);
  const auto arena = d.Extent(job, 100);
  auto refused = d.pager.AddExtent({job, wire::ExtentKind::kOptimizerState, 1, false, 0});
  EXPECT_EQ(refused.status().code(), Code::kBudgetExceeded);
  for (int i = 0; i < 3; ++i) d.Run(job, {{fixed, 0, 8}, {arena, 0, 100}});
  for (std::uint64_t i = 0; i < 8; ++i) EXPECT_EQ(d.pager.StateOf({fixed, i}), PageState::kResident);
  EXPECT_EQ(d.pager.used_host_frames(), 100U);
}

TEST(Pager, RefusesPagesThatStayBeyondTheQuota) {
  Driver d(Config(40));
  const auto job = d.Job(1, {"a", 1.0, 10, 0});
  EXPECT_EQ(d.pager.AddExtent({job, wire::ExtentKind::kOptimizerState, 10, false, 0}).status().code(),
            Code::kQuotaExceeded);
  EXPECT_TRUE(d.pager.AddExtent({job, wire::ExtentKind::kOptimizerState, 6, false, 0}).ok());
}

TEST(Pager, RefusesABudgetThatBreaksItsPromises) {
  Driver d(Config(20));
  d.Extent(d.Job(1), 10);
  d.Extent(d.Job(2), 10);
  EXPECT_EQ(d.pager.SetDeviceFrames(7).code(), Code::kBudgetExceeded);
  EXPECT_TRUE(d.pager.SetDeviceFrames(8).ok());
}

// ---- requests

TEST(Pager, RefusesRangesOutsideTheJobsExtents) {
  Driver d(Config(20));
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
  Driver d(Config(20));
  const auto job = d.Job(1);
  const auto arena = d.Extent(job, 10);
  d.Run(job, {});
  d.Run(job, {{arena, 3, 0}, {arena, 10, 0}});
  EXPECT_TRUE(d.visits.empty());
}

TEST(Pager, VisitsRangesInOrder) {
  Driver d(Config(8));
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
  Driver d(Config(8));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 30);
  for (std::uint64_t i = 0; i < 10; ++i) d.Ask(job, {{a, 3 * i, 3}});
  d.Settle();
  ASSERT_EQ(d.visits.size(), 30U);
  for (std::uint64_t i = 0; i < 30; ++i) EXPECT_EQ(d.visits[i].index, i);
}

TEST(Pager, RunsAResidentRequestWithoutWaiting) {
  Driver d(Config(100));
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
  Driver d(Config(60, 4));
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
    Driver d(Config(window, window));
    const auto job = d.Job(1);
    const auto a = d.Extent(job, 50);
    for (int i = 0; i < 3; ++i) d.Run(job, {{a, 0, 50}});
    EXPECT_EQ(d.visits.size(), 150U);
  }
}

TEST(Pager, LoadsNothingForPagesThatWereNeverWritten) {
  Driver d(Config(8));
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
  Driver d(Config(8));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 40);
  for (int i = 0; i < 3; ++i) d.Run(job, {{a, 0, 40}}, Access::kOverwrite);
  EXPECT_EQ(d.loaded, 0U);
}

TEST(Pager, DropsCleanPagesWithoutACopy) {
  Driver d(Config(8));
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
  Driver d(Config(8));
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
  Driver d(Config(8));
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
  Driver d(Config(8));
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

// ---- jobs against each other

TEST(Pager, NeverDeadlocksOnATinyBudget) {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    Driver d(Config(16, 2), seed);
    std::vector<wire::RequestId> asked;
    for (std::uint64_t n = 1; n <= 8; ++n) {
      const auto job = d.Job(n);
      const auto a = d.Extent(job, 30);
      for (int i = 0; i < 4; ++i) asked.push_back(d.Ask(job, {{a, 0, 30}, {a, d.rng()() % 20, 10}}));
    }
    d.Settle();
    for (const auto id : asked) EXPECT_TRUE(d.finished.count(id.value)) << "seed " << seed;
  }
}

TEST(Pager, NeverDeadlocksWhenDomainsCompeteForSegments) {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    Driver d(Config(48, 4, 4), seed);
    std::vector<wire::RequestId> asked;
    for (std::uint64_t n = 1; n <= 4; ++n) {
      const auto job = d.Job(n);
      const auto arena = d.Extent(job, 30);
      const auto weights =
          d.Extent(job, 30, true, static_cast<DomainId>(n % 3), wire::ExtentKind::kQuantizedWeight);
      for (int i = 0; i < 4; ++i) {
        asked.push_back(d.Ask(job, {{weights, 0, 30}}, Access::kRead));
        asked.push_back(d.Ask(job, {{arena, 0, 30}, {weights, 5, 5}}));
      }
    }
    d.Settle();
    for (const auto id : asked) EXPECT_TRUE(d.finished.count(id.value)) << "seed " << seed;
  }
}

TEST(Pager, EqualJobsShareWithinATenth) {
  Driver d(Config(120, 4));
  d.check_each = false;
  std::vector<std::pair<wire::JobId, wire::ExtentId>> jobs;
  for (std::uint64_t n = 1; n <= 3; ++n) {
    const auto job = d.Job(n);
    jobs.emplace_back(job, d.Extent(job, 80 + 40 * n));
  }
  std::map<std::uint64_t, double> sum;
  int samples = 0;
  for (int i = 0; i < 40000; ++i) {
    for (const auto& [job, arena] : jobs) {
      if (d.idle(job)) d.Ask(job, {{arena, 0, 80 + 40 * job.value}});
    }
    d.Pump();
    d.CompleteOne();
    if (i < 5000) continue;
    ++samples;
    for (const auto& [job, arena] : jobs) sum[job.value] += static_cast<double>(d.FramesOf(job.value));
  }
  for (const auto& [job, frames] : sum) EXPECT_NEAR(frames / samples, 40, 4) << "job " << job;
  for (const auto& [job, arena] : jobs) EXPECT_EQ(d.pager.Usage(job)->share_frames, 40U);
}

TEST(Pager, SharesFollowTheWeights) {
  Driver d(Config(120, 4));
  const auto a = d.Job(1, {"light", 1.0});
  const auto b = d.Job(2, {"heavy", 3.0});
  d.Extent(a, 500);
  d.Extent(b, 500);
  EXPECT_EQ(d.pager.Usage(a)->share_frames, 30U);
  EXPECT_EQ(d.pager.Usage(b)->share_frames, 90U);
}

TEST(Pager, AJobThatNeedsLessGivesTheRestAway) {
  Driver d(Config(120, 4));
  const auto a = d.Job(1);
  const auto b = d.Job(2);
  d.Extent(a, 20);
  d.Extent(b, 500);
  EXPECT_EQ(d.pager.Usage(a)->share_frames, 20U);
  EXPECT_EQ(d.pager.Usage(b)->share_frames, 100U);
}

TEST(Pager, ALateJobTakesItsShareFromOneThatHasMore) {
  Driver d(Config(80, 4));
  const auto a = d.Job(1);
  const auto arena = d.Extent(a, 100);
  d.Run(a, {{arena, 0, 100}});
  EXPECT_EQ(d.FramesOf(1), 80U);
  const auto b = d.Job(2);
  const auto late = d.Extent(b, 100);
  for (int i = 0; i < 3; ++i) d.Run(b, {{late, 0, 100}});
  EXPECT_NEAR(static_cast<double>(d.FramesOf(2)), 40, 4);
}

TEST(Pager, NeverPassesAQuota) {  // the driver checks it after every decision
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    Driver d(Config(80, 4), seed);
    const auto job = d.Job(1, {"capped", 1.0, 10, 0});
    const auto a = d.Extent(job, 60);
    const auto other = d.Job(2);
    const auto b = d.Extent(other, 60);
    for (int i = 0; i < 3; ++i) {
      d.Ask(job, {{a, 0, 60}});
      d.Ask(other, {{b, 0, 60}});
    }
    d.Settle();
    EXPECT_EQ(d.visits.size(), 360U);
    EXPECT_LE(d.FramesOf(1), 10U);
    EXPECT_EQ(d.FramesOf(2), 60U);
  }
}

TEST(Pager, PagesLeaveWhenAQuotaIsLowered) {
  Driver d(Config(80, 4));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 60);
  d.Run(job, {{a, 0, 60}});
  EXPECT_EQ(d.FramesOf(1), 60U);
  d.SetQuota(1, 12);
  d.Settle();
  EXPECT_EQ(d.FramesOf(1), 12U);
  d.Run(job, {{a, 0, 60}});
  EXPECT_LE(d.FramesOf(1), 12U);
}

TEST(Pager, FollowsTheBudgetDownAndUp) {
  for (const std::uint32_t segment : {1U, 4U}) {
    Driver d(Config(80, 4, segment));
    const auto job = d.Job(1);
    const auto a = d.Extent(job, 100);
    d.Run(job, {{a, 0, 100}});
    EXPECT_EQ(d.segments() * segment, 80U);
    d.check_budget = false;
    d.SetBudget(20);
    d.Settle();
    EXPECT_EQ(d.segments() * segment, 20U);
    d.check_budget = true;
    d.Run(job, {{a, 0, 100}});
    d.SetBudget(200);
    d.Run(job, {{a, 0, 100}});
    EXPECT_EQ(d.FramesOf(1), 100U);
  }
}

TEST(Pager, EvictsOnCommand) {
  Driver d(Config(80, 4));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 50);
  d.Run(job, {{a, 0, 50}});
  d.pager.Evict(job, 15, Reason::kCommand);
  d.Settle();
  EXPECT_EQ(d.FramesOf(1), 35U);
  d.pager.Evict(job, 0, Reason::kCommand);
  d.Settle();
  EXPECT_EQ(d.FramesOf(1), 0U);
  d.Run(job, {{a, 0, 50}});
}

// ---- prefetch

TEST(Pager, PrefetchFillsFreeFrames) {
  Driver d(Config(80, 4));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 50);
  d.Run(job, {{a, 0, 50}});
  d.pager.Evict(job, 0, Reason::kCommand);
  d.Settle();
  d.Ask(job, {{a, 0, 50}}, Access::kRead, true);
  d.Settle();
  EXPECT_EQ(d.FramesOf(1), 50U);
  EXPECT_EQ(d.visits.size(), 50U);
  const std::uint64_t loaded = d.loaded;
  d.Run(job, {{a, 0, 50}});
  EXPECT_EQ(d.loaded, loaded);
}

TEST(Pager, PrefetchStaysWithinTheShare) {
  Driver d(Config(80, 4));
  const auto job = d.Job(1);
  d.Extent(d.Job(2), 100);
  const auto a = d.Extent(job, 100);
  d.Ask(job, {{a, 0, 100}}, Access::kRead, true);
  d.Settle();
  EXPECT_EQ(d.FramesOf(1), 40U);
}

TEST(Pager, PrefetchEvictsOnlyWhatIsUsedLater) {
  Driver d(Config(40, 4));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 100);
  for (int i = 0; i < 6; ++i) d.Run(job, {{a, 0, 100}});
  d.Ask(job, {{a, 0, 100}}, Access::kRead, true);
  d.Settle();
  std::uint64_t first = 0;  // the pages that the next step visits first are there now
  while (first < 100 && d.pager.StateOf({a, first}) == PageState::kResident) ++first;
  EXPECT_GE(first, 36U);
  const std::uint64_t loaded = d.loaded;
  d.Ask(job, {{a, 0, 100}}, Access::kRead, true);
  d.Settle();
  EXPECT_EQ(d.loaded, loaded) << "a second prefetch moves nothing";
}

TEST(Pager, ARequestEndsThePrefetchBeforeIt) {
  Driver d(Config(80, 4));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 60);
  d.Run(job, {{a, 0, 60}});
  d.pager.Evict(job, 0, Reason::kCommand);
  d.Settle();
  const auto prefetch = d.Ask(job, {{a, 0, 60}}, Access::kRead, true);
  d.Pump();
  d.Ask(job, {{a, 50, 4}});
  d.Pump();
  EXPECT_TRUE(d.finished.count(prefetch.value));
  d.Settle();
  EXPECT_LT(d.FramesOf(1), 60U);
}

// ---- leases

TEST(Pager, LeasesOnlyResidentExtentsWithinTheReserve) {
  Driver d(Config(20, 4));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 10, true, 5, wire::ExtentKind::kQuantizedWeight);
  const auto b = d.Extent(job, 10, true, 5, wire::ExtentKind::kQuantizedWeight);
  d.Extent(job, 10);
  EXPECT_EQ(d.pager.Lease(a).code(), Code::kNotResident);
  d.Run(job, {{a, 0, 10}, {b, 0, 10}}, Access::kOverwrite);
  EXPECT_TRUE(d.pager.Lease(a).ok());
  EXPECT_EQ(d.pager.Lease(b).code(), Code::kFull);
  EXPECT_EQ(d.pager.Usage(job)->leased_frames, 10U);
}

TEST(Pager, LeasedPagesStayWhileOthersStream) {
  Driver d(Config(20, 4));
  const auto job = d.Job(1);
  const auto weights = d.Extent(job, 10, true, 5, wire::ExtentKind::kQuantizedWeight);
  const auto arena = d.Extent(job, 60);
  d.Run(job, {{weights, 0, 10}}, Access::kOverwrite);
  ASSERT_TRUE(d.pager.Lease(weights).ok());
  d.Run(job, {{arena, 0, 60}});
  EXPECT_TRUE(d.revoked.empty());
  for (std::uint64_t i = 0; i < 10; ++i) EXPECT_EQ(d.pager.StateOf({weights, i}), PageState::kResident);
}

TEST(Pager, RevokesALeaseWhenTheShareShrinks) {
  Driver d(Config(24, 4));
  const auto job = d.Job(1);
  const auto weights = d.Extent(job, 14, true, 5, wire::ExtentKind::kQuantizedWeight);
  d.Run(job, {{weights, 0, 14}}, Access::kOverwrite);
  ASSERT_TRUE(d.pager.Lease(weights).ok());
  const auto other = d.Job(2);
  const auto arena = d.Extent(other, 60);
  d.Ask(other, {{arena, 0, 60}});
  d.Settle();
  ASSERT_EQ(d.revoked.size(), 1U);
  EXPECT_EQ(d.pager.Lease(weights).code(), Code::kFull) << "a lease under revocation is not given again";
  d.pager.LeaseReleased(d.revoked[0]);
  d.Settle();
  EXPECT_EQ(d.visits.size(), 14U + 60U);
}

TEST(Pager, ARemovedExtentWaitsForItsLease) {
  Driver d(Config(24, 4));
  const auto job = d.Job(1);
  const auto weights = d.Extent(job, 14, true, 5, wire::ExtentKind::kQuantizedWeight);
  d.Run(job, {{weights, 0, 14}}, Access::kOverwrite);
  ASSERT_TRUE(d.pager.Lease(weights).ok());
  d.Remove(weights);
  d.Settle();
  EXPECT_EQ(d.FramesOf(1), 14U);
  ASSERT_EQ(d.revoked.size(), 1U);
  d.pager.LeaseReleased(weights);
  d.Settle();
  EXPECT_EQ(d.FramesOf(1), 0U);
  EXPECT_EQ(d.pager.used_host_frames(), 0U);
}

// ---- segments

TEST(Pager, EmptiesASegmentOfAnotherDomain) {
  Driver d(Config(16, 4, 4));
  const auto job = d.Job(1);
  const auto weights = d.Extent(job, 16, true, 5, wire::ExtentKind::kQuantizedWeight);
  const auto arena = d.Extent(job, 16);
  d.Run(job, {{weights, 0, 16}}, Access::kOverwrite);
  EXPECT_EQ(d.segments(), 4U);
  d.Run(job, {{arena, 0, 16}});  // the driver checks that no segment serves two domains
  d.Run(job, {{weights, 0, 16}}, Access::kRead);
  EXPECT_EQ(d.segments(), 4U);
}

TEST(Pager, GoesOnWithTheSegmentsThatExist) {
  for (const std::uint32_t segment : {1U, 4U}) {
    for (std::uint64_t seed = 1; seed <= 5; ++seed) {
      Driver d(Config(64, 4, segment), seed);
      const auto job = d.Job(1);
      const auto a = d.Extent(job, 60);
      d.Run(job, {{a, 0, 8}});
      d.refusals = 3;
      for (int i = 0; i < 3; ++i) d.Run(job, {{a, 0, 60}});
      EXPECT_LE(d.segments() * segment, 64U - segment);
      EXPECT_EQ(d.visits.size(), 188U);
    }
  }
}

TEST(Pager, PoisonsEveryFrameItGivesUp) {
  PagerConfig config = Config(8);
  config.poison = true;
  Driver d(config);  // which checks that a frame holds poison before it is reused
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 40);
  for (int i = 0; i < 2; ++i) d.Run(job, {{a, 0, 40}});
  EXPECT_GE(d.poisoned.size(), 6U);
}

// ---- endings

TEST(Pager, ARemovedExtentLivesUntilItsRunsAreDone) {
  Driver d(Config(20, 4));
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
  Driver d(Config(20, 4));
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
  Driver d(Config(10, 2));
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
  Driver d(Config(10, 2));
  const auto a = d.Extent(d.Job(1), 4);
  EXPECT_DEATH(d.pager.LoadDone({a, 0}), "not loading");
  EXPECT_DEATH(d.pager.RunDone({77}, 0), "unknown request");
}

}  // namespace
}  // namespace bitpager::paging
