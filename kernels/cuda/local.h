// In-process quantization and 4-bit products on CUDA tensors, for processes that hold the tensors themselves
// and for clients that read leased pages in place: the asynchronous counterpart of kernels/local.h. No CUDA
// type is needed to include this: `stream` is a cudaStream_t (null: the default stream), all other pointers
// are of the device whose context is current, unless said otherwise.
//
// Every function enqueues and returns; nothing waits for the device. Any thread. Any alignment of an
// element's size is taken; 16 bytes is fast. Numbers are those of kernels/local.h bit for bit (any NaN for a
// NaN), but for the products. Errors: kInvalidArgument as there; kUnsupported for a device that lacks
// something; what a launch reports. Formats: arXiv 2305.14314 and 2110.02861.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "client/wire/status.h"
#include "client/wire/types.h"
#include "kernels/cuda/blockwise.h"
#include "quant/weight_layout.h"

namespace bitpager::kernels::cuda {

// A 4-bit weight as it stands in plain planes. Nested: `nested_codes` is set; `absmax` is then written when
// quantizing (scratch of one float a block) and unused when decoding.
struct Planes4 {
  std::uint8_t* packed = nullptr;        // (elements + 1) / 2 bytes, even element in the HIGH nibble
  float* absmax = nullptr;               // one a block
  std::uint8_t* nested_codes = nullptr;  // one a block
  float* absmax2 = nullptr;              // one per 256 blocks
  float* offset = nullptr;               // one: mean absmax
};

// A 4-bit weight in pages; the span and the addresses' list are on the host and may end when a call returns.
struct Pages4 {
  quant::WeightLayout layout;
  float offset = 0.0F;  // nested only
  std::span<const std::byte* const>
      pages;  // PagesOf(layout, elements); those outside what is read may be null
};

// blocksize: a power of two, 32 to 4096. dtype: kF32, kF16, kBF16. The input is read once.
[[nodiscard]] wire::Status Quantize4BitOn(void* stream, wire::QuantType type, wire::DType dtype,
                                          const void* in, std::uint64_t elements, std::uint32_t blocksize,
                                          const Planes4& out);
[[nodiscard]] wire::Status Dequantize4BitOn(void* stream, wire::QuantType type, const Planes4& in,
                                            std::uint64_t elements, std::uint32_t blocksize,
                                            wire::DType dtype, void* out);
// Elements [first, first + count) of a weight of `elements`; `first` is a multiple of the block size.
[[nodiscard]] wire::Status DequantizePagesOn(void* stream, wire::QuantType type, const Pages4& in,
                                             std::uint64_t elements, std::uint64_t first, std::uint64_t count,
                                             wire::DType dtype, void* out);

// 8-bit blockwise; see blockwise.h. blocksize: a power of two, 64 to 4096. A map of kGiven is not looked at
// here (it is on the device): it must ascend for encoding.
[[nodiscard]] wire::Status QuantizeBlockwiseOn(void* stream, const Blockwise& args);
[[nodiscard]] wire::Status DequantizeBlockwiseOn(void* stream, const Blockwise& args);

// y[batch, rows] = x[batch, columns] W[rows, columns]^T; W in planes or in pages (exactly one is not null).
struct Product4 {
  wire::QuantType type = wire::QuantType::kNF4;
  wire::DType dtype = wire::DType::kBF16;  // of x and y: kF16 or kBF16
  const void* x = nullptr;                 // contiguous, 16-byte aligned
  void* y = nullptr;                       // contiguous
  std::uint32_t batch = 1;                 // 1 to 32
  std::uint32_t rows = 0;
  std::uint32_t columns = 0;     // a multiple of the block size
  std::uint32_t blocksize = 64;  // of planes
  const Planes4* planes = nullptr;
  const Pages4* pages = nullptr;  // at most 480 of them
};
// Values of the type are rounded to `dtype`; products are summed in fp32 in a fixed order, scaled by the fp32
// absmax of their block and rounded once. Needs compute capability 8.0.
[[nodiscard]] wire::Status Multiply4BitOn(void* stream, const Product4& args);

// Ok when the current device runs this library's code; else why not.
[[nodiscard]] wire::Status CheckCurrentDevice();

}  // namespace bitpager::kernels::cuda
