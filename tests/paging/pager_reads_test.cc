// Weights that do not fit, read one after the other: the next one's pages come before it is asked for.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "tests/paging/driver.h"

namespace bitpager::paging {
namespace {

constexpr std::uint64_t kPages = 8;  // of a weight
constexpr std::uint64_t kWeights = 12;

PagerConfig Overlapping(std::uint64_t frames) {
  PagerConfig config = SmallPages(frames, 8);
  config.windows_in_flight = 6;
  config.least_under_way = 24;
  config.loads_over_resident = true;
  return config;
}

// A job whose weights were written. `learns`: reads are such as the pager learns from; else each is of two
// ranges, which are none.
class Reader {
 public:
  explicit Reader(Driver& driver, bool learns = true, DomainId domain = 0)
      : driver_(driver), learns_(learns), job_(driver.Job(1)) {
    for (std::uint64_t i = 0; i < kWeights; ++i) {
      weights_.push_back(driver.Extent(job_, kPages, true, domain, wire::ExtentKind::kQuantizedWeight));
      driver.Run(job_, {{weights_.back(), 0, kPages}}, Access::kOverwrite);
    }
  }

  void Read(std::uint64_t i) {
    const wire::ExtentId id = weights_[i];
    if (learns_) return driver_.Run(job_, {{id, 0, kPages}}, Access::kRead);
    driver_.Run(job_, {{id, 0, kPages / 2}, {id, kPages / 2, kPages / 2}}, Access::kRead);
  }
  // Forward, then backward with every weight twice, as checkpointing reads them.
  void Iterate() {
    for (std::uint64_t i = 0; i < kWeights; ++i) Read(i);
    for (std::uint64_t i = kWeights; i-- > 0;) {
      Read(i);
      Read(i);
    }
  }
  Traffic TrafficOf(int iterations) {
    const Traffic before = usage().traffic;
    for (int i = 0; i < iterations; ++i) Iterate();
    Traffic moved = usage().traffic;
    for (std::size_t r = 0; r < kReasons; ++r) moved.to_device[r] -= before.to_device[r];
    return moved;
  }
  [[nodiscard]] JobUsage usage() const { return *driver_.pager.Usage(job_); }
  [[nodiscard]] wire::JobId job() const { return job_; }
  [[nodiscard]] const std::vector<wire::ExtentId>& weights() const { return weights_; }

