// The dynamic 8-bit maps as tables for encoding magnitudes in [0, 1]. A bin is the exponent and the top
// mantissa bits of a value, so fine that it holds at most one threshold. Its entry is (codes below <<
// kLowBits) + 2^kLowBits - 1 - (the threshold's low bits): adding a value's low bits carries into the code
// exactly when the value lies above the threshold. Host side; any thread.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "quant/codebook.h"

namespace bitpager::kernels::cuda {

// kMantissaBits: 6 for the signed map, 7 for the unsigned. kLeastExponent: of the bin that takes all values
// under the first threshold (biased).
template <int kMantissaBits, std::uint32_t kLeastExponent>
struct MagnitudeTable {
  static constexpr int kLowBits = 23 - kMantissaBits;
  static constexpr std::uint32_t kLowMask = (1U << kLowBits) - 1;
  static constexpr std::uint32_t kFirst = kLeastExponent << kMantissaBits;
  static constexpr std::size_t kBins = ((127 - kLeastExponent) << kMantissaBits) + 1;  // the last begins at 1
  std::uint32_t entries[kBins];
};

using SignedTable = MagnitudeTable<6, 105>;
using UnsignedTable = MagnitudeTable<7, 104>;

// `zero`: the code of 0; magnitudes are counted from it.
template <typename Table>
constexpr Table MakeMagnitudeTable(const quant::Thresholds256& thresholds, std::size_t zero) {
  Table table{};
  std::size_t next = 0;  // magnitude whose upper threshold comes next
  const auto bits_of = [&](std::size_t m) { return std::bit_cast<std::uint32_t>(thresholds[zero + m]); };
  if ((bits_of(0) >> Table::kLowBits) <= Table::kFirst) throw "the first bin must lie under every threshold";
  for (std::size_t bin = 0; bin < Table::kBins; ++bin) {
    std::uint32_t entry = static_cast<std::uint32_t>(next) << Table::kLowBits;
    const std::uint32_t at = Table::kFirst + static_cast<std::uint32_t>(bin);
    if (zero + next < 255 && bits_of(next) >> Table::kLowBits == at) {
      entry += Table::kLowMask - (bits_of(next) & Table::kLowMask);
      ++next;
      if (zero + next < 255 && bits_of(next) >> Table::kLowBits == at) throw "two thresholds in one bin";
    }
    table.entries[bin] = entry - (at << Table::kLowBits);
  }
  if (zero + next != 255) throw "a threshold outside the bins";
  return table;
}

}  // namespace bitpager::kernels::cuda
