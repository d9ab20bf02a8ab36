// Moves of a weight's absmax planes between pages and plain planes, for the ops that need only those.
// Enqueues on the stream; any thread.
#pragma once

#include "kernels/cuda/weights.h"

namespace bitpager::kernels::cuda {

// As MovePacked, without the packed codes.
[[nodiscard]] wire::Status MoveScales(CUstream_st* stream, const PackedArgs& args);

// The move that brings a quantization's given absmaxes into its pages.
[[nodiscard]] PackedArgs ScalesInto(const QuantizeArgs& args);

}  // namespace bitpager::kernels::cuda
