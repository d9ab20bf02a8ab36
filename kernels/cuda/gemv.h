// Products of few rows with a 4-bit weight, on a stream: what local.h gives to clients, without its checks.
// Only enqueues. Any thread, the caller's context current. No CUDA header is needed to include this.
#pragma once

#include <cstddef>
#include <cstdint>

#include "client/wire/status.h"
#include "client/wire/types.h"

struct CUstream_st;  // a cudaStream_t points to one

namespace bitpager::kernels::cuda {

// Pages that a launch's parameters hold; a weight in more is no work for Gemv4.
inline constexpr std::size_t kGemvPages = 480;
inline constexpr std::uint32_t kGemvBatch = 32;

struct Gemv4 {
  wire::QuantType type = wire::QuantType::kNF4;
  wire::DType dtype = wire::DType::kBF16;  // of x and y: kF16 or kBF16
  const void* x = nullptr;                 // [batch, columns], 16-byte aligned
  void* y = nullptr;                       // [batch, rows]
  std::uint32_t batch = 1;                 // 1 to kGemvBatch
  std::uint32_t rows = 0;
  std::uint32_t columns = 0;  // a multiple of the block size, so that no block lies in two rows
  std::uint32_t blocksize = 64;
  bool nested = false;
  float offset = 0.0F;
  const float* offset_at = nullptr;  // nested: where the offset lies on the device, instead
  // The weight [rows, columns]: planes (16-byte aligned), or pages of `blocks_per_page` blocks each.
  const std::byte* packed = nullptr;
  const std::byte* scales = nullptr;  // absmax, or its codes when nested
  const float* absmax2 = nullptr;
  const std::byte* const* pages = nullptr;  // on the host; null for planes
  std::size_t page_count = 0;
  std::uint32_t blocks_per_page = 0;
  std::uint32_t scales_offset = 0;   // in a page
  std::uint32_t absmax2_offset = 0;  // in a page
};

// y = x W^T: values of the type rounded to `dtype`, products summed in fp32 by block, scaled in fp32, rounded
// once. The order of the sum is fixed.
[[nodiscard]] wire::Status Multiply4(CUstream_st* stream, const Gemv4& args);

}  // namespace bitpager::kernels::cuda
