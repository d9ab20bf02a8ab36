// Sums over what the daemon's figures are split by.
#pragma once

#include <cstdint>
#include <numeric>

#include "paging/pager.h"

namespace bitpager::testing {

[[nodiscard]] inline std::uint64_t SumOf(const paging::ByReason& counts) {
  return std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
}

}  // namespace bitpager::testing
