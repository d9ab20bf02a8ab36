// Parameters and gradients of a full, aligned unit between memory and registers: eight elements a lane, as
// two groups of four. One type for each pair of dtypes that has a path of its own, and one that decides at
// run time for every other pair. Device code.
#pragma once

#include <cstdint>

#include "kernels/cuda/step_launch.cuh"

namespace bitpager::kernels::cuda {

using wire::DType;

// Of a unit, a lane has eight elements, at the same offsets in device memory and in a slot: what a lane
// copies in, it alone reads. Pairs of one 16-bit type: eight neighbours (kSplit is false). Others: four
// neighbours in each half of the unit, so that 16-byte accesses of a warp touch 512 consecutive bytes.

// From device to shared memory, asynchronously where the device can.
template <int kBytes>
__device__ __forceinline__ void CopyAsync(std::uint32_t to, const std::byte* from) {
#if __CUDA_ARCH__ >= 800
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(kBytes) : "memory");
  }
#else
  for (int at = 0; at < kBytes; at += 4) {
    const auto word = *reinterpret_cast<const volatile std::uint32_t*>(from + at);
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to + at), "r"(word) : "memory");
  }
#endif
}
__device__ __forceinline__ void EndOfCopies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until all but the last kGroups groups of this lane's copies are there.
template <int kGroups>
__device__ __forceinline__ void AwaitCopies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
}

__device__ __forceinline__ uint4 LoadShared16(std::uint32_t at) {
  uint4 w;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
               : "r"(at));
  return w;
}
__device__ __forceinline__ uint2 LoadShared8(std::uint32_t at) {
  uint2 w;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(w.x), "=r"(w.y) : "r"(at));
  return w;
}
__device__ __forceinline__ std::uint32_t LoadShared4(std::uint32_t at) {
  std::uint32_t w;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(w) : "r"(at));
  return w;
}

// Stores to device memory: the compiler cannot know that a pointer from a table leads there.
__device__ __forceinline__ void StoreGlobal(std::byte* at, uint4 w) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w)
               : "memory");
}
__device__ __forceinline__ void StoreGlobal(std::byte* at, uint2 w) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(at), "r"(w.x), "r"(w.y) : "memory");
}
__device__ __forceinline__ void StoreGlobal(std::byte* at, std::uint32_t w) {
  asm volatile("st.global.u32 [%0], %1;" ::"l"(at), "r"(w) : "memory");
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

// Two parts of four codes each.
template <bool kSplit>
struct CodeParts {
  __device__ static std::uint32_t LaneOffset(std::uint32_t lane) { return (kSplit ? 4 : 8) * lane; }
  __device__ static __forceinline__ void Fetch(std::uint32_t to, const std::byte* from) {
    if constexpr (kSplit) {
      CopyAsync<4>(to, from);
      CopyAsync<4>(to + 128, from + 128);
    } else {
      CopyAsync<8>(to, from);
    }
  }
  __device__ static __forceinline__ void Load(std::uint32_t at, std::uint32_t (&codes)[2]) {
    if constexpr (kSplit) {
      codes[0] = LoadShared4(at);
      codes[1] = LoadShared4(at + 128);
    } else {
      const uint2 both = LoadShared8(at);
      codes[0] = both.x;
      codes[1] = both.y;
    }
  }
  __device__ static __forceinline__ void Store(std::byte* at, const std::uint32_t (&codes)[2]) {
    if constexpr (kSplit) {
      StoreGlobal(at, codes[0]);
      StoreGlobal(at + 128, codes[1]);
    } else {
      StoreGlobal(at, make_uint2(codes[0], codes[1]));
    }
  }
};

// Four neighbours in each half, of `bytes` each.
struct SplitParts {
  __device__ static __forceinline__ void Fetch(std::uint32_t to, const std::byte* from, std::uint32_t bytes) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (bytes == 4) {
        CopyAsync<16>(to + 512 * h, from + 512 * h);
      } else {
        CopyAsync<8>(to + 256 * h, from + 256 * h);
      }
    }
  }
  __device__ static __forceinline__ void Load(std::uint32_t at, std::uint32_t bytes, Four (&out)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (bytes == 4) {
        const uint4 w = LoadShared16(at + 512 * h);
        out[h] = {w.x, w.y, w.z, w.w};
      } else {
        const uint2 w = LoadShared8(at + 256 * h);
        out[h] = {w.x, w.y, 0, 0};
      }
    }
  }
  __device__ static __forceinline__ void Store(std::byte* at, std::uint32_t bytes, const Four (&in)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::uint32_t(&w)[4] = in[h].words;
      if (bytes == 4) {
        StoreGlobal(at + 512 * h, make_uint4(w[0], w[1], w[2], w[3]));
      } else {
        StoreGlobal(at + 256 * h, make_uint2(w[0], w[1]));
      }
    }
  }
};

