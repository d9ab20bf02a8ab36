// The step of 8-bit states, fused over all tensors of a launch. A persistent grid; each warp takes segments
// of units of 256 elements, 8 a lane, and works alone: asynchronous copies bring its next units (parameters,
// gradients, codes) into its own slots of shared memory while it computes the current one in registers, so
// that loads never wait for a register. The absmaxes of a segment stay in registers, one unit a lane. Decode,
// update, absmax (warp reduction), exact encode and all stores of a unit happen at once; nothing in the
// numbers depends on which warp takes a unit or when.
#pragma once

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
  using Codes = CodeParts<Types::kSplit>;
  static constexpr std::uint32_t kWarps = kWide ? Types::kWarps : 8;
  static constexpr std::uint32_t kThreads = kWarps * kLanes;
  static constexpr std::uint32_t kSlots = kWide ? Types::kSlots : 1;
  static constexpr std::uint32_t kBlocks = kWide ? 1 : 2;               // a multiprocessor, at least
  static constexpr std::uint32_t kGradAt = kBlock * Types::kMostBytes;  // in a slot, behind the parameters
  static constexpr std::uint32_t kCodesAt = 2 * kGradAt;
  static constexpr std::uint32_t kSlotBytes = kCodesAt + kBlock * Rule::kStates;
  static constexpr std::uint32_t kWarpBytes = kSlots * kSlotBytes;

  // Warps whose slots fit into the rooms that the tables leave, and behind the tables.
  static constexpr std::uint32_t kIn0 = Layout::kRoom0 / kWarpBytes;
  static constexpr std::uint32_t kIn1 = Layout::kRoom1 / kWarpBytes;
  static constexpr std::uint32_t kBehind = kWarps > kIn0 + kIn1 ? kWarps - kIn0 - kIn1 : 0;
  // Of shared memory, from address 0: what lies before the block's own is not asked for.
  static constexpr std::uint32_t kSharedEnd = Layout::kEnd + kBehind * kWarpBytes;

  // Address of a warp's slots.
  __device__ static std::uint32_t SlotsAt(std::uint32_t warp) {
    if constexpr (kWide) {
      if (warp < kIn0) return Layout::kRoom0At + warp * kWarpBytes;
      warp -= kIn0;
      if (warp < kIn1) return Layout::kRoom1At + warp * kWarpBytes;
      warp -= kIn1;
    }
    return Layout::kEnd + warp * kWarpBytes;
  }
};

