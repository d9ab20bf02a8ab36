// What the client does in its own process with the vector kernels: copies, decoding of leased pages, the
// operations of the C ABI that need no daemon. The only file of this folder that reaches kernels/local.h.
#pragma once

#include <cstdint>
#include <span>

#include "client/wire/status.h"
#include "client/wire/types.h"
#include "quant/weight_layout.h"

namespace bitpager::client {

// memcpy by the calling thread; `stream`: past the caches. Visible to other processes on return.
void CopyBytes(void* to, const void* from, std::uint64_t bytes, bool stream);
// Processors that this process may use; at least 1.
[[nodiscard]] int UsableProcessors();

// `threads` as callers give it: 0 is every usable processor. kInvalidArgument when negative or over 1024.
[[nodiscard]] wire::Result<int> ThreadsFrom(int threads);

// A leased weight: page p holds blocks [p * layout.blocks_per_page, ...).
struct LeasedWeight {
  wire::QuantType type = wire::QuantType::kNF4;
  quant::WeightLayout layout;
  float offset = 0.0F;  // nested only
  std::span<const std::byte* const> pages;
  std::uint64_t elements = 0;
};
// out[i] = weight[i] for the whole weight, cast to `dtype`.
[[nodiscard]] wire::Status DecodeLeased(const LeasedWeight& weight, wire::DType dtype, void* out,
                                        int threads);

// The C ABI's operations, as kernels/local.h describes them, in its plain (not nested) form. `map`: 256
// values. Errors: kInvalidArgument.
[[nodiscard]] wire::Status Quantize4Bit(wire::QuantType type, wire::DType dtype, const void* in,
                                        std::uint64_t elements, std::uint32_t blocksize, std::uint8_t* packed,
                                        float* absmax, int threads);
[[nodiscard]] wire::Status Dequantize4Bit(wire::QuantType type, wire::DType dtype, const std::uint8_t* packed,
                                          const float* absmax, std::uint64_t elements,
                                          std::uint32_t blocksize, void* out, int threads);
[[nodiscard]] wire::Status QuantizeBlockwise(const float* map, wire::DType dtype, const void* in,
                                             std::uint64_t elements, std::uint32_t blocksize,
                                             std::uint8_t* codes, float* absmax, int threads);
[[nodiscard]] wire::Status DequantizeBlockwise(const float* map, wire::DType dtype, const std::uint8_t* codes,
                                               const float* absmax, std::uint64_t elements,
                                               std::uint32_t blocksize, void* out, int threads);

}  // namespace bitpager::client
