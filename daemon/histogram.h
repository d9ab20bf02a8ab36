// How long things took: counts in fixed buckets, from 10 us to 10 s. Plain members, no allocation; the
// dispatcher thread.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace bitpager::daemon {

class Histogram {
 public:
  // Upper bounds of the buckets; what is longer goes into one more.
  static constexpr std::array<std::uint64_t, 19> kBoundsNs = {
      10'000,      25'000,        50'000,        100'000,       250'000,       500'000,     1'000'000,
      2'500'000,   5'000'000,     10'000'000,    25'000'000,    50'000'000,    100'000'000, 250'000'000,
      500'000'000, 1'000'000'000, 2'500'000'000, 5'000'000'000, 10'000'000'000};
  using Counts = std::array<std::uint64_t, kBoundsNs.size() + 1>;

  void Observe(std::uint64_t ns) {
    const auto* bucket = std::lower_bound(kBoundsNs.begin(), kBoundsNs.end(), ns);
    ++counts_[static_cast<std::size_t>(bucket - kBoundsNs.begin())];
    sum_ns_ += ns;
    ++count_;
  }
  [[nodiscard]] const Counts& counts() const { return counts_; }
  [[nodiscard]] std::uint64_t sum_ns() const { return sum_ns_; }
  [[nodiscard]] std::uint64_t count() const { return count_; }

 private:
  Counts counts_ = {};  // not cumulative
  std::uint64_t sum_ns_ = 0;
  std::uint64_t count_ = 0;
};

}  // namespace bitpager::daemon