 private:
  Driver& driver_;
  bool learns_;
  wire::JobId job_;
  std::vector<wire::ExtentId> weights_;
};

constexpr auto kByDemand = static_cast<std::size_t>(Reason::kDemand);
constexpr auto kByPrefetch = static_cast<std::size_t>(Reason::kPrefetch);

class Share : public ::testing::TestWithParam<std::uint64_t> {};

TEST_P(Share, OfTheWeightsSufficesForReadsThatWaitForNoLoad) {
  Driver driver(Overlapping(GetParam()));
  Driver plain(Overlapping(GetParam()));
  Reader reader(driver);
  Reader other(plain, false);
  for (int i = 0; i < 6; ++i) {
    reader.Iterate();
    other.Iterate();
  }
  const Traffic learned = reader.TrafficOf(4);
  const Traffic unlearned = other.TrafficOf(4);
  EXPECT_EQ(unlearned.to_device[kByPrefetch], 0U);
  EXPECT_GT(unlearned.to_device[kByDemand], 0U);
  EXPECT_LE(learned.to_device[kByDemand], unlearned.to_device[kByDemand] / 4);
  EXPECT_LE(learned.to_device[kByDemand] + learned.to_device[kByPrefetch],
            unlearned.to_device[kByDemand] * 11 / 10)
      << "what comes early comes in place of what would have come anyway";
  driver.pager.CheckInvariants();
}

INSTANTIATE_TEST_SUITE_P(, Share, ::testing::Values(16, 24, 48, 72, 88));

// As in the daemon: weights lie in segments of a domain of their own, beside states that a step streams.
TEST(Reads, OfWeightsInADomainOfTheirOwnFindTheirPagesToo) {
  std::uint64_t demand[2];
  for (const bool learns : {false, true}) {
    PagerConfig config = Overlapping(64);
    config.segment_frames = 8;
    Driver driver(config);
    Reader reader(driver, learns, 1);
    const wire::ExtentId states = driver.Extent(reader.job(), 24);
    std::uint64_t before = 0;
    for (int i = 0; i < 10; ++i) {
      if (i == 6) before = reader.usage().traffic.to_device[kByDemand];
      reader.Iterate();
      driver.Run(reader.job(), {{states, 0, 24}});
    }
    demand[learns] = reader.usage().traffic.to_device[kByDemand] - before;
    driver.pager.CheckInvariants();
  }
  EXPECT_LE(demand[1], demand[0] / 4);
}

// Guesses must not cost: what is not read in an order, or in parts, brings nothing in vain.
TEST(Reads, InNoOrderOrInPartsMoveNoMoreThanWithoutExpectations) {
  const auto pages_in = [](bool learns, bool parts) {
    Driver driver(Overlapping(48));
    Reader reader(driver, learns);
    std::mt19937_64 random(7);
    for (int i = 0; i < 400; ++i) {
      const std::uint64_t at = parts ? i % kWeights : random() % kWeights;
      if (!parts) {
        reader.Read(at);
        continue;
      }
      const wire::ExtentId id = reader.weights()[at];
      for (std::uint64_t first = 0; first < kPages; first += 2) {
        if (learns) {
          driver.Run(reader.job(), {{id, first, 2}}, Access::kRead);
        } else {
          driver.Run(reader.job(), {{id, first, 1}, {id, first + 1, 1}}, Access::kRead);
        }
      }
    }
    return reader.usage().loaded_pages;
  };
  for (const bool parts : {false, true}) {
    EXPECT_LE(pages_in(true, parts), pages_in(false, parts) * 106 / 100) << parts;
  }
}

TEST(Reads, OfWeightsThatFitBringNothing) {
  Driver driver(Overlapping(kPages * kWeights));
  Reader reader(driver);
  const Traffic moved = reader.TrafficOf(3);
  EXPECT_EQ(moved.to_device[kByPrefetch] + moved.to_device[kByDemand], 0U);
}

TEST(Reads, AWeightThatIsGoneIsNotExpected) {
  Driver driver(Overlapping(24));
  Reader reader(driver);
  for (int i = 0; i < 3; ++i) reader.Iterate();
  driver.pager.RemoveExtent(reader.weights()[5]);
  driver.Settle();
  for (const std::uint64_t i : {3U, 4U, 6U}) reader.Read(i);
  driver.pager.CheckInvariants();
}

TEST(Reads, AWeightMayGoWhileItComes) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Driver driver(Overlapping(24), seed);
    Reader reader(driver);
    for (int i = 0; i < 3; ++i) reader.Iterate();
    reader.Read(3);
    const wire::RequestId id = driver.Ask(reader.job(), {{reader.weights()[4], 0, kPages}}, Access::kRead);
    const std::uint64_t before = reader.usage().traffic.to_device[kByPrefetch];
    while (driver.finished.count(id.value) == 0) {
      driver.Pump();
      if (driver.finished.count(id.value) != 0) break;
      ASSERT_TRUE(driver.CompleteOne());
    }
    driver.Pump();
    EXPECT_GT(reader.usage().traffic.to_device[kByPrefetch], before) << "it is not on its way";
    for (std::uint64_t i = 0; i < seed % 8; ++i) static_cast<void>(driver.CompleteOne());
    driver.pager.RemoveExtent(reader.weights()[5]);
    driver.pager.CheckInvariants();
    driver.Settle();
    reader.Read(6);
    driver.pager.CheckInvariants();
  }
}

