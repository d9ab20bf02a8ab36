// In-process quantization: plain synchronous functions on raw pointers, for callers without a daemon and for
// clients that read leased weight pages in place. No device; `threads` threads, the caller's among them, live
// only inside a call, unless the program has an OpenMP runtime with several: then its threads do the work.
// Any thread; concurrent calls are independent as long as their outputs are.
//
// Common rules. Elements are kF32, kF16 or kBF16, in row-major order of the flattened tensor. A block's
// absmax is fp32; the last block may be short. Decoding multiplies in fp32 and rounds once to the output
// dtype. Outputs do not depend on `threads` (1 = the calling thread alone) nor on the instruction set.
// Errors: kInvalidArgument for a blocksize, dtype, type or thread count outside the stated sets, and for a
// null pointer beside a non-zero size. Formats: arXiv 2305.14314 (NF4, FP4, double quantization) and
// 2110.02861 (dynamic 8-bit maps).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "client/wire/status.h"
#include "client/wire/types.h"
#include "quant/weight_layout.h"

namespace bitpager::kernels {

// A 4-bit weight as it stands in plain planes (the interchange layout).
struct Packed4 {
  std::uint8_t* packed = nullptr;        // (elements + 1) / 2 bytes, even element in the HIGH nibble
  float* absmax = nullptr;               // one a block; unused when nested
  std::uint8_t* nested_codes = nullptr;  // one a block; null when not nested
  float* absmax2 = nullptr;              // one per 256 blocks; null when not nested
  float offset = 0.0F;                   // mean absmax; 0 when not nested
};

// Quantizes `elements` values of `in`. blocksize: a power of two, 32 to 4096. Fills `out.packed` and, when
// `out->nested_codes` is set, the nested planes and `out->offset` (`out->absmax` is then scratch and may be
// null); else `out->absmax`. Codes are nearest to x * (1 / absmax) with the unquantized absmax. A block that
// holds NaN decodes to NaN as a whole.
[[nodiscard]] wire::Status Quantize4Bit(wire::QuantType type, wire::DType dtype, const void* in,
                                        std::uint64_t elements, std::uint32_t blocksize, Packed4* out,
                                        int threads = 1);

// out[i] = table[code] * absmax. Nested when `in.nested_codes` is set.
[[nodiscard]] wire::Status Dequantize4Bit(wire::QuantType type, const Packed4& in, std::uint64_t elements,
                                          std::uint32_t blocksize, wire::DType dtype, void* out,
                                          int threads = 1);

// 8-bit blockwise: codes[i] = index of the entry of `map` nearest to x / absmax, ties to the entry nearer to
// zero. map: 256 finite floats, ascending. blocksize: a power of two, 64 to 4096. absmax: one a block.
[[nodiscard]] wire::Status QuantizeBlockwise(std::span<const float> map, wire::DType dtype, const void* in,
                                             std::uint64_t elements, std::uint32_t blocksize,
                                             std::uint8_t* codes, float* absmax, int threads = 1);

// out[i] = map[codes[i]] * absmax[i / blocksize]. map: 256 floats, any order.
[[nodiscard]] wire::Status DequantizeBlockwise(std::span<const float> map, const std::uint8_t* codes,
                                               const float* absmax, std::uint64_t elements,
                                               std::uint32_t blocksize, wire::DType dtype, void* out,
                                               int threads = 1);

// A weight that lies in pages: page p holds blocks [p * layout.blocks_per_page, ...) of the weight.
struct PagedWeight {
  wire::QuantType type = wire::QuantType::kNF4;
  quant::WeightLayout layout;
  float offset = 0.0F;                      // nested only
  std::span<const std::byte* const> pages;  // PagesOf(layout, elements) addresses; those outside the range
                                            // that is read may be null
  std::uint64_t elements = 0;               // of the whole weight
};

// Decodes elements [first, first + count) straight out of the pages. `first` is a multiple of the blocksize.
// kOutOfRange when the range passes the weight's end.
[[nodiscard]] wire::Status DequantizePages(const PagedWeight& weight, std::uint64_t first,
                                           std::uint64_t count, wire::DType dtype, void* out,
                                           int threads = 1);

// memcpy cut over `threads` threads. The ranges must not overlap.
void ParallelCopy(void* to, const void* from, std::uint64_t bytes, int threads);

// memcpy by the caller, with stores past the caches: for a destination too large to be found in them later.
void StreamCopy(void* to, const void* from, std::uint64_t bytes);

// Processors that this process may run on: its affinity mask, capped by its cgroup's CPU quota; at least 1.
[[nodiscard]] int UsableProcessors();

// Name of the instruction set that the kernels chose on this processor ("AVX2", "AVX3", ...).
[[nodiscard]] std::string InstructionSet();

}  // namespace bitpager::kernels
