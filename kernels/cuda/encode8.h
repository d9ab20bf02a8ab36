// The dynamic 8-bit maps as tables for encoding magnitudes in [0, 1], scaled by kDown: 1 then has the
// exponent 24 (biased), and what a multiplication that flushes to zero leaves of the others has 1 to 24, so a
// value's exponent and top mantissa bits are the number of its bin. A bin is so fine that it holds at most
// one threshold. Its entry is made so that entry + bits of the value has the code in its upper byte: the bits
// under the bin's number carry into it exactly when the value lies above the threshold. Host side; any
// thread.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "quant/codebook.h"

namespace bitpager::kernels::cuda {

inline constexpr float kDown = 0x1p-103F;  // magnitudes under 2^-23 become zero

// kMantissaBits: 6 for the signed map, 7 for the unsigned.
template <int kMantissaBits>
struct MagnitudeTable {
  static constexpr int kLowBits = 23 - kMantissaBits;
  static constexpr std::size_t kBins = (24U << kMantissaBits) + 1;  // the last begins at 1
  std::uint32_t entries[kBins];
};

using SignedTable = MagnitudeTable<6>;
using UnsignedTable = MagnitudeTable<7>;

// `zero`: the code of 0; magnitudes are counted from it.
template <typename Table>
constexpr Table MakeMagnitudeTable(const quant::Thresholds256& thresholds, std::size_t zero) {
  Table table{};
  std::size_t next = 0;  // magnitude whose upper threshold comes next
  const auto scaled = [&](std::size_t m) {
    return std::bit_cast<std::uint32_t>(thresholds[zero + m]) - (103U << 23);
  };
  if (std::bit_cast<float>(scaled(0)) / kDown != thresholds[zero] || scaled(0) >> 23 < 1) {
    throw "what is flushed to zero must lie under every threshold";
  }
  for (std::size_t bin = 0; bin < Table::kBins; ++bin) {
    const std::uint32_t low = static_cast<std::uint32_t>(bin) << Table::kLowBits;
    std::uint32_t entry = static_cast<std::uint32_t>(next) << 24;
    if (zero + next < 255 && scaled(next) >> Table::kLowBits == bin) {
      entry += 0xFFFFFFU - (scaled(next) - low);
      ++next;
      if (zero + next < 255 && scaled(next) >> Table::kLowBits == bin) throw "two thresholds in one bin";
    }
    table.entries[bin] = entry - low;
  }
  if (zero + next != 255) throw "a threshold outside the bins";
  return table;
}

}  // namespace bitpager::kernels::cuda
