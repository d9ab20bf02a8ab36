// The step of 8-bit states, fused over all tensors of a launch. A persistent grid; each warp takes units of
// 256 elements, 8 a lane, and works alone: asynchronous copies bring its next units (parameters, gradients,
// codes, absmaxes) into its own slots of shared memory while it computes the current one in registers, so
// that loads never wait for a register. Decode, update, absmax (warp reduction), exact encode and all stores
// of a unit happen at once; nothing in the numbers depends on which warp takes a unit or when.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>

#include "kernels/cuda/step8_slow.cuh"
#include "kernels/cuda/step8_types.cuh"
#include "kernels/cuda/step_codec.cuh"
#include "kernels/cuda/step_launch.cuh"
#include "kernels/cuda/step_rules.cuh"

namespace bitpager::kernels::cuda {

// How a thread block is cut. Wide: one block a multiprocessor, with most of its shared memory. Narrow: for
// devices with 64 KiB of it.
template <typename Rule, typename Types, bool kWide>
struct StepShape {
  using Layout = CodecLayout<kWide>;
  static constexpr std::uint32_t kWarps = kWide ? Types::kWarps : 8;
  static constexpr std::uint32_t kThreads = kWarps * kLanes;
  static constexpr std::uint32_t kSlots = kWide ? Types::kSlots : 1;
  static constexpr std::uint32_t kBlocks = kWide ? 1 : 2;  // a multiprocessor, at least
  // A slot: the unit, its absmaxes, then its data.
  static constexpr std::uint32_t kAbsmaxAt = sizeof(StepUnit);
  static constexpr std::uint32_t kParamAt = 64;
  static constexpr std::uint32_t kGradAt = kParamAt + kBlock * Types::kMostBytes;
  static constexpr std::uint32_t kCodesAt = kGradAt + kBlock * Types::kMostBytes;
  static constexpr std::uint32_t kSlotBytes = kCodesAt + kBlock * Rule::kStates;
  static constexpr std::uint32_t kWarpBytes = kSlots * kSlotBytes;
  static constexpr std::uint32_t kInGap = (Layout::kPositive - Layout::kGapBegin) / kWarpBytes;  // warps
  static constexpr std::uint32_t kSharedBytes =
      Layout::kEnd + (kWarps > kInGap ? kWarps - kInGap : 0) * kWarpBytes;

  __device__ static std::uint32_t SlotsAt(std::uint32_t warp) {
    if constexpr (kInGap == 0) {
      return Layout::kEnd + warp * kWarpBytes;
    } else {
      return warp < kInGap ? Layout::kGapBegin + warp * kWarpBytes
                           : Layout::kEnd + (warp - kInGap) * kWarpBytes;
    }
  }
};

// Starts the copies of a unit into a slot.
template <typename Rule, typename Types, bool kWide>
__device__ __forceinline__ void Fetch(const StepLaunch& launch, StepWalk& walk, unsigned char* slot,
                                      std::uint32_t lane) {
  using Shape = StepShape<Rule, Types, kWide>;
  const StepUnit unit = walk.Next<Types>(launch, lane, kBlock);
  if (lane == 0) *reinterpret_cast<StepUnit*>(slot) = unit;
  if ((unit.mode & StepMode::kFast) != 0) {
    const std::uint32_t param_bytes = kBlock * Types::ParamBytes(unit.mode);
    const std::uint32_t grad_bytes = kBlock * Types::GradBytes(unit.mode);
#pragma unroll
    for (std::uint32_t at = 0; at < kBlock * Types::kMostBytes; at += 16 * kLanes) {
      const std::uint32_t mine = at + 16 * lane;
      if (at < grad_bytes) {
        __pipeline_memcpy_async(slot + Shape::kGradAt + mine, unit.grad + mine, 16);
      }
      if (at < param_bytes) {
        __pipeline_memcpy_async(slot + Shape::kParamAt + mine, unit.param + mine, 16);
      }
    }
    const std::uint32_t k = lane / 16;  // half a warp copies a state's codes
    if (k < Rule::kStates) {
      __pipeline_memcpy_async(slot + Shape::kCodesAt + 16 * lane,
                              unit.states + k * launch.plane_bytes + 16 * (lane % 16), 16);
    }
    if (lane < Rule::kStates) {
      __pipeline_memcpy_async(slot + Shape::kAbsmaxAt + 4 * lane, unit.absmax + lane * launch.absmax_stride,
                              4);
    }
  }
  __pipeline_commit();
}

// A fast unit of one lane, as it was fetched.
template <typename Rule, typename Types, bool kWide>
struct FetchedUnit {
  using Shape = StepShape<Rule, Types, kWide>;
  Four param[2];
  Four grad[2];
  std::uint32_t codes[Rule::kStates][2];
  float absmax[Rule::kStates];

