// Moves of a weight's absmax planes alone. Any thread.
#pragma once

#include "kernels/cuda/weights.h"

namespace bitpager::kernels::cuda {

// The move that brings a quantization's given absmaxes into its pages.
[[nodiscard]] PackedArgs ScalesInto(const QuantizeArgs& args);

}  // namespace bitpager::kernels::cuda
