// The pager's parts that stand alone: shares, host frames, the guess of the next use.
#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "paging/history.h"
#include "paging/host_frames.h"
#include "paging/shares.h"

namespace bitpager::paging {
namespace {

TEST(Shares, AreProportionalToWeights) {
  EXPECT_EQ(FairShares(100, {{1, 0, 1000}, {3, 0, 1000}}), (std::vector<std::uint64_t>{25, 75}));
}

TEST(Shares, KeepEveryLeast) {
  EXPECT_EQ(FairShares(100, {{1, 8, 1000}, {99, 8, 1000}}), (std::vector<std::uint64_t>{8, 92}));
}

TEST(Shares, GiveAwayWhatOneCannotUse) {
  EXPECT_EQ(FairShares(100, {{1, 0, 10}, {1, 0, 1000}, {1, 0, 1000}}),
            (std::vector<std::uint64_t>{10, 45, 45}));
  EXPECT_EQ(FairShares(100, {{1, 0, 10}, {1, 0, 20}}), (std::vector<std::uint64_t>{10, 20}));
}

TEST(Shares, ShrinkWhenTheLeastExceedTheBudget) {
  EXPECT_EQ(FairShares(6, {{1, 4, 10}, {1, 4, 10}}), (std::vector<std::uint64_t>{3, 3}));
}

TEST(Shares, UseTheWholeBudgetAndNoMore) {
  std::mt19937 rng(7);
  for (int i = 0; i < 500; ++i) {
    std::vector<Claimant> claimants(1 + rng() % 9);
    std::uint64_t wanted = 0, least = 0;
    for (Claimant& c : claimants) {
      c = {0.1 + static_cast<double>(rng() % 50), rng() % 9, 0};
      c.most = c.least + rng() % 200;
      wanted += c.most;
      least += c.least;
    }
    const std::uint64_t budget = least + rng() % 400;
    const auto shares = FairShares(budget, claimants);
    EXPECT_EQ(std::accumulate(shares.begin(), shares.end(), std::uint64_t{0}), std::min(budget, wanted));
    for (std::size_t k = 0; k < shares.size(); ++k) {
      EXPECT_GE(shares[k], claimants[k].least);
      EXPECT_LE(shares[k], claimants[k].most);
    }
  }
}

TEST(Shares, OfNobodyAreNone) {
  EXPECT_TRUE(FairShares(10, {}).empty());
}

TEST(HostFrames, PrefersTheSmallestRunThatFits) {
  HostFrames host(100);
  const auto a = host.Take(10);  // 0..9
  const auto b = host.Take(20);  // 10..29
  const auto c = host.Take(5);   // 30..34
  host.Give(a);
  const auto d = host.Take(8);
  ASSERT_EQ(d.size(), 1U);
  EXPECT_EQ(d[0].first, 0U);
  host.Give(b);
  host.Give(c);
  host.Give(d);
  EXPECT_EQ(host.free(), 100U);
  EXPECT_EQ(host.Take(100).size(), 1U) << "free runs join again";
}

TEST(HostFrames, TakesPiecesWhenNoRunIsLongEnough) {
  HostFrames host(30);
  const auto a = host.Take(10);
  (void)host.Take(10);
  host.Give(a);
  const auto c = host.Take(15);
  ASSERT_EQ(c.size(), 2U);
  EXPECT_EQ(c[0].count + c[1].count, 15U);
  EXPECT_LT(c[0].first, c[1].first);
  EXPECT_EQ(host.free(), 5U);
}

GapHistory Recorded(std::initializer_list<std::uint64_t> gaps) {
  GapHistory history;
  for (const std::uint64_t gap : gaps) history.Record(gap);
  return history;
}

TEST(GapHistory, GuessesAConstantGap) {
  EXPECT_EQ(Recorded({100}).Predict(), 100U);
  EXPECT_EQ(Recorded({100, 100}).Predict(), 100U);
  EXPECT_EQ(Recorded({100, 100, 100, 100, 100, 100, 100, 100, 100}).Predict(), 100U);
}

TEST(GapHistory, GuessesAlternatingGaps) {
  EXPECT_EQ(Recorded({180, 20}).Predict(), 180U);
  EXPECT_EQ(Recorded({180, 20, 180}).Predict(), 20U);
  EXPECT_EQ(Recorded({180, 20, 180, 20, 180, 20, 180, 20, 180}).Predict(), 20U);
}

TEST(GapHistory, GuessesPeriodsOfThreeAndFour) {
  EXPECT_EQ(Recorded({90, 5, 25, 90, 5, 25}).Predict(), 90U);
  EXPECT_EQ(Recorded({90, 5, 25, 90, 5}).Predict(), 25U);
  EXPECT_EQ(Recorded({1, 2, 3, 40, 1, 2, 3, 40}).Predict(), 1U);
}

TEST(GapHistory, TurnsToTheLatestGapAfterAChange) {
  EXPECT_EQ(Recorded({100, 100, 100, 30, 30, 30, 30}).Predict(), 30U);
}

TEST(GapHistory, HoldsGapsBeyond32BitsAtTheirLimit) {
  EXPECT_EQ(Recorded({~0ULL}).Predict(), 0xffffffffULL);
}

}  // namespace
}  // namespace bitpager::paging
