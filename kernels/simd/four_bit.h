// 4-bit quantization over runs of consecutive blocks, with the widest vectors this processor has.
// Synchronous, any thread; equal bit for bit to the scalar reference in quant/block.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "client/wire/types.h"

namespace bitpager::kernels::simd {

// absmax[b] of every block of `in` (kF32, kF16 or kBF16); the last block may be short.
void BlockAbsmax(wire::DType dtype, const void* in, std::uint64_t elements, std::uint32_t blocksize,
                 float* absmax);

// Packs `elements` values, the even one of a pair in the high nibble: (elements + 1) / 2 bytes.
void Pack4(wire::QuantType type, wire::DType dtype, const void* in, std::uint64_t elements,
           std::uint32_t blocksize, const float* absmax, std::uint8_t* packed);

// Both of the above; reads its input from memory once.
void Quantize4(wire::QuantType type, wire::DType dtype, const void* in, std::uint64_t elements,
               std::uint32_t blocksize, float* absmax, std::uint8_t* packed);

// out[i] = table[code] * absmax[i / blocksize], rounded to `dtype`. `stream`: the output will not be read
// soon; write it past the caches.
void Unpack4(wire::QuantType type, wire::DType dtype, const std::uint8_t* packed, std::uint64_t elements,
             std::uint32_t blocksize, const float* absmax, void* out, bool stream);

// absmax[i] of `blocks` consecutive blocks of a double-quantized weight, the first being `first_block` of
// the weight; absmax2 starts at the group of that block.
void UnnestRun(const std::uint8_t* codes, std::uint64_t first_block, std::uint64_t blocks,
               const float* absmax2, float offset, float* absmax);

// Double quantization in two parts, together quant::NestAbsmax bit for bit. The mean of all blocks' absmaxes;
// 0 for none.
[[nodiscard]] float NestMean(const float* absmax, std::uint64_t blocks);
// Then codes and absmax2 of `blocks` consecutive blocks, the first of them at a group's begin.
void NestRun(const float* absmax, std::uint64_t blocks, float mean, std::uint8_t* codes, float* absmax2);

}  // namespace bitpager::kernels::simd
