// Jobs against each other: shares, quotas, a moving budget, commands.
#include "tests/paging/driver.h"

namespace bitpager::paging {
namespace {

// ---- jobs against each other

TEST(Pager, NeverDeadlocksOnATinyBudget) {
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    Driver d(SmallPages(16, 2), seed);
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
    Driver d(SmallPages(48, 4, 4), seed);
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
  Driver d(SmallPages(120, 4));
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
  Driver d(SmallPages(120, 4));
  const auto a = d.Job(1, {"light", 1.0});
  const auto b = d.Job(2, {"heavy", 3.0});
  d.Extent(a, 500);
  d.Extent(b, 500);
  EXPECT_EQ(d.pager.Usage(a)->share_frames, 30U);
  EXPECT_EQ(d.pager.Usage(b)->share_frames, 90U);
}

TEST(Pager, AJobThatNeedsLessGivesTheRestAway) {
  Driver d(SmallPages(120, 4));
  const auto a = d.Job(1);
  const auto b = d.Job(2);
  d.Extent(a, 20);
  d.Extent(b, 500);
  EXPECT_EQ(d.pager.Usage(a)->share_frames, 20U);
  EXPECT_EQ(d.pager.Usage(b)->share_frames, 100U);
}

TEST(Pager, ALateJobTakesItsShareFromOneThatHasMore) {
  Driver d(SmallPages(80, 4));
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
    Driver d(SmallPages(80, 4), seed);
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
  Driver d(SmallPages(80, 4));
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
    Driver d(SmallPages(80, 4, segment));
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
  Driver d(SmallPages(80, 4));
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

}  // namespace
}  // namespace bitpager::paging