// Both of one dtype, known at compile time.
template <DType kType>
struct SameTypes {
  static constexpr std::uint32_t kMostBytes = kType == DType::kF32 ? 4 : 2;  // of an element
  static constexpr bool kSplit = kType == DType::kF32;
  static constexpr std::uint32_t kWarps = 24;  // of a wide thread block
  static constexpr std::uint32_t kSlots = 2;   // of such a warp

  __device__ static constexpr std::uint32_t ParamBytes(std::uint32_t) { return kMostBytes; }
  __device__ static constexpr std::uint32_t GradBytes(std::uint32_t) { return kMostBytes; }
  __device__ static constexpr std::uint32_t LaneOffset(std::uint32_t, std::uint32_t lane) {
    return 16 * lane;
  }
  __device__ static void Param(std::uint32_t, const Four& in, float (&out)[4]) { ToFloats<kType>(in, out); }
  __device__ static void Grad(std::uint32_t, const Four& in, float (&out)[4]) { ToFloats<kType>(in, out); }
  __device__ static Four Pack(std::uint32_t, const float (&in)[4]) { return FromFloats<kType>(in); }

  __device__ static __forceinline__ void Fetch(std::uint32_t to, const std::byte* from, std::uint32_t) {
    if constexpr (kSplit) {
      SplitParts::Fetch(to, from, 4);
    } else {
      CopyAsync<16>(to, from);
    }
  }
  __device__ static __forceinline__ void Load(std::uint32_t at, std::uint32_t, Four (&out)[2]) {
    if constexpr (kSplit) {
      SplitParts::Load(at, 4, out);
    } else {
      const uint4 w = LoadShared16(at);
      out[0] = {w.x, w.y, 0, 0};
      out[1] = {w.z, w.w, 0, 0};
    }
  }
  __device__ static __forceinline__ void Store(std::byte* at, std::uint32_t, const Four (&in)[2]) {
    if constexpr (kSplit) {
      SplitParts::Store(at, 4, in);
    } else {
      StoreGlobal(at, make_uint4(in[0].words[0], in[0].words[1], in[1].words[0], in[1].words[1]));
    }
  }
};

// Any pair, told by the unit's mode.
struct AnyTypes : SplitParts {
  static constexpr std::uint32_t kMostBytes = 4;
  static constexpr bool kSplit = true;
  static constexpr std::uint32_t kWarps = 24;
  static constexpr std::uint32_t kSlots = 2;

  __device__ static std::uint32_t Bytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }
  __device__ static std::uint32_t ParamBytes(std::uint32_t mode) { return Bytes(StepMode::Param(mode)); }
  __device__ static std::uint32_t GradBytes(std::uint32_t mode) { return Bytes(StepMode::Grad(mode)); }
  __device__ static std::uint32_t LaneOffset(std::uint32_t bytes, std::uint32_t lane) {
    return 4 * bytes * lane;
  }

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
};

}  // namespace bitpager::kernels::cuda
