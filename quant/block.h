// Quantization of one block: 4-bit and 8-bit, scalar reference. The formats' definition in code; the fast
// paths in kernels/ are tested against it. Pure functions, any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "client/wire/types.h"
#include "quant/codebook.h"

namespace bitpager::quant {

// Greatest |x| of `elements` elements; NaN when one is NaN, so that such a block decodes to NaN as a whole.
[[nodiscard]] float AbsmaxOf(wire::DType dtype, const void* in, std::size_t elements);

// 1 / absmax; 0 for an all-zero block. Finite for the least subnormal too: see ScaledReciprocal.
struct Reciprocal {
  float pre = 1.0F;   // multiply by this first: 1, or 2^64 where 1 / absmax would overflow
  float inverse = 0;  // then by this
};
[[nodiscard]] Reciprocal ReciprocalOf(float absmax);

// Packs `elements` values (at most one block) of `in`: code nearest to x * (1 / absmax), the even element in
// the HIGH nibble, (elements + 1) / 2 bytes; the low nibble past an odd end holds the code of zero.
void PackBlock4(wire::QuantType type, wire::DType dtype, const void* in, std::size_t elements, float absmax,
                std::uint8_t* packed);
// out[i] = table[code] * absmax in fp32, then rounded to `dtype`.
void UnpackBlock4(wire::QuantType type, wire::DType dtype, const std::uint8_t* packed, std::size_t elements,
                  float absmax, void* out);

// 8-bit block: absmax, then nearest entry of the map given its thresholds.
float EncodeBlock8(const Thresholds256& thresholds, wire::DType dtype, const void* in, std::size_t elements,
                   std::uint8_t* codes);
// out[i] = map[code] * absmax in fp32, then rounded to `dtype`.
void DecodeBlock8(const Map256& map, wire::DType dtype, const std::uint8_t* codes, std::size_t elements,
                  float absmax, void* out);

// The order in which absmaxes are summed: in chunks of kMeanChunk; in a chunk, kMeanSums running sums in
// double by index modulo kMeanSums, folded by halves (sum k += sum k + 16, then + 8, 4, 2, 1); the chunks'
// sums in the same way. Many processors can work on it at once, and the result is the same.
inline constexpr std::size_t kMeanChunk = 4096;
inline constexpr std::size_t kMeanSums = 32;
// Mean of the absmaxes in that order, rounded once; 0 for none.
[[nodiscard]] float MeanAbsmax(std::span<const float> absmax);

// Double quantization: offset = MeanAbsmax, then (absmax - offset) in blocks of 256 with the signed dynamic
// map.
void NestAbsmax(std::span<const float> absmax, std::uint8_t* codes, float* absmax2, float* offset);
// absmax of block i of the weight: map[codes[i]] * absmax2[i / 256] + offset.
[[nodiscard]] inline float UnnestAbsmax(std::uint8_t code, float absmax2, float offset) {
  return kSignedDynamicMap[code] * absmax2 + offset;
}

}  // namespace bitpager::quant