// It is known, not guessed, what is read next: what would leave for it then leaves now.
TEST(Reads, WhatIsAskedForNextComesInPlaceOfWhateverThereIs) {
  for (const bool sure : {false, true}) {
    Driver driver(Overlapping(24));
    Reader reader(driver, false);
    // Written once and never read: nothing is known of when it is.
    const wire::ExtentId fresh =
        driver.Extent(reader.job(), kPages, true, 0, wire::ExtentKind::kQuantizedWeight);
    driver.Run(reader.job(), {{fresh, 0, kPages}}, Access::kOverwrite);
    for (int i = 0; i < 3; ++i) reader.Iterate();
    ASSERT_EQ(driver.pager.FramesOf(fresh), 0U) << "it has to be away";
    (void)driver.Ask(reader.job(), {{fresh, 0, kPages}}, Access::kRead, true, sure);
    driver.Settle();
    EXPECT_EQ(driver.pager.FramesOf(fresh), sure ? kPages : 0);
    const std::uint64_t before = reader.usage().traffic.to_device[kByDemand];
    driver.Run(reader.job(), {{fresh, 0, kPages}}, Access::kRead);
    EXPECT_EQ(reader.usage().traffic.to_device[kByDemand] - before, sure ? 0 : kPages);
    driver.pager.CheckInvariants();
  }
}

// Of a weight that is larger than all the frames, no page leaves for another of its own.
TEST(Reads, WhatIsAskedForNextDoesNotComeInPlaceOfItself) {
  Driver driver(Overlapping(24));
  const wire::JobId job = driver.Job(1);
  const wire::ExtentId weight = driver.Extent(job, 40, true, 0, wire::ExtentKind::kQuantizedWeight);
  driver.Run(job, {{weight, 0, 40}}, Access::kOverwrite);
  driver.Run(job, {{weight, 0, 40}}, Access::kRead);
  const std::uint64_t loaded = driver.pager.Usage(job)->loaded_pages;
  (void)driver.Ask(job, {{weight, 0, 40}}, Access::kRead, true, true);
  driver.Settle();
  EXPECT_LE(driver.pager.Usage(job)->loaded_pages, loaded + 24);
  driver.pager.CheckInvariants();
}

// One weight is read while the next one comes.
TEST(Reads, LeasesLeaveRoomForTwoWeightsByTurns) {
  Driver driver(Overlapping(80));
  const Reader reader(driver);
  std::uint64_t leased = 0;
  for (const wire::ExtentId id : reader.weights()) {
    driver.Run(reader.job(), {{id, 0, kPages}}, Access::kRead);
    const wire::Status lease = driver.pager.Lease(id);
    EXPECT_TRUE(lease.ok() || lease.code() == wire::Code::kFull) << lease.message();
    leased += lease.ok() ? kPages : 0;
  }
  EXPECT_EQ(leased, 80 - 2 * kPages);
  driver.pager.CheckInvariants();
}

TEST(Reads, AWeightThatIsLeasedItselfNeedsNoRoomByTurns) {
  Driver driver(Overlapping(120));
  const Reader reader(driver);
  const wire::ExtentId large = driver.Extent(reader.job(), 40, true, 0, wire::ExtentKind::kQuantizedWeight);
  driver.Run(reader.job(), {{large, 0, 40}}, Access::kOverwrite);
  driver.Run(reader.job(), {{large, 0, 40}}, Access::kRead);
  ASSERT_TRUE(driver.pager.Lease(large).ok());
  std::uint64_t leased = 40;
  for (const wire::ExtentId id : reader.weights()) {
    driver.Run(reader.job(), {{id, 0, kPages}}, Access::kRead);
    leased += driver.pager.Lease(id).ok() ? kPages : 0;
  }
  EXPECT_EQ(leased, 120 - 2 * kPages);
  driver.pager.CheckInvariants();
}

TEST(Reads, WhatIsAskedForNextWaitsForWhatIsUnderWay) {
  Driver driver(Overlapping(24));
  Reader reader(driver, false);
  reader.Iterate();
  const wire::RequestId read = driver.Ask(reader.job(), {{reader.weights()[3], 0, kPages}}, Access::kRead);
  driver.Pump();
  RequestSpec next{reader.job(), Access::kRead, {{reader.weights()[4], 0, kPages}}, true, true};
  EXPECT_EQ(driver.pager.Submit(next).status().code(), wire::Code::kFull);
  driver.Settle();
  EXPECT_EQ(driver.finished.count(read.value), 1U);
  EXPECT_TRUE(driver.Ask(reader.job(), next.ranges, Access::kRead, true, true));
  driver.Settle();
  EXPECT_EQ(driver.pager.FramesOf(reader.weights()[4]), kPages);
}

