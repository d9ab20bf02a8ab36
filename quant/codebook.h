// The number maps: signed and unsigned dynamic 8-bit maps, NF4, FP4, and the decision thresholds between
// their entries. Constant tables built at compile time; any thread.
//
// Sources: dynamic map, Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (arXiv 2110.02861);
// NF4 and FP4, Dettmers et al., "QLoRA" (arXiv 2305.14314). Values are those of the interchange formats.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace bitpager::quant {

using Map256 = std::array<float, 256>;

// A code is the number of thresholds that lie strictly under the value: x > threshold[c] means "above c".
// threshold[c] is the greatest float that is not above (under, for a negative one) the exact midpoint of
// entries c and c + 1, so this is nearest-entry rounding without error; ties go to the entry nearer to zero.
// The last element is +inf (never passed).
using Thresholds256 = std::array<float, 256>;

// Index of the entry 0: codes of zero.
inline constexpr std::uint8_t kSignedZeroCode = 127;
inline constexpr std::uint8_t kUnsignedZeroCode = 0;

namespace internal {

// Point i of `points` evenly spaced floats from 0.1F to 1, each rounded once.
constexpr float LinearPoint(int i, int points) {
  const float first = 0.1F;
  const float step = (1.0F - first) / static_cast<float>(points - 1);
  if (i < points / 2) return static_cast<float>(double{first} + double{step} * i);
  return static_cast<float>(1.0 - double{step} * (points - 1 - i));
}

// Entry j of the `count` entries of decade i (0..6): the midpoint of two neighbouring points, scaled.
constexpr float DecadeEntry(int i, int j, int count) {
  constexpr std::array<float, 7> kScale = {1e-6F, 1e-5F, 1e-4F, 1e-3F, 1e-2F, 1e-1F, 1.0F};
  const float mean = (LinearPoint(j, count + 1) + LinearPoint(j + 1, count + 1)) / 2.0F;
  return kScale[static_cast<std::size_t>(i)] * mean;
}

constexpr Map256 MakeSignedMap() {
  Map256 map{};
  map[127] = 0.0F;
  map[255] = 1.0F;
  for (int i = 0; i < 7; ++i) {
    for (int j = 0; j < (1 << i); ++j) {
      const float value = DecadeEntry(i, j, 1 << i);
      map[static_cast<std::size_t>(127 + (1 << i) + j)] = value;
      map[static_cast<std::size_t>(127 - (1 << i) - j)] = -value;
    }
  }
  return map;
}

constexpr Map256 MakeUnsignedMap() {
  Map256 map{};
  map[0] = 0.0F;
  map[255] = 1.0F;
  for (int i = 0; i < 7; ++i) {
    const int count = 2 << i;
    for (int j = 0; j < count; ++j) map[static_cast<std::size_t>(count - 1 + j)] = DecadeEntry(i, j, count);
  }
  return map;
}

// The next float towards minus infinity; finite input.
constexpr float NextBelow(float x) {
  const auto bits = __builtin_bit_cast(std::uint32_t, x);
  if (x > 0.0F) return __builtin_bit_cast(float, bits - 1);
  if (x < 0.0F) return __builtin_bit_cast(float, bits + 1);
  return -std::numeric_limits<float>::denorm_min();
}

constexpr float ThresholdAt(double midpoint) {
  const float rounded = static_cast<float>(midpoint);
  const bool over = double{rounded} > midpoint || (midpoint < 0.0 && double{rounded} == midpoint);
  return over ? NextBelow(rounded) : rounded;
}

template <std::size_t N>
constexpr std::array<float, N> MakeThresholds(const std::array<float, N>& map) {
  std::array<float, N> thresholds{};
  for (std::size_t c = 0; c + 1 < N; ++c) {
    thresholds[c] = ThresholdAt((double{map[c]} + double{map[c + 1]}) / 2.0);
  }
  thresholds[N - 1] = std::numeric_limits<float>::infinity();
  return thresholds;
}

}  // namespace internal

// 127 negatives (least -0.99297), 0 at index 127, 128 positives up to 1; ascending.
inline constexpr Map256 kSignedDynamicMap = internal::MakeSignedMap();
// 0 at index 0, then positives up to 1; ascending.
inline constexpr Map256 kUnsignedDynamicMap = internal::MakeUnsignedMap();
inline constexpr Thresholds256 kSignedDynamicThresholds = internal::MakeThresholds(kSignedDynamicMap);
inline constexpr Thresholds256 kUnsignedDynamicThresholds = internal::MakeThresholds(kUnsignedDynamicMap);

// Thresholds of any ascending map, for nearest-entry encoding.
[[nodiscard]] constexpr Thresholds256 ThresholdsOf(const Map256& ascending) {
  return internal::MakeThresholds(ascending);
}

// 16 quantiles of the normal distribution with 0 at index 7; ascending.
inline constexpr std::array<float, 16> kNf4 = {
    -1.0F,
    -0.6961928009986877F,
    -0.5250730514526367F,
    -0.39491748809814453F,
    -0.28444138169288635F,
    -0.18477343022823334F,
    -0.09105003625154495F,
    0.0F,
    0.07958029955625534F,
    0.16093020141124725F,
    0.24611230194568634F,
    0.33791524171829224F,
    0.44070982933044434F,
    0.5626170039176941F,
    0.7229568362236023F,
    1.0F,
};
// Codes 0..7 are magnitudes, 8..15 their negatives (bit 3 is the sign); not ascending.
inline constexpr std::array<float, 16> kFp4 = {
    0.0F,  0.0625F / 12.0F,  8.0F / 12.0F,  1.0F,  4.0F / 12.0F,  0.5F,  2.0F / 12.0F,  0.25F,
    -0.0F, -0.0625F / 12.0F, -8.0F / 12.0F, -1.0F, -4.0F / 12.0F, -0.5F, -2.0F / 12.0F, -0.25F,
};

// NF4: the code is the number of pivots strictly under the value (as rounded by the format's reference).
inline constexpr std::array<float, 15> kNf4Pivots = {
    -0.8480964004993439F,  -0.6106329262256622F,  -0.4599952697753906F,   -0.33967943489551544F,
    -0.23460740596055984F, -0.13791173323988914F, -0.045525018125772476F, 0.03979014977812767F,
    0.1202552504837513F,   0.2035212516784668F,   0.2920137718319893F,    0.3893125355243683F,
    0.5016634166240692F,   0.6427869200706482F,   0.8614784181118011F,
};
// FP4: ranks by magnitude, strict >; kFp4RankCode maps a rank 0..7 to its code.
inline constexpr std::array<float, 7> kFp4Pivots = {0.00260417F, 0.0859375F, 0.20833333F, 0.29166667F,
                                                    0.4166667F,  0.583333F,  0.8333333F};
inline constexpr std::array<std::uint8_t, 8> kFp4RankCode = {0, 1, 6, 7, 4, 5, 2, 3};

}  // namespace bitpager::quant
