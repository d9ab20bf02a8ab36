// Encode and decode of single values: dynamic 8-bit maps, NF4, FP4, and float conversions. The scalar
// reference that every faster path is compared with. Pure functions, any thread.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "client/wire/types.h"
#include "quant/codebook.h"
#include "quant/portable.h"

namespace bitpager::quant {

// Nearest entry of an ascending map, given its thresholds; ties go to the entry nearer to zero. NaN encodes
// as 0.
BITPAGER_HD constexpr std::uint8_t EncodeNearest(const float* thresholds, float x) {
  unsigned code = 0;
  for (unsigned step = 128; step != 0; step /= 2) {
    if (x > thresholds[code + step - 1]) code += step;
  }
  return static_cast<std::uint8_t>(code);
}

// Code of x in [-1, 1]: the number of NF4 pivots under x. NaN encodes as 0.
BITPAGER_HD constexpr std::uint8_t EncodeNf4(float x) {
  unsigned code = 0;
  for (unsigned step = 8; step != 0; step /= 2) {
    if (x > kNf4Pivots[code + step - 1]) code += step;
  }
  return static_cast<std::uint8_t>(code);
}

// Code of x in [-1, 1]: sign in bit 3 when x < 0, then the rank of |x|.
BITPAGER_HD constexpr std::uint8_t EncodeFp4(float x) {
  const unsigned sign = x < 0.0F ? 8U : 0U;
  const float magnitude = x < 0.0F ? -x : x;
  unsigned rank = 0;
  for (const float pivot : kFp4Pivots) rank += magnitude > pivot ? 1U : 0U;
  return static_cast<std::uint8_t>(sign + kFp4RankCode[rank]);
}

BITPAGER_HD constexpr std::uint8_t Encode4(wire::QuantType type, float x) {
  return type == wire::QuantType::kNF4 ? EncodeNf4(x) : EncodeFp4(x);
}

BITPAGER_HD constexpr const float* Table4(wire::QuantType type) {
  return type == wire::QuantType::kNF4 ? kNf4.data() : kFp4.data();
}

// bfloat16 is the upper half of a float; to it: nearest, ties to even, NaN stays NaN.
constexpr float Bf16ToFloat(std::uint16_t bits) {
  return std::bit_cast<float>(std::uint32_t{bits} << 16);
}
constexpr std::uint16_t FloatToBf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

// IEEE binary16, subnormals included.
inline float F16ToFloat(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t{half & 0x8000U} << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1FU;
  const std::uint32_t mantissa = half & 0x3FFU;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
    return sign != 0 ? -magnitude : magnitude;
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000U | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112U) << 23) | (mantissa << 13));
}
// Nearest, ties to even; overflow to infinity; NaN stays NaN.
inline std::uint16_t FloatToF16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U)
    return static_cast<std::uint16_t>(sign | 0x7E00U | ((magnitude >> 13) & 0x3FFU));
  if (magnitude >= 0x477FF000U) return static_cast<std::uint16_t>(sign | 0x7C00U);
  if (magnitude < 0x38800000U) {  // subnormal: units of 2^-24
    const float scaled = std::bit_cast<float>(magnitude) * 0x1p24F;
    return static_cast<std::uint16_t>(sign | static_cast<std::uint32_t>(std::nearbyintf(scaled)));
  }
  const std::uint32_t rounded = magnitude + 0xFFFU + ((magnitude >> 13) & 1U);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
}

// Element `i` of an array of `dtype` (kF32, kF16 or kBF16), as float; and back, rounded once.
inline float LoadAs(wire::DType dtype, const void* data, std::size_t i) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  if (dtype == wire::DType::kF32) {
    float x = 0.0F;
    __builtin_memcpy(&x, bytes + 4 * i, 4);
    return x;
  }
  std::uint16_t half = 0;
  __builtin_memcpy(&half, bytes + 2 * i, 2);
  return dtype == wire::DType::kBF16 ? Bf16ToFloat(half) : F16ToFloat(half);
}
inline void StoreAs(wire::DType dtype, void* data, std::size_t i, float x) {
  auto* bytes = static_cast<unsigned char*>(data);
  if (dtype == wire::DType::kF32) {
    __builtin_memcpy(bytes + 4 * i, &x, 4);
    return;
  }
  const std::uint16_t half = dtype == wire::DType::kBF16 ? FloatToBf16(x) : FloatToF16(x);
  __builtin_memcpy(bytes + 2 * i, &half, 2);
}

}  // namespace bitpager::quant
