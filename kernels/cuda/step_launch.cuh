// What the step kernels share: the table of spans that one launch works through, the walk of a warp over its
// units, and access to the client's elements. Device code; the tables are written by the host (step.cu).
#pragma once

#include <cstddef>
#include <cstdint>

#include "client/wire/types.h"
#include "kernels/cuda/elements.cuh"
#include "kernels/ops.h"
#include "optim8bit/hyper.h"

namespace bitpager::kernels::cuda {

inline constexpr std::uint32_t kBlock = wire::kStateBlock;
inline constexpr std::uint32_t kLanes = 32;

// A span as a kernel reads it.
struct alignas(16) StepEntry {
  std::byte* states;  // first unit of the run in the plane of state 1
  float* absmax;      // likewise; unused for 32-bit states
  std::byte* param;   // of the first element
  const std::byte* grad;
  std::uint32_t first;  // number of the first unit in the launch
  std::uint32_t units;
  std::uint32_t fast_units;  // of these, from the first: aligned and full
  std::uint32_t tail;        // elements of the last unit
  std::uint32_t mode;        // see StepMode
  std::uint32_t hyper;
  std::uint32_t tensor;
};
static_assert(sizeof(StepEntry) == 64);

// param dtype | grad dtype << 8.
struct StepMode {
  __host__ __device__ static constexpr std::uint32_t Of(wire::DType param, wire::DType grad) {
    return static_cast<std::uint32_t>(param) | static_cast<std::uint32_t>(grad) << 8;
  }
  __host__ __device__ static constexpr wire::DType Param(std::uint32_t mode) {
    return static_cast<wire::DType>(mode & 0xFFU);
  }
  __host__ __device__ static constexpr wire::DType Grad(std::uint32_t mode) {
    return static_cast<wire::DType>(mode >> 8 & 0xFFU);
  }
};

// The entry of a span whose first unit is number `first` of the launch.
[[nodiscard]] inline StepEntry EntryOf(const optim8bit::StateLayout& layout, const StepSpan& span,
                                       std::uint32_t first) {
  const std::uint32_t unit_bytes = layout.bits == wire::StateBits::k8 ? kBlock : 4 * kBlock;
  const bool aligned =
      (reinterpret_cast<std::uintptr_t>(span.param) | reinterpret_cast<std::uintptr_t>(span.grad)) % 16 == 0;
  StepEntry entry{};
  entry.states = span.page + std::uint64_t{span.first_unit} * unit_bytes;
  entry.absmax = reinterpret_cast<float*>(span.page + layout.absmax_offset) + span.first_unit;
  entry.param = static_cast<std::byte*>(span.param);
  entry.grad = static_cast<const std::byte*>(span.grad);
  entry.first = first;
  entry.units = span.units;
  entry.fast_units = aligned ? static_cast<std::uint32_t>(span.elements / kBlock) : 0;
  entry.tail = static_cast<std::uint32_t>(span.elements - (span.units - 1) * std::uint64_t{kBlock});
  entry.mode = StepMode::Of(span.param_dtype, span.grad_dtype);
  entry.hyper = span.hyper;
  entry.tensor = span.tensor;
  return entry;
}

// One launch over `units` units of `spans` spans. `firsts[s]` repeats entries[s].first, for the search.
struct StepLaunch {
  const StepEntry* entries;
  const std::uint32_t* firsts;
  const optim8bit::Hyper* hypers;
  StepReport* report;  // may be null
  std::uint32_t spans;
  std::uint32_t units;
  std::uint32_t run_shift;      // a warp takes 2^run_shift consecutive units, then skips those of the others
  std::uint32_t plane_bytes;    // between the planes of the two states
  std::uint32_t absmax_stride;  // in floats
  bool skip_nonfinite;
};

// One unit: 256 elements or fewer, and where all of it lies.
struct StepUnit {
  std::byte* states;
  float* absmax;
  std::byte* param;
  const std::byte* grad;
  std::uint32_t elements;
  std::uint32_t mode;
  std::uint32_t tensor;
};

// Unit `at` of a span; it has `state_bytes` in a plane of states.
template <typename Types>
__device__ __forceinline__ StepUnit UnitOf(const StepEntry& entry, std::uint32_t at,
                                           std::uint32_t state_bytes) {
  return {entry.states + std::uint64_t{at} * state_bytes,
          entry.absmax + at,
          entry.param + std::uint64_t{at} * (kBlock * Types::ParamBytes(entry.mode)),
          entry.grad + std::uint64_t{at} * (kBlock * Types::GradBytes(entry.mode)),
          at + 1 == entry.units ? entry.tail : kBlock,
          entry.mode,
          entry.tensor};
}

// Consecutive units of one span that a warp takes in a row: a lane each at most.
struct StepSegment {
  std::uint32_t span;
  std::uint32_t first;  // unit of the span
  std::uint32_t units;
};

__device__ __forceinline__ std::uint32_t WarpMax(std::uint32_t x) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(kWholeWarp, x);
#else
  for (int step = 16; step != 0; step /= 2) x = max(x, __shfl_xor_sync(kWholeWarp, x, step));
  return x;
#endif
}

