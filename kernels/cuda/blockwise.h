// 8-bit blockwise quantization on a stream: what local.h gives to clients, without its checks. Only enqueues.
// Any thread, the caller's context current. No CUDA header is needed to include this.
#pragma once

#include <cstdint>

#include "client/wire/status.h"
#include "client/wire/types.h"

struct CUstream_st;  // a cudaStream_t points to one

namespace bitpager::kernels::cuda {

// Which entries codes stand for. The dynamic maps are known here and encode faster.
enum class MapKind : std::uint8_t { kSignedDynamic = 0, kUnsignedDynamic = 1, kGiven = 2 };

struct Blockwise {
  MapKind kind = MapKind::kSignedDynamic;
  const float* map = nullptr;  // kGiven: 256 ascending finite floats on the device
  wire::DType dtype = wire::DType::kF32;
  std::byte* plain = nullptr;  // only read when quantizing
  std::uint64_t elements = 0;
  std::uint32_t blocksize = 4096;  // a power of two, 32 to 4096
  std::uint8_t* codes = nullptr;
  float* absmax = nullptr;  // one a block
};

// codes[i] = entry nearest to x / absmax, ties to the entry nearer to zero; as quant::EncodeBlock8.
[[nodiscard]] wire::Status EncodeBlockwise(CUstream_st* stream, const Blockwise& args);
// plain[i] = map[codes[i]] * absmax in fp32, then rounded. The map may be in any order.
[[nodiscard]] wire::Status DecodeBlockwise(CUstream_st* stream, const Blockwise& args);

}  // namespace bitpager::kernels::cuda
