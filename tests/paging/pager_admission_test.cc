// Admission: jobs, extents, quotas, budgets.
#include "tests/paging/driver.h"

namespace bitpager::paging {
namespace {

using wire::Code;

// ---- admission

TEST(Pager, RefusesAJobThatLeavesNoWindowForEveryJob) {
  Driver d(SmallPages(11));
  d.Job(1);
  d.Job(2);
  const wire::Status status = d.pager.AddJob({3}, {"third"});
  EXPECT_EQ(status.code(), Code::kBudgetExceeded);
  EXPECT_NE(status.message().find("4096 bytes (1 pages)"), std::string::npos) << status.message();
}

TEST(Pager, CountsAJobOfFewPagesByItsPages) {
  Driver d(SmallPages(11));
  d.Extent(d.Job(1), 2);
  d.Job(2);
  EXPECT_TRUE(d.pager.AddJob({3}, {"third"}).ok());
}

TEST(Pager, RefusesAQuotaUnderOneWindow) {
  Driver d(SmallPages(11));
  JobSpec spec{"small", 1.0, 3, 0};
  EXPECT_EQ(d.pager.AddJob({1}, spec).code(), Code::kInvalidArgument);
  spec.device_quota_frames = 4;
  EXPECT_TRUE(d.pager.AddJob({1}, spec).ok());
  spec.device_quota_frames = 2;
  EXPECT_EQ(d.pager.SetJob({1}, spec).code(), Code::kInvalidArgument);
}

TEST(Pager, RefusesWeightsThatAreNotPositive) {
  Driver d(SmallPages(11));
  EXPECT_EQ(d.pager.AddJob({1}, {"a", 0.0}).code(), Code::kInvalidArgument);
  EXPECT_EQ(d.pager.AddJob({1}, {"a", -1.0}).code(), Code::kInvalidArgument);
}

TEST(Pager, RefusesAJobTwice) {
  Driver d(SmallPages(20));
  d.Job(1);
  EXPECT_EQ(d.pager.AddJob({1}, {"again"}).code(), Code::kAlreadyExists);
}

TEST(Pager, CommitsHostFramesAtAdmission) {
  PagerConfig config = SmallPages(8);
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
  Driver d(SmallPages(8));
  const auto job = d.Job(1, {"a", 1.0, 0, 5});
  d.Extent(job, 5);
  EXPECT_EQ(d.pager.AddExtent({job, wire::ExtentKind::kOptimizerState, 1, true, 0}).status().code(),
            Code::kQuotaExceeded);
}

TEST(Pager, LaysAnExtentsHostFramesSideBySide) {
  Driver d(SmallPages(8));
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
  Driver d(SmallPages(12));
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
  Driver d(SmallPages(40));
  const auto job = d.Job(1, {"a", 1.0, 10, 0});
  EXPECT_EQ(d.pager.AddExtent({job, wire::ExtentKind::kOptimizerState, 10, false, 0}).status().code(),
            Code::kQuotaExceeded);
  EXPECT_TRUE(d.pager.AddExtent({job, wire::ExtentKind::kOptimizerState, 6, false, 0}).ok());
}

TEST(Pager, RefusesABudgetThatBreaksItsPromises) {
  Driver d(SmallPages(20));
  d.Extent(d.Job(1), 10);
  d.Extent(d.Job(2), 10);
  EXPECT_EQ(d.pager.SetDeviceFrames(7).code(), Code::kBudgetExceeded);
  EXPECT_TRUE(d.pager.SetDeviceFrames(8).ok());
}

// ---- replacing

TEST(Pager, AReplacementIsJudgedAsIfTheOldWereGone) {
  PagerConfig config = SmallPages(16);
  config.host_frames = 40;
  Driver d(config);
  const auto job = d.Job(1);
  const auto old = d.Extent(job, 30);
  d.Run(job, {{old, 0, 30}});
  const ExtentSpec fits{job, wire::ExtentKind::kOptimizerState, 40, true, 0};
  const ExtentSpec large{job, wire::ExtentKind::kOptimizerState, 41, true, 0};
  const ExtentSpec stays{job, wire::ExtentKind::kOptimizerState, 17, false, 0};
  EXPECT_EQ(d.pager.CheckReplace(old, large).code(), Code::kBudgetExceeded);
  EXPECT_EQ(d.pager.CheckReplace(old, stays).code(), Code::kBudgetExceeded);
  EXPECT_TRUE(d.pager.CheckReplace(old, fits).ok());
  d.pager.CheckInvariants();
  EXPECT_EQ(d.pager.used_host_frames(), 30U) << "nothing was changed";
  d.Run(job, {{old, 0, 30}});
  d.Remove(old);
  EXPECT_TRUE(d.pager.AddExtent(fits).ok()) << "and it is kept";
}

TEST(Pager, AReplacementOfWhatIsMovingWaitsForNothingAndPromisesNothing) {
  PagerConfig config = SmallPages(16);
  config.host_frames = 40;
  Driver d(config);
  const auto job = d.Job(1);
  const auto old = d.Extent(job, 30);
  d.Run(job, {{old, 0, 30}});
  d.pager.Evict(job, 0, Reason::kCommand);
  d.Pump();
  ASSERT_GT(d.outstanding_stores(), 0U);
  const ExtentSpec fits{job, wire::ExtentKind::kOptimizerState, 11, true, 0};
  EXPECT_EQ(d.pager.CheckReplace(old, fits).code(), Code::kBudgetExceeded)
      << "its host frames are in use until the stores are done";
  d.Settle();
  EXPECT_TRUE(d.pager.CheckReplace(old, fits).ok());
}

// ---- a quota while pages that stay come and go (the driver checks it at every decision)

TEST(Pager, PagesThatStayWaitUntilOthersHaveLeftUnderTheQuota) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Driver d(SmallPages(40, 2), seed);
    const auto job = d.Job(1, {"job", 1.0, 8});
    const auto states = d.Extent(job, 20);
    d.Run(job, {{states, 0, 20}});
    EXPECT_EQ(d.FramesOf(1), 8U);
    const auto staying = d.Extent(job, 5, false);
    d.Run(job, {{staying, 0, 5}});
    EXPECT_EQ(d.pager.Usage(job)->share_frames, 8U) << "3 beside those that stay";
    d.Run(job, {{states, 0, 20}});
    EXPECT_EQ(d.FramesOf(1), 8U);
    d.Remove(staying);
    d.Run(job, {{states, 0, 20}});
    EXPECT_EQ(d.FramesOf(1), 8U) << "what stayed is gone, so its frames are the others'";
  }
}

