// 8-bit blockwise quantization over runs of consecutive blocks, with the widest vectors this processor has.
// Synchronous, any thread; equal bit for bit to the scalar reference in quant/block.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "client/wire/types.h"
#include "quant/codebook.h"

namespace bitpager::kernels::simd {

// Codes of consecutive blocks of `blocksize` elements by one of our own maps, and their absmaxes.
void EncodeDynamic(bool is_signed, wire::DType dtype, const void* in, std::uint64_t elements,
                   std::uint32_t blocksize, std::uint8_t* codes, float* absmax);

// out[i] = map[codes[i]] * absmax[i / blocksize], rounded to `dtype`. Any map.
void Decode8(const quant::Map256& map, wire::DType dtype, const std::uint8_t* codes, std::uint64_t elements,
             std::uint32_t blocksize, const float* absmax, void* out);

}  // namespace bitpager::kernels::simd
