#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/status.h"
#include "kernels/cuda/table_copy.h"

namespace bitpager::kernels::cuda {
namespace {

constexpr std::uint32_t kThreads = 128;  // few: they are to find room beside a step's

// One granule a thread. Not cached: the place may have held another launch's table.
__global__ void __launch_bounds__(kThreads)
    CopyTableKernel(uint4* __restrict__ to, const uint4* from, std::uint32_t granules) {
  const std::uint32_t at = blockIdx.x * kThreads + threadIdx.x;
  if (at < granules) to[at] = __ldcv(from + at);
}

}  // namespace

wire::Status CopyTable(void* to, const void* pinned, std::size_t bytes, cudaStream_t stream) {
  static_assert(sizeof(uint4) == kTableGranule);
  const auto granules = static_cast<std::uint32_t>(bytes / kTableGranule);
  const std::uint32_t blocks = (granules + kThreads - 1) / kThreads;
  CopyTableKernel<<<blocks, kThreads, 0, stream>>>(static_cast<uint4*>(to), static_cast<const uint4*>(pinned),
                                                   granules);
  return LaunchStatus("copy of a launch table");
}

}  // namespace bitpager::kernels::cuda
