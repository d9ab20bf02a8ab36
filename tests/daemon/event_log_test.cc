// The log of events: ids, readers' places, what is kept.
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "daemon/event.h"

namespace bitpager::daemon {
namespace {

TEST(EventLog, NumbersEventsOneByOne) {
  EventLog log(100);
  for (int i = 0; i < 4; ++i) log.Add({"limit", 0, "", "", 0, ""});
  const auto ids = [&](std::uint64_t after, std::uint64_t before) {
    std::vector<std::uint64_t> out;
    for (const Event& event : log.Between(after, before)) out.push_back(event.id);
    return out;
  };
  using Ids = std::vector<std::uint64_t>;
  EXPECT_EQ(ids(0, ~0ULL), (Ids{100, 101, 102, 103}));
  EXPECT_EQ(ids(101, log.Next()), (Ids{102, 103}));
  EXPECT_EQ(ids(100, 102), Ids{101});
  EXPECT_EQ(ids(103, 104), Ids{});
  EXPECT_EQ(ids(104, 104), (Ids{100, 101, 102, 103})) << "no event of this log";
  EXPECT_EQ(ids(0, 50), Ids{});
  for (std::size_t i = 0; i < EventLog::kHeld; ++i) log.Add({"limit", 0, "", "", 0, ""});
  EXPECT_EQ(ids(0, log.Next()).size(), EventLog::kKept);
  EXPECT_EQ(ids(0, log.Next()).back(), log.Next() - 1);
  EXPECT_EQ(ids(0, 103), Ids{}) << "they are held no more";
  EXPECT_EQ(log.dropped(), 0U) << "looking again is no loss";
  EXPECT_GT(EventLog().Next(), 1'600'000'000'000'000U) << "greater than all of a log before it";
}

TEST(EventLog, KeepsAReadersPlaceAndCountsWhatItMissed) {
  EventLog log;
  std::uint64_t place = log.Next();
  int woken = 0;
  const int watch = log.Watch([&] { ++woken; });
  for (std::size_t i = 0; i < 3; ++i) log.Add({"limit", 0, "", "", i, ""});
  EXPECT_EQ(log.Since(place).size(), 3U);
  EXPECT_TRUE(log.Since(place).empty());
  log.Unwatch(watch);
  for (std::size_t i = 0; i < EventLog::kHeld + 5; ++i) log.Add({"evict", 0, "", "", i, ""});
  EXPECT_EQ(woken, 3);
  const auto late = log.Since(place);
  ASSERT_EQ(late.size(), EventLog::kHeld);
  EXPECT_EQ(late[0].bytes, 5U);
  EXPECT_EQ(log.dropped(), 5U);
  EXPECT_EQ(log.Last().size(), EventLog::kKept);
  EXPECT_EQ(log.Counts().at("evict"), EventLog::kHeld + 5);
}

}  // namespace
}  // namespace bitpager::daemon