  __device__ __forceinline__ void Load(const unsigned char* slot, std::uint32_t mode, std::uint32_t lane) {
    Types::Load(slot + Shape::kParamAt, Types::ParamBytes(mode), lane, param);
    Types::Load(slot + Shape::kGradAt, Types::GradBytes(mode), lane, grad);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) {
      const unsigned char* at = slot + Shape::kCodesAt + kBlock * k;
      if constexpr (Types::kSplit) {
        codes[k][0] = reinterpret_cast<const std::uint32_t*>(at)[lane];
        codes[k][1] = reinterpret_cast<const std::uint32_t*>(at)[lane + kLanes];
      } else {
        const uint2 both = reinterpret_cast<const uint2*>(at)[lane];
        codes[k][0] = both.x;
        codes[k][1] = both.y;
      }
      absmax[k] = reinterpret_cast<const float*>(slot + Shape::kAbsmaxAt)[k];
    }
  }
};

// What a unit becomes.
template <typename Rule>
struct UpdatedUnit {
  Four param[2];
  float state[Rule::kStates][8];
  std::uint32_t greatest[Rule::kStates];  // of this lane, as bits; NaN above all
};

__device__ __forceinline__ float GreaterOrNan(float a, float b) {
#if __CUDA_ARCH__ >= 800
  float out;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
  return out;
#else
  return __uint_as_float(max(__float_as_uint(a), __float_as_uint(b)));
#endif
}

template <bool kCareful, typename Rule, typename Types, bool kWide>
__device__ __forceinline__ void UpdateUnit(const FetchedUnit<Rule, Types, kWide>& in, std::uint32_t mode,
                                           const Hyper& hyper, const Codec<kWide>& codec,
                                           UpdatedUnit<Rule>& out) {
  const bool decays = hyper.decay != 1.0F;
  float greatest[Rule::kStates] = {};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float p[4];
    float g[4];
    Types::Param(mode, in.param[h], p);
    Types::Grad(mode, in.grad[h], g);
    if (Rule::kDecayFirst && decays) {
#pragma unroll
      for (int i = 0; i < 4; ++i) p[i] *= hyper.decay;
      Types::Param(mode, Types::Pack(mode, p), p);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float m = codec.template Decode<0>(in.codes[0][h], i) * in.absmax[0];
      float v = 0.0F;
      if constexpr (Rule::kStates == 2) v = codec.template Decode<1>(in.codes[1][h], i) * in.absmax[1];
      p[i] = Rule::template Update<kCareful>(hyper, p[i], g[i], &m, &v);
      out.state[0][4 * h + i] = m;
      greatest[0] = GreaterOrNan(greatest[0], fabsf(m));
      if constexpr (Rule::kStates == 2) {
        out.state[1][4 * h + i] = v;
        greatest[1] = GreaterOrNan(greatest[1], v);
      }
    }
    if (!Rule::kDecayFirst && decays) {
      Types::Param(mode, Types::Pack(mode, p), p);
#pragma unroll
      for (int i = 0; i < 4; ++i) p[i] *= hyper.decay;
    }
    out.param[h] = Types::Pack(mode, p);
  }
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) out.greatest[k] = __float_as_uint(greatest[k]) & 0x7FFFFFFFU;
}

// Multiplies states whose absmax is tiny, and it, by 2^64: their quotients stay what they are.
template <typename Rule>
__device__ __forceinline__ void LiftTiny(UpdatedUnit<Rule>& unit, float (&absmax)[Rule::kStates]) {
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) {
    if (IsUsual(__float_as_uint(absmax[k]))) continue;
    absmax[k] *= 0x1p64F;
#pragma unroll
    for (float& x : unit.state[k]) x *= 0x1p64F;
  }
}

