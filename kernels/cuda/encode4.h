// The 4-bit types as a table for encoding: equal bins over [-1, 1] (of magnitudes, for FP4), so narrow that
// none holds two pivots. Lane b of a warp keeps bin b. Host side; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "client/wire/types.h"
#include "quant/codebook.h"

namespace bitpager::kernels::cuda {

// The bin of x is the low five bits of fmaf(x, kScale, kShift): rounding to the unit of 2^23 does it.
inline constexpr float kNf4Scale = 15.0F;
inline constexpr float kNf4Shift = 8388608.0F + 16.0F;
inline constexpr float kFp4Scale = 29.0F;  // of magnitudes
inline constexpr float kFp4Shift = 8388608.0F;

struct EncodeTable {
  float pivots[32];        // the pivot in bin b, or +inf
  std::uint8_t codes[32];  // of values up to the pivot; FP4: those above it in the upper four bits
};

namespace internal {

// The bin of a pivot. Fails to compile when rounding could take values beside the pivot to two bins.
constexpr std::size_t BinOf(float pivot, double scale, double shift) {
  const double at = double{pivot} * scale + shift + 0.5;
  const auto bin = static_cast<std::size_t>(at);
  const double inside = at - static_cast<double>(bin);
  if (inside < 1e-4 || inside > 1.0 - 1e-4) throw "a pivot lies at the edge of two bins";
  return bin;
}

constexpr EncodeTable MakeNf4Encode() {
  EncodeTable table{};
  std::size_t next = 0;
  for (std::size_t bin = 0; bin < 32; ++bin) {
    table.codes[bin] = static_cast<std::uint8_t>(next);
    table.pivots[bin] = std::numeric_limits<float>::infinity();
    if (next == quant::kNf4Pivots.size() || BinOf(quant::kNf4Pivots[next], 15.0, 16.0) != bin) continue;
    table.pivots[bin] = quant::kNf4Pivots[next++];
    if (next < quant::kNf4Pivots.size() && BinOf(quant::kNf4Pivots[next], 15.0, 16.0) == bin) {
      throw "two pivots in one bin";
    }
  }
  if (next != quant::kNf4Pivots.size()) throw "a pivot outside the bins";
  return table;
}

constexpr EncodeTable MakeFp4Encode() {
  EncodeTable table{};
  std::size_t next = 0;
  for (std::size_t bin = 0; bin < 32; ++bin) {
    const auto under = quant::kFp4RankCode[next];
    table.codes[bin] = static_cast<std::uint8_t>(under | under << 4);
    table.pivots[bin] = std::numeric_limits<float>::infinity();
    if (next == quant::kFp4Pivots.size() || BinOf(quant::kFp4Pivots[next], 29.0, 0.0) != bin) continue;
    table.pivots[bin] = quant::kFp4Pivots[next++];
    table.codes[bin] = static_cast<std::uint8_t>(under | quant::kFp4RankCode[next] << 4);
    if (next < quant::kFp4Pivots.size() && BinOf(quant::kFp4Pivots[next], 29.0, 0.0) == bin) {
      throw "two pivots in one bin";
    }
  }
  if (next != quant::kFp4Pivots.size()) throw "a pivot outside the bins";
  return table;
}

}  // namespace internal

inline constexpr EncodeTable kNf4Encode = internal::MakeNf4Encode();
inline constexpr EncodeTable kFp4Encode = internal::MakeFp4Encode();

}  // namespace bitpager::kernels::cuda
