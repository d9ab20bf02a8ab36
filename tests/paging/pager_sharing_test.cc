// Extents that several jobs use: counted once, answered for in equal parts, never at a stranger's cost.
#include "tests/paging/driver.h"

namespace bitpager::paging {
namespace {

constexpr auto kWeight = wire::ExtentKind::kQuantizedWeight;

class SharedExtents : public testing::Test {
 protected:
  // Writes every page of a weight of job 1, so that it can be read.
  wire::ExtentId Filled(std::uint64_t pages, std::uint64_t job = 1) {
    const wire::ExtentId id = d.Extent({job}, pages, true, 7, kWeight);
    d.Run({job}, {{id, 0, pages}}, Access::kOverwrite);
    return id;
  }
  std::uint64_t Resident(std::uint64_t job) { return d.pager.Usage({job})->resident_frames; }
  Driver d{SmallPages(64)};
};

TEST_F(SharedExtents, AreCountedOnce) {
  d.Job(1), d.Job(2), d.Job(3);
  const wire::ExtentId base = Filled(11);
  ASSERT_TRUE(d.Share(base, {2}));
  d.Settle();
  EXPECT_EQ(Resident(1), 6U);
  EXPECT_EQ(Resident(2), 5U);
  ASSERT_TRUE(d.Share(base, {3}));
  ASSERT_TRUE(d.Share(base, {3}));
  d.CheckSums(3);
  EXPECT_EQ(Resident(1) + Resident(2), 6U);
  EXPECT_EQ(Resident(3), 5U) << "two of four uses";
  for (std::uint64_t job = 1; job <= 3; ++job) EXPECT_EQ(d.pager.Usage({job})->shared_pages, 11U);
  EXPECT_EQ(d.pager.used_host_frames(), 11U);
  EXPECT_FALSE(d.pager.Usage({(std::uint64_t{1} << 63) | 7})) << "a base is nobody's by name";
}

TEST_F(SharedExtents, AreReadByAllAndWrittenByNone) {
  d.Job(1), d.Job(2);
  const wire::ExtentId base = Filled(20);
  ASSERT_TRUE(d.Share(base, {2}));
  d.Run({1}, {{base, 0, 20}}, Access::kRead);
  d.Run({2}, {{base, 3, 9}}, Access::kRead);
  EXPECT_EQ(d.pager.Submit({{2}, Access::kUpdate, {{base, 0, 1}}, false}).status().code(),
            wire::Code::kInvalidArgument);
  EXPECT_EQ(d.pager.Submit({{1}, Access::kOverwrite, {{base, 0, 20}}, false}).status().code(),
            wire::Code::kInvalidArgument);
}

TEST_F(SharedExtents, GoWithTheirLastUse) {
  d.Job(1), d.Job(2);
  const wire::ExtentId base = Filled(10);
  ASSERT_TRUE(d.Share(base, {2}));
  d.Settle();
  d.pager.RemoveUse(base, {1});
  d.Settle();
  EXPECT_EQ(Resident(1), 0U);
  EXPECT_EQ(Resident(2), 10U);
  EXPECT_EQ(d.pager.Usage({2})->shared_pages, 0U);
  d.Run({2}, {{base, 0, 10}}, Access::kUpdate);  // its own again: it may write
  d.pager.Evict({2}, 0, Reason::kCommand);
  d.Settle();
  EXPECT_EQ(Resident(2), 0U) << "what it alone uses leaves on command";
  d.pager.RemoveUse(base, {2});
  d.Settle();
  EXPECT_EQ(d.pager.used_host_frames(), 0U);
}

TEST_F(SharedExtents, OutliveTheJobThatLoadedThem) {
  d.Job(1), d.Job(2);
  const wire::ExtentId base = Filled(10);
  ASSERT_TRUE(d.Share(base, {2}));
  const wire::RequestId cut_off = d.Ask({1}, {{base, 0, 10}}, Access::kRead);
  d.Pump();  // its windows run
  const wire::RequestId waits = d.Ask({2}, {{base, 0, 10}}, Access::kRead);
  d.pager.RemoveJob({1});
  d.pager.CheckInvariants();
  d.Settle();
  EXPECT_TRUE(d.finished.count(cut_off.value) && d.finished.count(waits.value));
  EXPECT_FALSE(d.pager.Usage({1}));
  EXPECT_EQ(Resident(2), 10U);
  d.Run({2}, {{base, 0, 10}}, Access::kRead);
}

TEST_F(SharedExtents, WaitForRequestsThatWorkOnThem) {
  d.Job(1), d.Job(2);
  const wire::ExtentId base = Filled(10);
  d.Ask({1}, {{base, 0, 10}}, Access::kRead);
  EXPECT_EQ(d.pager.AddUse(base, {2}).code(), wire::Code::kPending);
  d.Settle();
  d.Ask({1}, {{base, 0, 10}}, Access::kRead, true);  // a hint keeps nobody waiting
  EXPECT_TRUE(d.Share(base, {2}));
  d.Settle();
}

TEST_F(SharedExtents, KeepTheirLease) {
  d.Job(1), d.Job(2);
  const wire::ExtentId base = Filled(20);
  ASSERT_TRUE(d.pager.Lease(base).ok());
  ASSERT_TRUE(d.Share(base, {2}));
  d.pager.CheckInvariants();
  EXPECT_EQ(d.pager.Usage({1})->leased_frames + d.pager.Usage({2})->leased_frames, 20U);
  d.check_budget = false;  // until the lease is back
  d.SetBudget(14);
  d.Settle();
  ASSERT_EQ(d.revoked.size(), 1U) << "shrinking the budget asks for it";
  d.pager.LeaseReleased(base);
  d.Settle();
}

TEST_F(SharedExtents, TakeNoWeightFromStrangers) {
  for (std::uint64_t job = 1; job <= 3; ++job) d.Job(job);
  const wire::ExtentId base = Filled(60);
  ASSERT_TRUE(d.Share(base, {2}));
  for (std::uint64_t job = 1; job <= 3; ++job) d.Extent({job}, 60);
  d.Settle();
  const std::uint64_t stranger = d.pager.Usage({3})->share_frames;
  EXPECT_NEAR(static_cast<double>(stranger), 64.0 / 3, 2) << "a third, as if nothing were shared";
  const std::uint64_t sharer = d.pager.Usage({1})->share_frames;
  EXPECT_NEAR(static_cast<double>(sharer), 64.0 / 3, 3);
}

TEST_F(SharedExtents, StayWithinTheQuotasOfTheirUsersTogether) {
  JobSpec limited;
  limited.device_quota_frames = 12;
  d.Job(1, limited), d.Job(2, limited);
  const wire::ExtentId base = Filled(40);
  ASSERT_TRUE(d.Share(base, {2}));
  const wire::ExtentId own[] = {d.Extent({1}, 20), d.Extent({2}, 20)};
  for (int round = 0; round < 4; ++round) {
    for (std::uint64_t job = 1; job <= 2; ++job) {
      d.Run({job}, {{own[job - 1], 0, 20}});
      d.Run({job}, {{base, 0, 40}}, Access::kRead);
      EXPECT_LE(Resident(1) + Resident(2), 24U);
    }
  }
  EXPECT_GE(Resident(1) + Resident(2), 18U);
  d.SetQuota(2, 0);
  d.Run({2}, {{base, 0, 40}}, Access::kRead);
  EXPECT_GT(Resident(1) + Resident(2), 40U) << "no quota of one job holds back another's";
}

TEST_F(SharedExtents, CountOncePartByPartAgainstHostQuotas) {
  JobSpec limited;
  limited.host_quota_frames = 30;
  d.Job(1, limited), d.Job(2);
  const wire::ExtentId base = Filled(20);
  EXPECT_FALSE(d.pager.AddExtent({{1}, kWeight, 20, true, 7}).ok());
  ASSERT_TRUE(d.Share(base, {2}));
  const auto more = d.pager.AddExtent({{1}, kWeight, 20, true, 7});
  ASSERT_TRUE(more.ok()) << "10 of the 20 are its part";
  d.pager.RemoveUse(base, {2});
  EXPECT_EQ(d.pager.Usage({1})->host_frames, 40U) << "over its quota, but nothing is taken away";
  EXPECT_FALSE(d.pager.AddExtent({{1}, kWeight, 1, true, 7}).ok());
}

TEST_F(SharedExtents, AreRefusedWhereTheBaseHasNoWindow) {
  Driver tight(SmallPages(12));
  tight.Job(1), tight.Job(2);
  const wire::ExtentId weight = tight.Extent({1}, 8, true, 7, kWeight);
  tight.Run({1}, {{weight, 0, 8}}, Access::kOverwrite);
  tight.Extent({1}, 8, true, 7, kWeight);  // job 1 keeps a window of its own
  tight.Extent({2}, 8, true, 7, kWeight);
  EXPECT_TRUE(tight.Share(weight, {2})) << "three windows of four";
  Driver full(SmallPages(11));
  full.Job(1), full.Job(2);
  const wire::ExtentId one = full.Extent({1}, 8, true, 7, kWeight);
  full.Run({1}, {{one, 0, 8}}, Access::kOverwrite);
  full.Extent({1}, 8, true, 7, kWeight);
  full.Extent({2}, 8, true, 7, kWeight);
  EXPECT_EQ(full.pager.AddUse(one, {2}).code(), wire::Code::kBudgetExceeded);
  full.pager.CheckInvariants();
  EXPECT_EQ(full.pager.Usage({1})->pages, 16U);
  full.Run({1}, {{one, 0, 8}}, Access::kUpdate);
}

TEST_F(SharedExtents, AreServedWhileTheyCannotGoHome) {
  Driver tight(SmallPages(16, 4, 4));  // segments are of one share domain
  tight.Job(1), tight.Job(2);
  tight.Extent({1}, 8), tight.Extent({2}, 8);
  const wire::ExtentId one = tight.Extent({1}, 4, true, 7, kWeight);
  const wire::ExtentId other = tight.Extent({1}, 4, true, 7, kWeight);
  for (const wire::ExtentId id : {one, other}) {
    tight.Run({1}, {{id, 0, 4}}, Access::kOverwrite);
    ASSERT_TRUE(tight.Share(id, {2}));
  }
  tight.Settle();
  tight.SetBudget(12);  // a window for each job's own pages and one for the base
  tight.pager.RemoveUse(one, {2});
  tight.Settle();
  for (const wire::ExtentId id : {one, other}) tight.pager.EvictExtent(id, Reason::kCommand);
  tight.Settle();
  ASSERT_FALSE(tight.pager.FrameOf({one, 0}));
  tight.Ask({1}, {{one, 0, 4}}, Access::kRead, true);
  tight.Settle();
  EXPECT_TRUE(tight.pager.FrameOf({one, 0})) << "the hint was taken";
  tight.SetBudget(16);
  tight.Settle();
  tight.Run({1}, {{one, 0, 4}}, Access::kUpdate);
}

TEST_F(SharedExtents, AreOfShareDomainsAndMayLeave) {
  d.Job(1), d.Job(2);
  EXPECT_EQ(d.pager.AddUse(d.Extent({1}, 4), {2}).code(), wire::Code::kInvalidArgument);
  EXPECT_EQ(d.pager.AddUse(d.Extent({1}, 2, false, 7), {2}).code(), wire::Code::kInvalidArgument);
  EXPECT_EQ(d.pager.AddUse({99}, {2}).code(), wire::Code::kNotFound);
  EXPECT_EQ(d.pager.AddUse(d.Extent({1}, 4, true, 7), {9}).code(), wire::Code::kNotFound);
  EXPECT_FALSE(d.pager.AddJob({std::uint64_t{1} << 63}, {}).ok());
}

}  // namespace
}  // namespace bitpager::paging
