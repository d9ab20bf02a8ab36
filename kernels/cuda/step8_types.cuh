// Parameters and gradients of a full, aligned unit between memory and registers: eight elements a lane, as
// two groups of four. One type for each pair of dtypes that has a path of its own, and one that decides at
// run time for every other pair. Device code.
#pragma once

#include <cstdint>

#include "kernels/cuda/step_launch.cuh"

namespace bitpager::kernels::cuda {

using wire::DType;

// Which elements a lane holds: 16-bit pairs, eight neighbours (16 bytes); others, four neighbours in each
// half of the unit, so that 16-byte accesses of a warp touch 512 consecutive bytes.
template <bool kSplit>
__device__ __forceinline__ std::uint32_t FirstOf(std::uint32_t lane, int group) {
  return kSplit ? 128 * static_cast<std::uint32_t>(group) + 4 * lane
                : 8 * lane + 4 * static_cast<std::uint32_t>(group);
}

// A store to device memory: the compiler cannot know that a pointer from shared memory leads there.
template <typename T>
__device__ __forceinline__ void StoreGlobal(T* at, T value) {
#ifdef BITPAGER_LAB_STREAMING
  __stcs(at, value);
#else
  __stwb(at, value);
#endif
}

struct Four {
  std::uint32_t words[4];  // two are used by 16-bit elements
};

template <DType kType>
__device__ __forceinline__ void ToFloats(const Four& in, float (&out)[4]) {
  if constexpr (kType == DType::kF32) {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = __uint_as_float(in.words[i]);
  } else {
    const float2 low = PairToFloats<kType>(in.words[0]);
    const float2 high = PairToFloats<kType>(in.words[1]);
    out[0] = low.x;
    out[1] = low.y;
    out[2] = high.x;
    out[3] = high.y;
  }
}
template <DType kType>
__device__ __forceinline__ Four FromFloats(const float (&in)[4]) {
  if constexpr (kType == DType::kF32) {
    return {__float_as_uint(in[0]), __float_as_uint(in[1]), __float_as_uint(in[2]), __float_as_uint(in[3])};
  } else {
    return {FloatsToPair<kType>(in[0], in[1]), FloatsToPair<kType>(in[2], in[3]), 0, 0};
  }
}
__device__ __forceinline__ Four LoadWide(const unsigned char* at, bool four_bytes) {
  if (four_bytes) {
    const uint4 w = *reinterpret_cast<const uint4*>(at);
    return {w.x, w.y, w.z, w.w};
  }
  const uint2 w = *reinterpret_cast<const uint2*>(at);
  return {w.x, w.y, 0, 0};
}
__device__ __forceinline__ void StoreWide(std::byte* at, const Four& in, bool four_bytes) {
  if (four_bytes) {
    StoreGlobal(reinterpret_cast<uint4*>(at), make_uint4(in.words[0], in.words[1], in.words[2], in.words[3]));
  } else {
    StoreGlobal(reinterpret_cast<uint2*>(at), make_uint2(in.words[0], in.words[1]));
  }
}

// Both of one dtype, known at compile time.
template <DType kType>
struct SameTypes {
  static constexpr std::uint32_t kMostBytes = kType == DType::kF32 ? 4 : 2;  // of an element
  static constexpr bool kSplit = kType == DType::kF32;
  static constexpr std::uint32_t kWarps = kType == DType::kF32 ? 24 : 32;  // of a wide thread block
  static constexpr std::uint32_t kSlots = 2;                               // of such a warp

  __device__ static constexpr std::uint32_t ParamBytes(std::uint32_t) { return kMostBytes; }
  __device__ static constexpr std::uint32_t GradBytes(std::uint32_t) { return kMostBytes; }
  __device__ static void Param(std::uint32_t, const Four& in, float (&out)[4]) { ToFloats<kType>(in, out); }
  __device__ static void Grad(std::uint32_t, const Four& in, float (&out)[4]) { ToFloats<kType>(in, out); }
  __device__ static Four Pack(std::uint32_t, const float (&in)[4]) { return FromFloats<kType>(in); }

  // Eight elements of this lane from shared memory; `at` is the unit's first.
  __device__ static void Load(const unsigned char* at, std::uint32_t, std::uint32_t lane, Four (&out)[2]) {
    if constexpr (kSplit) {
#pragma unroll
      for (int h = 0; h < 2; ++h) out[h] = LoadWide(at + 4 * FirstOf<true>(lane, h), true);
    } else {
      const uint4 w = reinterpret_cast<const uint4*>(at)[lane];
      out[0] = {w.x, w.y, 0, 0};
      out[1] = {w.z, w.w, 0, 0};
    }
  }
  __device__ static void Store(std::byte* at, std::uint32_t, std::uint32_t lane, const Four (&in)[2]) {
    if constexpr (kSplit) {
#pragma unroll
      for (int h = 0; h < 2; ++h) StoreWide(at + 4 * FirstOf<true>(lane, h), in[h], true);
    } else {
      StoreGlobal(reinterpret_cast<uint4*>(at) + lane,
                  make_uint4(in[0].words[0], in[0].words[1], in[1].words[0], in[1].words[1]));
    }
  }
};

// Any pair, told by the unit's mode.
struct AnyTypes {
  static constexpr std::uint32_t kMostBytes = 4;
  static constexpr bool kSplit = true;
  static constexpr std::uint32_t kWarps = 24;
  static constexpr std::uint32_t kSlots = 2;

  __device__ static std::uint32_t Bytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }
  __device__ static std::uint32_t ParamBytes(std::uint32_t mode) { return Bytes(StepMode::Param(mode)); }
  __device__ static std::uint32_t GradBytes(std::uint32_t mode) { return Bytes(StepMode::Grad(mode)); }

  __device__ static void Convert(DType dtype, const Four& in, float (&out)[4]) {
    if (dtype == DType::kF32) {
      ToFloats<DType::kF32>(in, out);
    } else if (dtype == DType::kBF16) {
      ToFloats<DType::kBF16>(in, out);
    } else {
      ToFloats<DType::kF16>(in, out);
    }
  }
  __device__ static void Param(std::uint32_t mode, const Four& in, float (&out)[4]) {
    Convert(StepMode::Param(mode), in, out);
  }
  __device__ static void Grad(std::uint32_t mode, const Four& in, float (&out)[4]) {
    Convert(StepMode::Grad(mode), in, out);
  }
  __device__ static Four Pack(std::uint32_t mode, const float (&in)[4]) {
    const DType dtype = StepMode::Param(mode);
    if (dtype == DType::kF32) return FromFloats<DType::kF32>(in);
    return dtype == DType::kBF16 ? FromFloats<DType::kBF16>(in) : FromFloats<DType::kF16>(in);
  }
  __device__ static void Load(const unsigned char* at, std::uint32_t bytes, std::uint32_t lane,
                              Four (&out)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) out[h] = LoadWide(at + bytes * FirstOf<true>(lane, h), bytes == 4);
  }
  __device__ static void Store(std::byte* at, std::uint32_t bytes, std::uint32_t lane, const Four (&in)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) StoreWide(at + bytes * FirstOf<true>(lane, h), in[h], bytes == 4);
  }
};

}  // namespace bitpager::kernels::cuda