TEST(Reads, AnEvictionEndsWhatWasAskedForNext) {
  Driver driver(Overlapping(24));
  Reader reader(driver, false);
  for (int i = 0; i < 3; ++i) reader.Iterate();
  const wire::ExtentId away = reader.weights()[7];
  (void)driver.Ask(reader.job(), {{away, 0, kPages}}, Access::kRead, true, true);
  driver.pager.Evict(reader.job(), 0, Reason::kCommand);
  driver.Settle();
  EXPECT_EQ(reader.usage().resident_frames, 0U);
  EXPECT_TRUE(driver.idle(reader.job()));
}

TEST(Reads, ALeaseThatThereIsNoRoomForIsRefusedWithoutALoad) {
  Driver driver(Overlapping(24));
  const Reader reader(driver);
  for (std::uint64_t i = 0; i < 3; ++i) {
    driver.Run(reader.job(), {{reader.weights()[i], 0, kPages}}, Access::kRead);
    (void)driver.pager.Lease(reader.weights()[i]);
  }
  ASSERT_LT(driver.pager.FramesOf(reader.weights()[9]), kPages);
  EXPECT_EQ(driver.pager.Lease(reader.weights()[9]).code(), wire::Code::kFull) << "not: it is not resident";
}

// What an operator sends away does not come right back.
TEST(Reads, AnEvictionIsNotUndone) {
  Driver driver(Overlapping(48));
  Reader reader(driver);
  for (int i = 0; i < 3; ++i) reader.Iterate();
  driver.pager.Evict(reader.job(), 0, Reason::kCommand);
  driver.Settle();
  EXPECT_EQ(reader.usage().resident_frames, 0U);
  // Nor while a read runs, behind which something was expected.
  for (int i = 0; i < 3; ++i) reader.Iterate();
  for (const bool whole : {true, false}) {
    reader.Read(0);
    reader.Read(1);
    static_cast<void>(driver.Ask(reader.job(), {{reader.weights()[2], 0, kPages}}, Access::kRead));
    while (driver.outstanding_runs() == 0) {
      driver.Pump();
      if (driver.outstanding_runs() == 0) {
        ASSERT_TRUE(driver.CompleteOne());
      }
    }
    if (whole) {
      driver.pager.Evict(reader.job(), 0, Reason::kCommand);
    } else {
      driver.pager.EvictExtent(reader.weights()[3], Reason::kCommand);
    }
    driver.Settle();
    EXPECT_EQ(driver.pager.FramesOf(reader.weights()[3]), 0U) << whole;
    EXPECT_EQ(reader.usage().resident_frames == 0, whole);
    for (int i = 0; i < 3; ++i) reader.Iterate();
  }
}

// The client comes back sooner than the next weight has come, or asks for another one.
TEST(Reads, WhatComesEarlyKeepsNobodyWaiting) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Driver driver(Overlapping(24), seed);
    Reader reader(driver);
    for (int i = 0; i < 3; ++i) reader.Iterate();
    for (const std::uint64_t i : {0U, 1U, 7U, 2U, 3U, 11U, 4U}) {
      const wire::RequestId id = driver.Ask(reader.job(), {{reader.weights()[i], 0, kPages}}, Access::kRead);
      while (driver.finished.count(id.value) == 0) {  // and what was expected is still on its way
        driver.Pump();
        driver.pager.CheckInvariants();
        if (driver.finished.count(id.value) != 0) break;
        ASSERT_TRUE(driver.CompleteOne()) << seed;
      }
    }
    driver.Settle();
    EXPECT_TRUE(driver.idle(reader.job()));
  }
}

}  // namespace
}  // namespace bitpager::paging