// A fast unit of one lane, as it was fetched.
template <typename Rule>
struct FetchedUnit {
  Four param[2];
  Four grad[2];
  std::uint32_t codes[Rule::kStates][2];
  float absmax[Rule::kStates];
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

template <bool kCareful, typename Types, typename Rule, bool kWide>
__device__ __forceinline__ void UpdateUnit(const FetchedUnit<Rule>& in, std::uint32_t mode,
                                           const Hyper& hyper, const Codec<kWide>& codec,
                                           UpdatedUnit<Rule>& out) {
  const bool decays = hyper.decay != 1.0F;
  float greatest[Rule::kStates];
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
      greatest[0] = h + i == 0 ? fabsf(m) : GreaterOrNan(greatest[0], fabsf(m));
      if constexpr (Rule::kStates == 2) {
        out.state[1][4 * h + i] = v;
        greatest[1] = h + i == 0 ? v : GreaterOrNan(greatest[1], v);
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

// Works through the fast units of a segment.
template <typename Rule, typename Types, bool kWide>
class FastUnits {
 public:
  using Shape = StepShape<Rule, Types, kWide>;
  using Codes = typename Shape::Codes;

  // `count` units of span `span` from unit `first` on; this warp's slots begin at `slots`.
  __device__ __forceinline__ FastUnits(const StepLaunch& launch, std::uint32_t span, std::uint32_t first,
                                       std::uint32_t count, const Codec<kWide>& codec, std::uint32_t lane,
                                       std::uint32_t slots)
      : launch_(launch), codec_(codec), span_(span), first_(first), count_(count), lane_(lane) {
    const StepEntry& entry = launch.entries[span];
    const StepUnit unit = UnitOf<Types>(entry, first, kBlock);
    mode_ = entry.mode;
    hyper_ = launch.hypers[entry.hyper];
    const std::uint32_t param_offset = Types::LaneOffset(Types::ParamBytes(mode_), lane);
    const std::uint32_t grad_offset = Types::LaneOffset(Types::GradBytes(mode_), lane);
    param_ = unit.param + param_offset;
    grad_ = unit.grad + grad_offset;
    param_slot_ = slots + param_offset;
    grad_slot_ = slots + Shape::kGradAt + grad_offset;
    codes_slot_ = slots + Shape::kCodesAt + Codes::LaneOffset(lane);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) {
      codes_[k] = unit.states + std::uint64_t{launch.plane_bytes} * k + Codes::LaneOffset(lane);
      if (lane < count) absmax_[k] = unit.absmax[k * launch.absmax_stride + lane];
    }
  }

  __device__ __forceinline__ void Run() {
#pragma unroll
    for (std::uint32_t i = 0; i < Shape::kSlots; ++i) Fetch(i, i * Shape::kSlotBytes);
    std::uint32_t slot = 0;
#pragma unroll 1
    for (std::uint32_t i = 0; i < count_; ++i) {
      AwaitCopies<Shape::kSlots - 1>();
      FetchedUnit<Rule> in;
      Load(i, slot, in);
      Fetch(i + Shape::kSlots, slot);
      if (!Step(i, in)) StepSlowly(i);
      slot = slot + Shape::kSlotBytes == Shape::kWarpBytes ? 0 : slot + Shape::kSlotBytes;
    }
    if (lane_ >= count_) return;
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) *AbsmaxAt(k, lane_) = absmax_[k];
  }

 private:
  // Starts the copies of unit i, if there is one.
  __device__ __forceinline__ void Fetch(std::uint32_t i, std::uint32_t slot) {
    if (i < count_) {
      const std::uint32_t param_bytes = Types::ParamBytes(mode_);
      const std::uint32_t grad_bytes = Types::GradBytes(mode_);
      Types::Fetch(grad_slot_ + slot, grad_ + i * (kBlock * grad_bytes), grad_bytes);
      Types::Fetch(param_slot_ + slot, param_ + i * (kBlock * param_bytes), param_bytes);
#pragma unroll
      for (int k = 0; k < Rule::kStates; ++k) {
        Codes::Fetch(codes_slot_ + slot + kBlock * k, codes_[k] + i * kBlock);
      }
    }
    EndOfCopies();
  }

  __device__ __forceinline__ void Load(std::uint32_t i, std::uint32_t slot, FetchedUnit<Rule>& in) const {
    Types::Load(param_slot_ + slot, Types::ParamBytes(mode_), in.param);
    Types::Load(grad_slot_ + slot, Types::GradBytes(mode_), in.grad);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) {
      Codes::Load(codes_slot_ + slot + kBlock * k, in.codes[k]);
      in.absmax[k] = __shfl_sync(kWholeWarp, absmax_[k], static_cast<int>(i));
    }
  }