// The segments of one warp, ascending. All lanes hold the same.
class StepWalk {
 public:
  __device__ StepWalk(const StepLaunch& launch, std::uint32_t warp) : unit_(warp << launch.run_shift) {}

  // False when none is left. `warps`: that share the launch.
  __device__ __forceinline__ bool Next(const StepLaunch& launch, std::uint32_t lane, std::uint32_t warps,
                                       StepSegment& out) {
    if (unit_ >= launch.units) return false;
    if (unit_ >= end_) Seek(launch, lane);
    const std::uint32_t run_end = ((unit_ >> launch.run_shift) + 1) << launch.run_shift;
    const std::uint32_t stop = min(run_end, end_);
    out = {span_, unit_ - launch.firsts[span_], stop - unit_};
    unit_ = stop == run_end ? stop + ((warps - 1) << launch.run_shift) : stop;
    return true;
  }

 private:
  // The last span, from span_ on, that starts at or before unit_: 32 probes at a time.
  __device__ void Seek(const StepLaunch& launch, std::uint32_t lane) {
    std::uint32_t count = launch.spans - span_;
    while (true) {
      const std::uint32_t stride = (count + kLanes - 1) / kLanes;
      const std::uint32_t probe = lane * stride;
      const bool before = probe < count && launch.firsts[span_ + probe] <= unit_;
      const int passed = __popc(__ballot_sync(kWholeWarp, before));
      span_ += static_cast<std::uint32_t>(passed - 1) * stride;
      if (stride == 1) break;
      count = min(stride, launch.spans - span_);
    }
    end_ = span_ + 1 < launch.spans ? launch.firsts[span_ + 1] : launch.units;
  }

  std::uint32_t unit_;
  std::uint32_t span_ = 0;
  std::uint32_t end_ = 0;  // first unit behind the current span
};

__device__ __forceinline__ float LoadElement(wire::DType dtype, const std::byte* data, std::uint32_t i) {
  if (dtype == wire::DType::kF32) return reinterpret_cast<const float*>(data)[i];
  const std::uint32_t bits = reinterpret_cast<const std::uint16_t*>(data)[i];
  return dtype == wire::DType::kBF16 ? __uint_as_float(bits << 16) : HalfToFloat(bits);
}
__device__ __forceinline__ std::uint16_t RoundTo16(wire::DType dtype, float x) {
  return static_cast<std::uint16_t>(dtype == wire::DType::kBF16 ? FloatsToPair<wire::DType::kBF16>(x, x)
                                                                : FloatsToPair<wire::DType::kF16>(x, x));
}
__device__ __forceinline__ void StoreAt(wire::DType dtype, std::byte* data, std::uint32_t i, float x) {
  if (dtype == wire::DType::kF32) {
    reinterpret_cast<float*>(data)[i] = x;
  } else {
    reinterpret_cast<std::uint16_t*>(data)[i] = RoundTo16(dtype, x);
  }
}
__device__ __forceinline__ float Rounded(wire::DType dtype, float x) {
  if (dtype == wire::DType::kF32) return x;
  const std::uint16_t bits = RoundTo16(dtype, x);
  return LoadElement(dtype, reinterpret_cast<const std::byte*>(&bits), 0);
}

// True when a gradient of the unit is NaN or inf. All lanes of the warp.
__device__ inline bool UnitHasNonFinite(const StepUnit& unit, std::uint32_t lane) {
  bool bad = false;
  for (std::uint32_t i = lane; i < unit.elements; i += kLanes) {
    bad = bad || !isfinite(LoadElement(StepMode::Grad(unit.mode), unit.grad, i));
  }
  return __any_sync(kWholeWarp, bad);
}

// Counts a skipped unit. The report may lie in host memory: it is touched only here. The op's event
// publishes it.
__device__ inline void ReportNonFinite(const StepLaunch& launch, const StepUnit& unit, std::uint32_t lane) {
  static_assert(sizeof(unsigned long long) == sizeof(std::uint64_t));
  if (lane != 0 || launch.report == nullptr) return;
  atomicAdd(reinterpret_cast<unsigned long long*>(&launch.report->nonfinite_blocks), 1ULL);
  atomicMin(&launch.report->first_tensor, unit.tensor);
}

}  // namespace bitpager::kernels::cuda
