#include "paging/history.h"

#include <algorithm>
#include <limits>

namespace bitpager::paging {

void GapHistory::Record(std::uint64_t gap) {
  constexpr std::uint64_t kMost = std::numeric_limits<std::uint32_t>::max();
  gaps_[next_ % kGaps] = static_cast<std::uint32_t>(std::min(gap, kMost));
  ++next_;
  count_ = static_cast<std::uint8_t>(std::min<std::uint32_t>(count_ + 1U, kGaps));
}

double GapHistory::ErrorOf(std::uint32_t period) const {
  const std::uint32_t known = std::min(count_ - period, kPeriods);
  double sum = 0;
  for (std::uint32_t i = 0; i < known; ++i) {
    const std::uint32_t a = Gap(i);
    const std::uint32_t b = Gap(i + period);
    sum += a > b ? a - b : b - a;
  }
  return sum / known;
}

std::uint64_t GapHistory::Predict() const {
  if (count_ <= 2) return Gap(count_ - 1U);  // of two unlike gaps, that they alternate is the better bet
  std::uint32_t best = 2;
  double least = ErrorOf(2);
  for (const std::uint32_t period : {1U, 3U, 4U}) {
    if (period >= count_) continue;
    const double error = ErrorOf(period);
    if (error < least) {
      least = error;
      best = period;
    }
  }
  return Gap(best - 1);
}

}  // namespace bitpager::paging
