// The instances of the 8-bit step and their launch. The device thread.
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda/status.h"
#include "kernels/cuda/step8.cuh"
#include "kernels/cuda/step_kernels.h"

namespace bitpager::kernels::cuda {
namespace {

struct SharedLimits {
  int most = 0;      // of a thread block
  int reserved = 0;  // of it, before the block's own
};

template <typename Rule, typename Types, bool kWide>
wire::Status Enqueue(LaunchContext& context, SharedLimits limits, StepLaunch launch) {
  using Shape = StepShape<Rule, Types, kWide>;
  const auto kernel = Step8Kernel<Rule, Types, kWide>;
  const int shared_bytes = static_cast<int>(Shape::kSharedEnd) - limits.reserved;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return StatusOf(error, "give the step kernel its shared memory");
  const auto most = static_cast<std::uint32_t>(context.multiprocessors()) * Shape::kBlocks;
  launch.run_shift = RunShift(launch.units, std::uint64_t{most} * Shape::kWarps);
  const std::uint32_t runs = ((launch.units - 1) >> launch.run_shift) + 1;
  const std::uint32_t blocks = std::min(most, runs);
  kernel<<<blocks, dim3(kLanes, Shape::kWarps), static_cast<std::size_t>(shared_bytes), context.stream()>>>(
      launch);
  return LaunchStatus("8-bit step");
}

template <typename Rule>
wire::Status EnqueueRule(LaunchContext& context, StepTypes types, const StepLaunch& launch) {
  int device = 0;
  SharedLimits limits;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&limits.most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&limits.reserved, cudaDevAttrReservedSharedMemoryPerBlock, device);
  }
  if (error != cudaSuccess) return StatusOf(error, "ask for the shared memory of a multiprocessor");
  if (context.shared_bytes() > 0) limits.most = std::min(limits.most, context.shared_bytes());
  using Widest = StepShape<Rule, AnyTypes, true>;
  if (limits.most < static_cast<int>(Widest::kSharedEnd) - limits.reserved) {
    return Enqueue<Rule, AnyTypes, false>(context, limits, launch);
  }
  switch (types) {
    case StepTypes::kF32:
      return Enqueue<Rule, SameTypes<DType::kF32>, true>(context, limits, launch);
    case StepTypes::kBF16:
      return Enqueue<Rule, SameTypes<DType::kBF16>, true>(context, limits, launch);
    case StepTypes::kAny:
      break;
  }
  return Enqueue<Rule, AnyTypes, true>(context, limits, launch);
}

}  // namespace

wire::Status LaunchStep8(LaunchContext& context, wire::Rule rule, StepTypes types, StepLaunch launch) {
  return rule == wire::Rule::kAdam ? EnqueueRule<AdamStep>(context, types, launch)
                                   : EnqueueRule<LionStep>(context, types, launch);
}

}  // namespace bitpager::kernels::cuda