TEST(Pager, FramesOfARemovedExtentCountUnderTheQuotaUntilTheyAreFree) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Driver d(SmallPages(40, 4), seed);
    const auto job = d.Job(1, {"job", 1.0, 8});
    const auto states = d.Extent(job, 8);
    const auto staying = d.Extent(job, 4, false);
    (void)d.Ask(job, {{staying, 0, 4}});
    d.Pump();
    ASSERT_GT(d.outstanding_loads(), 0U);
    d.Remove(staying);  // while its pages are on their way
    d.Run(job, {{states, 0, 8}});
    EXPECT_EQ(d.FramesOf(1), 8U);
  }
}

// A job of a quota of 8 frames, 6 of them in a lease, that has asked for 5 pages that stay.
class StayingBesideALease : public ::testing::Test {
 protected:
  StayingBesideALease() {
    d.Run(job, {{weight, 0, 6}}, Access::kOverwrite);
    EXPECT_TRUE(d.pager.Lease(weight).ok());
    const auto staying = d.Extent(job, 5, false);
    id = d.Ask(job, {{staying, 0, 5}});
    d.Settle();
  }

  Driver d{SmallPages(40, 2)};
  const wire::JobId job = d.Job(1, {"job", 1.0, 8});
  const wire::ExtentId weight = d.Extent(job, 6, true, 7, wire::ExtentKind::kQuantizedWeight);
  wire::RequestId id;
};

// Leased pages cannot leave before their holders let go; what stays waits for them.
TEST_F(StayingBesideALease, WaitsForItUnderTheQuota) {
  EXPECT_LE(d.FramesOf(1), 8U);
  ASSERT_EQ(d.revoked, std::vector<wire::ExtentId>{weight});
  d.pager.LeaseReleased(weight);
  d.Settle();
  EXPECT_TRUE(d.finished.count(id.value));
  EXPECT_LE(d.FramesOf(1), 8U);
}

// ... unless the holders never do: what was admitted is not left to wait, and no more is.
TEST_F(StayingBesideALease, DoesNotWaitForAnOverdueOne) {
  EXPECT_FALSE(d.finished.count(id.value));
  EXPECT_LE(d.FramesOf(1), 8U);
  d.Adopt(1, 0);  // no quota holds any more
  d.pager.LeaseOverdue(weight);
  d.Settle();
  EXPECT_TRUE(d.finished.count(id.value));
  const auto more = d.pager.AddExtent({job, wire::ExtentKind::kOptimizerState, 1, false});
  EXPECT_EQ(more.status().code(), Code::kQuotaExceeded);
  d.pager.LeaseReleased(weight);
  d.Settle();
  EXPECT_LE(d.FramesOf(1), 8U);
  EXPECT_TRUE(d.pager.AddExtent({job, wire::ExtentKind::kOptimizerState, 1, false}).ok());
}

}  // namespace
}  // namespace bitpager::paging
