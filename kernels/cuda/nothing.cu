#include <cuda_runtime.h>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/status.h"

namespace bitpager::kernels::cuda {
namespace {

__global__ void NothingKernel() {}

}  // namespace

wire::Status LaunchNothing(CUstream_st* stream) {
  NothingKernel<<<1, 1, 0, stream>>>();
  return LaunchStatus("empty kernel");
}

}  // namespace bitpager::kernels::cuda
