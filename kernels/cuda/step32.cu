// The step of fp32 states, fused over all tensors of a launch: a warp a unit of 256 elements, 8 a lane in
// two groups of four. Nothing but memory bounds it, so loads go straight to registers and many warps hide
// them. Device code, and its launch by the device thread.
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda/status.h"
#include "kernels/cuda/step8_types.cuh"
#include "kernels/cuda/step_kernels.h"
#include "kernels/cuda/step_launch.cuh"
#include "kernels/cuda/step_rules.cuh"

namespace bitpager::kernels::cuda {
namespace {

constexpr std::uint32_t kWarps = 8;  // of a thread block
constexpr std::uint32_t kBlocksEach = 4;
constexpr std::uint32_t kUnitBytes = 4 * kBlock;  // in a plane

__device__ __forceinline__ float* ValueAt(const StepLaunch& launch, const StepUnit& unit, int k) {
  return reinterpret_cast<float*>(unit.states + std::uint64_t{launch.plane_bytes} * k);
}

__device__ __forceinline__ void LoadParts(const std::byte* at, std::uint32_t bytes, Four (&out)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (bytes == 4) {
      const uint4 w = *reinterpret_cast<const uint4*>(at + 512 * h);
      out[h] = {w.x, w.y, w.z, w.w};
    } else {
      const uint2 w = *reinterpret_cast<const uint2*>(at + 256 * h);
      out[h] = {w.x, w.y, 0, 0};
    }
  }
}

// Updates one parameter, rounded as `dtype` in between and not yet at the end.
template <typename Rule>
__device__ __forceinline__ float UpdateRounded(const Hyper& hyper, DType dtype, float p, float g, float* m,
                                               float* v) {
  const bool decays = hyper.decay != 1.0F;
  if (Rule::kDecayFirst && decays) p = Rounded(dtype, p * hyper.decay);
  p = Rule::NeedsCare(hyper) ? Rule::template Update<true>(hyper, p, g, m, v)
                             : Rule::template Update<false>(hyper, p, g, m, v);
  if (!Rule::kDecayFirst && decays) p = Rounded(dtype, p) * hyper.decay;
  return p;
}

template <typename Rule>
__device__ __forceinline__ void StepFullUnit(const StepLaunch& launch, const StepUnit& unit,
                                             const Hyper& hyper, std::uint32_t lane) {
  const std::uint32_t param_bytes = AnyTypes::ParamBytes(unit.mode);
  const std::uint32_t grad_bytes = AnyTypes::GradBytes(unit.mode);
  std::byte* const param_at = unit.param + AnyTypes::LaneOffset(param_bytes, lane);
  Four param[2];
  Four grad[2];
  float4 state[Rule::kStates][2];
  LoadParts(unit.grad + AnyTypes::LaneOffset(grad_bytes, lane), grad_bytes, grad);
  LoadParts(param_at, param_bytes, param);
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) {
    for (int h = 0; h < 2; ++h) {
      state[k][h] = reinterpret_cast<const float4*>(ValueAt(launch, unit, k))[lane + kLanes * h];
    }
  }
  float g[2][4];
  bool bad = false;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    AnyTypes::Grad(unit.mode, grad[h], g[h]);
    for (const float x : g[h]) bad = bad || !isfinite(x);
  }
  if (launch.skip_nonfinite && __any_sync(kWholeWarp, bad)) {
    ReportNonFinite(launch, unit, lane);
    return;
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float p[4];
    float unused = 0.0F;
    AnyTypes::Param(unit.mode, param[h], p);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float* const m = reinterpret_cast<float*>(&state[0][h]) + i;
      float* const v =
          Rule::kStates == 2 ? reinterpret_cast<float*>(&state[Rule::kStates - 1][h]) + i : &unused;
      p[i] = UpdateRounded<Rule>(hyper, StepMode::Param(unit.mode), p[i], g[h][i], m, v);
    }
    param[h] = AnyTypes::Pack(unit.mode, p);
    for (int k = 0; k < Rule::kStates; ++k) {
      reinterpret_cast<float4*>(ValueAt(launch, unit, k))[lane + kLanes * h] = state[k][h];
    }
  }
  AnyTypes::Store(param_at, param_bytes, param);
}

// A short or misaligned unit.
template <typename Rule>
__device__ __noinline__ void StepOtherUnit(const StepLaunch& launch, StepUnit unit, Hyper hyper,
                                           std::uint32_t lane) {
  if (launch.skip_nonfinite && UnitHasNonFinite(unit, lane)) {
    ReportNonFinite(launch, unit, lane);
    return;
  }
  const DType dtype = StepMode::Param(unit.mode);
  for (std::uint32_t i = lane; i < kBlock; i += kLanes) {
    float s[2] = {0.0F, 0.0F};
    if (i < unit.elements) {
      for (int k = 0; k < Rule::kStates; ++k) s[k] = ValueAt(launch, unit, k)[i];
      const float g = LoadElement(StepMode::Grad(unit.mode), unit.grad, i);
      const float p = LoadElement(dtype, unit.param, i);
      StoreAt(dtype, unit.param, i, UpdateRounded<Rule>(hyper, dtype, p, g, &s[0], &s[1]));
    }
    for (int k = 0; k < Rule::kStates; ++k) ValueAt(launch, unit, k)[i] = s[k];
  }
}

template <typename Rule>
__global__ void __launch_bounds__(kWarps* kLanes, kBlocksEach)
    Step32Kernel(const __grid_constant__ StepLaunch launch) {
  const std::uint32_t lane = threadIdx.x % kLanes;
  StepWalk walk(launch, blockIdx.x * kWarps + threadIdx.x / kLanes);
  StepSegment segment;
  while (walk.Next(launch, lane, gridDim.x * kWarps, segment)) {
    const StepEntry entry = launch.entries[segment.span];
    const Hyper hyper = launch.hypers[entry.hyper];
    for (std::uint32_t at = segment.first; at < segment.first + segment.units; ++at) {
      const StepUnit unit = UnitOf<AnyTypes>(entry, at, kUnitBytes);
      if (at < entry.fast_units) {
        StepFullUnit<Rule>(launch, unit, hyper, lane);
      } else {
        StepOtherUnit<Rule>(launch, unit, hyper, lane);
      }
    }
  }
}

}  // namespace

wire::Status LaunchStep32(LaunchContext& context, wire::Rule rule, StepLaunch launch) {
  const auto most = static_cast<std::uint32_t>(context.multiprocessors()) * kBlocksEach;
  launch.run_shift = RunShift(launch.units, std::uint64_t{most} * kWarps);
  const std::uint32_t runs = ((launch.units - 1) >> launch.run_shift) + 1;
  const std::uint32_t blocks = std::min(most, (runs - 1) / kWarps + 1);
  const auto kernel = rule == wire::Rule::kAdam ? Step32Kernel<AdamStep> : Step32Kernel<LionStep>;
  kernel<<<blocks, kWarps * kLanes, 0, context.stream()>>>(launch);
  return LaunchStatus("32-bit step");
}

}  // namespace bitpager::kernels::cuda
