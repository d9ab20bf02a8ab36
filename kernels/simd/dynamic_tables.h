// Constants of the arithmetic encoder of the dynamic 8-bit maps. Any thread.
//
// Inside one decade the entries are evenly spaced, so the code is a linear function of the value. Eight
// pieces (the entries up to the first decade's end, decades 1 to 6, the entry 1.0) cover [0, 1]. A piece is
// found by a rough logarithm and one compare with its exact upper edge; the code is then one fused
// multiply-add in fixed point: t = base + code + 1/2 + margin, the code in the bits above the fraction.
// Values so near to a midpoint that rounding could decide wrongly leave a fraction up to 2 * margin: these
// lanes, about one in 6000 (unsigned) or 13000 (signed), are encoded by the exact thresholds instead. The
// result is exactly the nearest entry.
#pragma once

#include <array>
#include <cstdint>

#include "quant/codebook.h"

namespace bitpager::kernels::simd {

// Bits of t's fraction. The unsigned map has 256 codes: t lies in [256, 512). The signed map has distances 0
// to 128: t lies in [128, 256), where one more bit is left and the fraction is the lower half of the float's
// bits. (Only distance 128 reaches 256.5, whose bits continue those of 255 and the like: 128 above the
// fraction.)
inline constexpr int kUnsignedFractionBits = 15;
inline constexpr int kSignedFractionBits = 16;
// Half width of the doubtful band around a midpoint, in units of the fraction's last bit. One of them covers
// the rounding of the multiply-add, the other that of its tables.
inline constexpr std::uint32_t kMarginSteps = 2;
inline constexpr std::uint32_t kDoubtfulFraction = 2 * kMarginSteps;

// Rough logarithm: piece = round(bits(x) * kLogScale + kLogShift), by adding 1.5 * 2^23. It is the piece of x
// or the one before, for x >= kLogFloor: the step to piece i falls in the middle of piece i. (At 2^23 a float
// holds integers only, so the shift is one, and the scale, a little under log10(2), is fitted to it.)
inline constexpr float kLogScale = static_cast<float>(0.2975 / 8388608.0);
inline constexpr float kLogShift = 12582912.0F - 32.0F;
inline constexpr float kLogFloor = 1e-6F;

// Eight entries, twice: one table serves 8 and 16 lanes.
struct alignas(64) PieceTables {
  std::array<float, 16> upper{};      // exact upper edge (threshold); +inf for the last
  std::array<float, 16> slope{};      // codes per unit of value
  std::array<float, 16> intercept{};  // in fixed point
  std::array<float, 16> last{};       // last code of the piece, in fixed point
};

// `zero`: code of 0. `bits`: of the fraction. `first`: entries of decade 0 (1 signed, 2 unsigned). Codes are
// counted from `zero`, so the signed encoder gets the magnitude's distance from 127.
constexpr PieceTables MakePieceTables(const quant::Map256& map, const quant::Thresholds256& thresholds,
                                      int zero, int bits, int first) {
  const double base = 0.5 + (1 << (23 - bits));
  const double bias = base + kMarginSteps / static_cast<double>(1 << bits);
  PieceTables tables;
  for (int lane = 0; lane < 16; ++lane) {
    const int piece = lane % 8;
    const auto at = static_cast<std::size_t>(lane);
    // Codes (from zero) of the piece's first two entries and of its last.
    const int begin = piece == 0 ? 0 : (first << piece) - (first - 1);
    const int end = piece == 7 ? begin : (first << (piece + 1)) - first;
    tables.upper[at] = thresholds[static_cast<std::size_t>(zero + end)];
    tables.last[at] = static_cast<float>(base + end);
    if (piece == 7) {
      tables.slope[at] = 0.0F;
      tables.intercept[at] = static_cast<float>(bias + begin);
      continue;
    }
    // The line through the piece's outermost inner midpoints: code + 1/2 there.
    const auto midpoint = [&](int code) {
      const auto c = static_cast<std::size_t>(zero + code);
      return (double{map[c]} + double{map[c + 1]}) / 2.0;
    };
    const int low = begin;
    const int high = end - 1;
    const double slope = high > low ? (high - low) / (midpoint(high) - midpoint(low)) : 0.5 / midpoint(low);
    tables.slope[at] = static_cast<float>(slope);
    tables.intercept[at] = static_cast<float>(low + 0.5 - double{tables.slope[at]} * midpoint(low) + bias);
    if (high == low && begin != 0) {  // two entries: the line through both
      const auto c = static_cast<std::size_t>(zero + begin);
      const double step = double{map[c + 1]} - double{map[c]};
      tables.slope[at] = static_cast<float>(1.0 / step);
      tables.intercept[at] = static_cast<float>(low + 0.5 - double{tables.slope[at]} * midpoint(low) + bias);
    }
  }
  return tables;
}

inline constexpr PieceTables kSignedPieces =
    MakePieceTables(quant::kSignedDynamicMap, quant::kSignedDynamicThresholds, quant::kSignedZeroCode,
                    kSignedFractionBits, 1);
inline constexpr PieceTables kUnsignedPieces =
    MakePieceTables(quant::kUnsignedDynamicMap, quant::kUnsignedDynamicThresholds, quant::kUnsignedZeroCode,
                    kUnsignedFractionBits, 2);

// A map cut into its four byte planes, for byte permutes: plane[k][c] is byte k of entry c.
struct alignas(64) BytePlanes {
  std::array<std::array<std::uint8_t, 256>, 4> plane{};
};
constexpr BytePlanes MakeBytePlanes(const quant::Map256& map) {
  BytePlanes out;
  for (std::size_t c = 0; c < 256; ++c) {
    const auto bits = __builtin_bit_cast(std::uint32_t, map[c]);
    for (std::size_t k = 0; k < 4; ++k) out.plane[k][c] = static_cast<std::uint8_t>(bits >> (8 * k));
  }
  return out;
}

// A map in the two shapes that decoders read.
struct alignas(64) DecodeTables {
  quant::Map256 map{};
  BytePlanes planes{};
};
constexpr DecodeTables MakeDecodeTables(const quant::Map256& map) {
  return {map, MakeBytePlanes(map)};
}
inline constexpr DecodeTables kSignedDecode = MakeDecodeTables(quant::kSignedDynamicMap);
inline constexpr DecodeTables kUnsignedDecode = MakeDecodeTables(quant::kUnsignedDynamicMap);

// The signed map by distance from the code of zero: entry 127 + i is magnitude i, entry 127 - i its negative.
// Distance 128, the entry 1.0, has no partner and stands outside.
struct alignas(64) MagnitudeTables {
  std::array<float, 128> value{};
  std::array<std::array<std::uint8_t, 128>, 4> plane{};
};
constexpr MagnitudeTables MakeMagnitudeTables(const quant::Map256& map, std::size_t zero) {
  MagnitudeTables out;
  for (std::size_t i = 0; i < 128; ++i) {
    out.value[i] = map[zero + i];
    const auto bits = __builtin_bit_cast(std::uint32_t, map[zero + i]);
    for (std::size_t k = 0; k < 4; ++k) out.plane[k][i] = static_cast<std::uint8_t>(bits >> (8 * k));
  }
  return out;
}
inline constexpr MagnitudeTables kSignedMagnitudes =
    MakeMagnitudeTables(quant::kSignedDynamicMap, quant::kSignedZeroCode);
constexpr bool IsOddAround(const quant::Map256& map, std::size_t zero) {
  for (std::size_t i = 1; i < 128; ++i) {
    if (map[zero + i] != -map[zero - i]) return false;
  }
  return map[zero] == 0.0F && map[zero + 128] == 1.0F;
}
static_assert(IsOddAround(quant::kSignedDynamicMap, quant::kSignedZeroCode));

}  // namespace bitpager::kernels::simd
