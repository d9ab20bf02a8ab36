// What keeps pages on the device or brings them there: hints, leases, segments.
#include "tests/paging/driver.h"

namespace bitpager::paging {
namespace {

using wire::Code;

// ---- prefetch

TEST(Pager, PrefetchFillsFreeFrames) {
  Driver d(SmallPages(80, 4));
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

TEST(Pager, OneExtentsPagesLeaveAndAnothersStay) {
  Driver d(SmallPages(80, 4));
  const auto job = d.Job(1);
  const auto states = d.Extent(job, 30);
  const auto weight = d.Extent(job, 20, true, 0, wire::ExtentKind::kQuantizedWeight);
  d.Run(job, {{states, 0, 30}, {weight, 0, 20}});
  EXPECT_EQ(d.FramesOf(1), 50U);
  d.pager.EvictExtent(states, Reason::kCommand);
  d.Settle();
  EXPECT_EQ(d.FramesOf(1), 20U);
  // In the middle of a run: what it holds stays.
  d.Ask(job, {{states, 0, 30}});
  d.Pump();
  d.pager.EvictExtent(states, Reason::kCommand);
  d.Settle();
  d.pager.CheckInvariants();
  d.pager.EvictExtent(wire::ExtentId{99}, Reason::kCommand);
}

TEST(Pager, PrefetchStaysWithinTheShare) {
  Driver d(SmallPages(80, 4));
  const auto job = d.Job(1);
  d.Extent(d.Job(2), 100);
  const auto a = d.Extent(job, 100);
  d.Ask(job, {{a, 0, 100}}, Access::kRead, true);
  d.Settle();
  EXPECT_EQ(d.FramesOf(1), 40U);
}

TEST(Pager, PrefetchEvictsOnlyWhatIsUsedLater) {
  Driver d(SmallPages(40, 4));
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
  Driver d(SmallPages(80, 4));
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

TEST(Pager, HintsThatWaitAreDroppedForLaterOnes) {
  Driver d(SmallPages(40, 4));
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 60);
  const auto b = d.Extent(job, 20);
  const auto step = d.Ask(job, {{a, 0, 60}});
  d.Pump();  // under way
  std::vector<wire::RequestId> hints;
  for (int i = 0; i < 1'000; ++i) hints.push_back(d.Ask(job, {{b, 0, 20}}, Access::kRead, true));
  d.Pump();
  EXPECT_FALSE(d.finished.count(step.value));
  for (std::size_t i = 0; i + 1 < hints.size(); ++i) EXPECT_TRUE(d.finished.count(hints[i].value)) << i;
  EXPECT_FALSE(d.finished.count(hints.back().value)) << "the newest waits for its turn";
  const auto next = d.Ask(job, {{a, 0, 4}});
  d.Pump();
  EXPECT_TRUE(d.finished.count(hints.back().value)) << "a request would end it";
  d.Settle();
  EXPECT_TRUE(d.finished.count(next.value));
}

// ---- leases

TEST(Pager, LeasesOnlyResidentExtentsWithinTheReserve) {
  Driver d(SmallPages(20, 4));
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
  Driver d(SmallPages(20, 4));
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
  Driver d(SmallPages(24, 4));
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
  Driver d(SmallPages(24, 4));
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
  Driver d(SmallPages(16, 4, 4));
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
      Driver d(SmallPages(64, 4, segment), seed);
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
  PagerConfig config = SmallPages(8);
  config.poison = true;
  Driver d(config);  // which checks that a frame holds poison before it is reused
  const auto job = d.Job(1);
  const auto a = d.Extent(job, 40);
  for (int i = 0; i < 2; ++i) d.Run(job, {{a, 0, 40}});
  EXPECT_GE(d.poisoned.size(), 6U);
}

// ---- leases that do not come back

// Job 1 has `leased` frames of the budget under a lease that was revoked and is not given back.
struct Overdue {
  Overdue(std::uint64_t frames, std::uint64_t leased, std::uint32_t segment = 1)
      : d(SmallPages(frames, 4, segment)), job(d.Job(1)) {
    weights = d.Extent(job, leased, true, 5, wire::ExtentKind::kQuantizedWeight);
    d.Run(job, {{weights, 0, leased}}, Access::kOverwrite);
    EXPECT_TRUE(d.pager.Lease(weights).ok());
    d.pager.LeaseOverdue(weights);
    d.Settle();
  }
  Driver d;
  wire::JobId job;
  wire::ExtentId weights;
};

TEST(Pager, AnOverdueLeaseCountsAsUsed) {
  Overdue o(24, 14);
  EXPECT_EQ(o.d.pager.Usage(o.job)->leased_frames, 14U);
  const auto arena = o.d.Extent(o.job, 40);
  EXPECT_EQ(o.d.pager.Usage(o.job)->share_frames, 24U);
  const auto other = o.d.Job(2);
  const auto extent = o.d.Extent(other, 60);
  EXPECT_EQ(o.d.pager.Usage(other)->share_frames, 5U) << "half of what is left";
  EXPECT_EQ(o.d.pager.Usage(o.job)->share_frames, 14U + 5U);
  o.d.Run(other, {{extent, 0, 60}});
  o.d.Run(o.job, {{arena, 0, 40}});
  EXPECT_EQ(o.d.visits.size(), 14U + 60U + 40U) << "nobody waited for it";
  o.d.pager.LeaseReleased(o.weights);
  o.d.Settle();
  EXPECT_EQ(o.d.pager.Usage(other)->share_frames, 12U);
  o.d.Run(other, {{extent, 0, 60}});
}

TEST(Pager, RefusesWhatDoesNotFitBesideAnOverdueLease) {
  Overdue o(24, 14);
  (void)o.d.Job(2);
  (void)o.d.Job(3);
  const wire::Status refused = o.d.pager.AddJob(JobOf(4), {"job4", 1.0, 0, 0});
  EXPECT_EQ(refused.code(), Code::kBudgetExceeded);
  EXPECT_NE(
      refused.message().find("57344 bytes (14 pages) are in leases that are not given back (job 'job1')"),
      std::string::npos)
      << refused.message();
  o.d.pager.LeaseReleased(o.weights);
  EXPECT_TRUE(o.d.pager.AddJob(JobOf(4), {"job4", 1.0, 0, 0}).ok());
}

TEST(Pager, SaysWhatCannotBeServedBesideAnOverdueLease) {
  Driver d(SmallPages(24, 4));
  const auto job = d.Job(1);
  const auto weights = d.Extent(job, 20, true, 5, wire::ExtentKind::kQuantizedWeight);
  d.Run(job, {{weights, 0, 20}}, Access::kOverwrite);
  ASSERT_TRUE(d.pager.Lease(weights).ok());
  const auto other = d.Job(2);
  const auto arena = d.Extent(other, 60);
  const auto waits = d.Ask(other, {{arena, 0, 60}});
  EXPECT_TRUE(d.pager.Servable(waits));
  d.pager.LeaseOverdue(weights);
  EXPECT_TRUE(d.pager.Servable(waits)) << "one window is left";
  d.SetBudget(22);  // not kept: every job's least would not fit
  EXPECT_TRUE(d.pager.Servable(waits));
  d.Settle();
  EXPECT_EQ(d.visits.size(), 20U + 60U);
}

TEST(Pager, AnOverdueLeaseTakesItsWholeSegmentAway) {
  Overdue o(32, 9, 8);  // two of four segments
  const auto other = o.d.Job(2);
  const auto arena = o.d.Extent(other, 60);
  EXPECT_EQ(o.d.pager.Usage(other)->share_frames, 16U);
  o.d.Run(other, {{arena, 0, 60}});
  EXPECT_EQ(o.d.visits.size(), 9U + 60U);
}

TEST(Pager, AReadOfAnOverdueExtentNeedsNoFrames) {
  Overdue o(24, 20);
  const auto read = o.d.Ask(o.job, {{o.weights, 0, 20}}, Access::kRead);
  EXPECT_TRUE(o.d.pager.Servable(read));
  o.d.Settle();
  EXPECT_TRUE(o.d.finished.count(read.value));
}

TEST(Pager, AnotherLeaseIsRevokedInPlaceOfAnOverdueOne) {
  Driver d(SmallPages(32, 4));
  const auto job = d.Job(1);
  const auto late = d.Extent(job, 8, true, 5, wire::ExtentKind::kQuantizedWeight);
  const auto good = d.Extent(job, 16, true, 5, wire::ExtentKind::kQuantizedWeight);
  d.Run(job, {{late, 0, 8}, {good, 0, 16}}, Access::kOverwrite);
  ASSERT_TRUE(d.pager.Lease(late).ok());
  ASSERT_TRUE(d.pager.Lease(good).ok());
  d.pager.LeaseOverdue(late);
  const auto other = d.Job(2);
  const auto arena = d.Extent(other, 60);
  d.Ask(other, {{arena, 0, 60}});
  d.Settle();
  ASSERT_EQ(d.revoked.size(), 2U);
  EXPECT_EQ(d.revoked[1], good);
  d.pager.LeaseReleased(good);
  d.Settle();
  EXPECT_EQ(d.visits.size(), 24U + 60U);
}

// ---- segments that nobody needs

TEST(Pager, GivesBackSegmentsThatNoPageNeeds) {
  Driver d(SmallPages(64, 4, 8));
  const auto job = d.Job(1);
  const auto small = d.Extent(job, 12);
  const auto large = d.Extent(job, 40);
  d.Run(job, {{small, 0, 12}, {large, 0, 40}});
  EXPECT_EQ(d.segments(), 7U);
  d.Remove(large);
  d.Settle();
  EXPECT_EQ(d.segments(), 7U);
  d.pager.GiveBackUnused();
  d.Settle();
  EXPECT_LE(d.segments(), 7U) << "pages of `small` may lie anywhere";
  EXPECT_GE(d.segments(), 2U);
  d.pager.Evict(job, 0, Reason::kCommand);
  d.Settle();
  d.pager.GiveBackUnused();
  d.Settle();
  EXPECT_EQ(d.segments(), 2U) << "what it has could fill two";
  d.Run(job, {{small, 0, 12}});
  d.pager.RemoveJob(job);
  d.Settle();
  d.pager.GiveBackUnused();
  d.Settle();
  EXPECT_EQ(d.segments(), 0U);
}

}  // namespace
}  // namespace bitpager::paging
