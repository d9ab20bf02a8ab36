// The pool that copies lists of ranges.
#include "client/copy_pool.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <random>
#include <vector>

namespace bitpager::client {
namespace {

// Copies ranges of the given sizes, side by side with gaps, and looks at every byte.
void ExpectRun(CopyPool& pool, const std::vector<std::uint64_t>& sizes, unsigned seed) {
  std::uint64_t total = 0;
  for (const std::uint64_t bytes : sizes) total += bytes + 3;
  std::vector<std::uint8_t> from(total);
  std::mt19937_64 random(seed);
  for (std::size_t i = 0; i < total; ++i) from[i] = static_cast<std::uint8_t>(random() >> 56);
  std::vector<std::uint8_t> to(total, 0xEE);
  std::vector<std::uint8_t> expected = to;
  std::vector<CopyRange> ranges;
  std::uint64_t at = 0;
  for (const std::uint64_t bytes : sizes) {
    ranges.push_back({to.data() + at, from.data() + at, bytes});
    std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(at), bytes,
                expected.begin() + static_cast<std::ptrdiff_t>(at));
    at += bytes + 3;
  }
  pool.Run(ranges);
  EXPECT_TRUE(to == expected) << sizes.size() << " ranges, " << total << " bytes";
}

TEST(CopyPool, CopiesSmallListsByTheCaller) {
  CopyPool pool(4);
  ExpectRun(pool, {}, 1);
  ExpectRun(pool, {0, 1, 0, 64, 1000, 0}, 2);
}

TEST(CopyPool, CopiesLargeListsOnAllThreads) {
  for (const int threads : {-1, 1, 2, 5}) {
    CopyPool pool(threads);
    EXPECT_EQ(pool.threads(), threads < 1 ? 1 : threads);
    ExpectRun(pool, {5U << 20}, 3);
    ExpectRun(pool, {0, 1U << 20, 1, 0, (256U << 10) - 1, 256U << 10, 3U << 20, 7}, 4);
    ExpectRun(pool, std::vector<std::uint64_t>(300, 20001), 5);
  }
}

TEST(CopyPool, CopiesWhatIsTooLargeForTheCaches) {
  CopyPool pool(2);
  ExpectRun(pool, {(20U << 20) + 5, 1, (13U << 20) + 11}, 6);
}

TEST(CopyPool, WorksRoundAfterRound) {
  CopyPool pool(3);
  for (unsigned round = 0; round < 50; ++round) ExpectRun(pool, {1U << 20, round * 1000, 40000}, round);
}

}  // namespace
}  // namespace bitpager::client
