// The weight ops of the CUDA device on a stream, without the device around them: what the launching functions
// of cuda_ops.h and the in-process library (local.h) share. No CUDA header is needed to include this. Each
// function only enqueues on `stream`, with the caller's context current; its arguments may end when it
// returns. Any thread. Sizes were validated before.
#pragma once

#include <cstdint>

#include "client/wire/status.h"
#include "kernels/ops.h"

struct CUstream_st;  // a cudaStream_t points to one

namespace bitpager::kernels::cuda {

// What kernels::Device promises of the methods of the same name (kernels/ops.h).
[[nodiscard]] wire::Status Dequantize(CUstream_st* stream, const DequantizeArgs& args);
[[nodiscard]] wire::Status BlockAbsmax(CUstream_st* stream, const BlockAbsmaxArgs& args);
[[nodiscard]] wire::Status NestAbsmax(CUstream_st* stream, const NestAbsmaxArgs& args);
[[nodiscard]] wire::Status Quantize(CUstream_st* stream, const QuantizeArgs& args);
[[nodiscard]] wire::Status MovePacked(CUstream_st* stream, const PackedArgs& args);

// Ok when this build holds code for the current device.
[[nodiscard]] wire::Status CheckKernels();

}  // namespace bitpager::kernels::cuda