  // False, with nothing stored, when the unit is one for the slow path.
  __device__ __forceinline__ bool Step(std::uint32_t i, const FetchedUnit<Rule>& in) {
    UpdatedUnit<Rule> now;
    if (Rule::NeedsCare(hyper_)) {
      UpdateUnit<true, Types>(in, mode_, hyper_, codec_, now);
    } else {
      UpdateUnit<false, Types>(in, mode_, hyper_, codec_, now);
    }
    std::uint32_t bits[Rule::kStates];
    float absmax[Rule::kStates];
    std::uint32_t above_least = 0;
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) {
      bits[k] = WarpMax(now.greatest[k]);
      absmax[k] = __uint_as_float(bits[k]);
      above_least = max(above_least, bits[k] - kLeastUsual);
    }
    if (above_least > kGreatestUsual - kLeastUsual) {
#pragma unroll
      for (int k = 0; k < Rule::kStates; ++k) {
        if (bits[k] > kGreatestUsual) return false;
      }
      LiftTiny<Rule>(now, absmax);
    }
    Store(i, now, absmax);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) {
      if (lane_ == i) absmax_[k] = __uint_as_float(bits[k]);
    }
    return true;
  }

  __device__ __forceinline__ void Store(std::uint32_t i, const UpdatedUnit<Rule>& now,
                                        const float (&absmax)[Rule::kStates]) const {
    const std::uint32_t param_bytes = Types::ParamBytes(mode_);
    Types::Store(param_ + i * (kBlock * param_bytes), param_bytes, now.param);
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) {
      const float inverse = ScaledInverse(absmax[k]);
      std::uint32_t codes[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float x[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) x[j] = FlushingProduct(now.state[k][4 * h + j], inverse);
        codes[h] = k == 0 ? codec_.EncodeSigned4(x) : codec_.EncodeMagnitude4(x);
      }
      Codes::Store(codes_[k] + i * kBlock, codes);
    }
  }

  // The slow path keeps the absmaxes in memory.
  __device__ __forceinline__ void StepSlowly(std::uint32_t i) {
    StepSlowUnit<Rule, Types>(launch_, span_, first_ + i, codec_, lane_);
    if (lane_ != i) return;
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) absmax_[k] = *AbsmaxAt(k, i);
  }

  __device__ float* AbsmaxAt(int k, std::uint32_t i) const {
    return launch_.entries[span_].absmax + k * launch_.absmax_stride + first_ + i;
  }

  const StepLaunch& launch_;
  const Codec<kWide>& codec_;
  std::uint32_t span_;
  std::uint32_t first_;
  std::uint32_t count_;
  std::uint32_t lane_;
  std::uint32_t mode_;
  Hyper hyper_;
  // This lane's part of unit 0, and its place in a slot.
  std::byte* param_;
  const std::byte* grad_;
  std::byte* codes_[Rule::kStates];
  std::uint32_t param_slot_;
  std::uint32_t grad_slot_;
  std::uint32_t codes_slot_;
  float absmax_[Rule::kStates];  // of unit `lane`
};

template <typename Rule, typename Types, bool kWide>
__global__ void __launch_bounds__(StepShape<Rule, Types, kWide>::kThreads,
                                  StepShape<Rule, Types, kWide>::kBlocks)
    Step8Kernel(const __grid_constant__ StepLaunch launch) {
  using Shape = StepShape<Rule, Types, kWide>;
  const std::uint32_t lane = threadIdx.x;  // the block is 32 wide
  const std::uint32_t warp = threadIdx.y;
  CheckSharedBegin();
  Codec<kWide>::Fill(warp * kLanes + lane, Shape::kThreads);
  __syncthreads();
  const Codec<kWide> codec(lane);
  // Neighbouring segments go to different multiprocessors, so that the last round loads all of them alike.
  StepWalk walk(launch, warp * gridDim.x + blockIdx.x);
  StepSegment segment;
  while (walk.Next(launch, lane, gridDim.x * Shape::kWarps, segment)) {
    const std::uint32_t end = segment.first + segment.units;
    const std::uint32_t fast_end = min(launch.entries[segment.span].fast_units, end);
    std::uint32_t at = segment.first;
    if (at < fast_end) {
      FastUnits<Rule, Types, kWide>(launch, segment.span, at, fast_end - at, codec, lane,
                                    Shape::SlotsAt(warp))
          .Run();
      at = fast_end;
    }
    for (; at < end; ++at) StepSlowUnit<Rule, Types>(launch, segment.span, at, codec, lane);
  }
}

}  // namespace bitpager::kernels::cuda