template <typename Types, typename Rule, bool kWide>
__device__ __forceinline__ void StoreUnit(const StepLaunch& launch, const StepUnit& unit,
                                          const UpdatedUnit<Rule>& now, const float (&absmax)[Rule::kStates],
                                          const Codec<kWide>& codec, std::uint32_t lane) {
  Types::Store(unit.param, Types::ParamBytes(unit.mode), lane, now.param);
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) {
    const float inverse = ScaledInverse(absmax[k]);
    std::uint32_t codes[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = FlushingProduct(now.state[k][4 * h + i], inverse);
      codes[h] = k == 0 ? codec.EncodeSigned4(x) : codec.EncodeMagnitude4(x);
    }
    std::byte* const at = unit.states + k * launch.plane_bytes;
    if constexpr (Types::kSplit) {
      StoreGlobal(reinterpret_cast<std::uint32_t*>(at) + lane, codes[0]);
      StoreGlobal(reinterpret_cast<std::uint32_t*>(at) + lane + kLanes, codes[1]);
    } else {
      StoreGlobal(reinterpret_cast<uint2*>(at) + lane, make_uint2(codes[0], codes[1]));
    }
  }
}

// False, with nothing stored, when the unit is one for the slow path.
template <typename Rule, typename Types, bool kWide>
__device__ __forceinline__ bool StepFastUnit(const StepLaunch& launch, const StepUnit& unit,
                                             const FetchedUnit<Rule, Types, kWide>& in, const Hyper& hyper,
                                             const Codec<kWide>& codec, std::uint32_t lane) {
  UpdatedUnit<Rule> now;
  if (Rule::NeedsCare(hyper)) {
    UpdateUnit<true>(in, unit.mode, hyper, codec, now);
  } else {
    UpdateUnit<false>(in, unit.mode, hyper, codec, now);
  }
  std::uint32_t bits[Rule::kStates];
  float absmax[Rule::kStates];
  bool usual = true;
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) {
    bits[k] = WarpMax(now.greatest[k]);
    absmax[k] = __uint_as_float(bits[k]);
    usual = usual && IsUsual(bits[k]);
  }
  if (!usual) {
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) {
      if (bits[k] > kGreatestUsual) return false;
    }
    LiftTiny<Rule>(now, absmax);
  }
  StoreUnit<Types>(launch, unit, now, absmax, codec, lane);
  if (lane == 0) {
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) {
      StoreGlobal(unit.absmax + k * launch.absmax_stride, __uint_as_float(bits[k]));
    }
  }
  return true;
}

template <typename Rule, typename Types, bool kWide>
__global__ void __launch_bounds__(StepShape<Rule, Types, kWide>::kThreads,
                                  StepShape<Rule, Types, kWide>::kBlocks)
    Step8Kernel(const __grid_constant__ StepLaunch launch) {
  using Shape = StepShape<Rule, Types, kWide>;
  const std::uint32_t lane = threadIdx.x;  // the block is 32 wide
  const std::uint32_t warp = threadIdx.y;
  Codec<kWide>::Fill(warp * kLanes + lane, Shape::kThreads);
  const Codec<kWide> codec{4 * lane};
  StepWalk walk(launch, blockIdx.x * Shape::kWarps + warp, gridDim.x * Shape::kWarps);
  unsigned char* const slots = step_shared + Shape::SlotsAt(warp);
  for (std::uint32_t s = 0; s < Shape::kSlots; ++s) {
    Fetch<Rule, Types, kWide>(launch, walk, slots + s * Shape::kSlotBytes, lane);
  }
  __syncthreads();
  Hyper hyper;
  std::uint32_t hyper_index = ~0U;
  for (std::uint32_t turn = 0;; turn = turn + 1 < Shape::kSlots ? turn + 1 : 0) {
    unsigned char* const slot = slots + turn * Shape::kSlotBytes;
    __pipeline_wait_prior(Shape::kSlots - 1);
    __syncwarp();
    const StepUnit unit = *reinterpret_cast<const StepUnit*>(slot);
    if (unit.elements == 0) break;
    FetchedUnit<Rule, Types, kWide> in;
    in.Load(slot, unit.mode, lane);
    __syncwarp();
    Fetch<Rule, Types, kWide>(launch, walk, slot, lane);
    if (unit.hyper != hyper_index) {
      hyper_index = unit.hyper;
      hyper = launch.hypers[hyper_index];
    }
    if ((unit.mode & StepMode::kFast) != 0 && StepFastUnit<Rule>(launch, unit, in, hyper, codec, lane)) {
      continue;
    }
    StepSlowUnit<Rule>(launch, unit, hyper, codec);
  }
}

}  // namespace bitpager::kernels::cuda
