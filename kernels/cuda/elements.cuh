// Elements of the three float types in device code: single ones, and vectors of eight. Owns nothing; every
// conversion is IEEE, rounded once, as quant/encode.h defines it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#include "client/wire/types.h"

namespace bitpager::kernels::cuda {

inline constexpr unsigned kWholeWarp = 0xFFFFFFFFU;

template <wire::DType kType>
inline constexpr int kBytesOf = kType == wire::DType::kF32 ? 4 : 2;

__device__ inline float HalfToFloat(std::uint32_t bits) {
  // The payload of a NaN is kept, which the hardware's conversion does not.
  if ((bits & 0x7FFFU) > 0x7C00U) {
    return __uint_as_float((bits & 0x8000U) << 16 | 0x7F800000U | (bits & 0x3FFU) << 13);
  }
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

// Two neighbouring 16-bit elements in one word, the first in the lower half.
template <wire::DType kType>
__device__ inline float2 PairToFloats(std::uint32_t word) {
  if constexpr (kType == wire::DType::kBF16) {
    return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xFFFF0000U));
  } else {
    __half2 pair;
    *reinterpret_cast<std::uint32_t*>(&pair) = word;
    return __half22float2(pair);
  }
}
template <wire::DType kType>
__device__ inline std::uint32_t FloatsToPair(float first, float second) {
  if constexpr (kType == wire::DType::kBF16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  } else {
    const __half2 pair = __floats2half2_rn(first, second);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  }
}

template <wire::DType kType>
__device__ inline void StoreElement(std::byte* at, float x) {
  if constexpr (kType == wire::DType::kF32) {
    *reinterpret_cast<float*>(at) = x;
  } else {
    *reinterpret_cast<std::uint16_t*>(at) = static_cast<std::uint16_t>(FloatsToPair<kType>(x, x));
  }
}

// Eight neighbours; `at` is aligned to 16 bytes.
template <wire::DType kType>
__device__ inline void StoreEight(std::byte* at, const float (&x)[8]) {
  auto* const to = reinterpret_cast<uint4*>(at);
  if constexpr (kType == wire::DType::kF32) {
    to[0] = make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]),
                       __float_as_uint(x[3]));
    to[1] = make_uint4(__float_as_uint(x[4]), __float_as_uint(x[5]), __float_as_uint(x[6]),
                       __float_as_uint(x[7]));
  } else {
    to[0] = make_uint4(FloatsToPair<kType>(x[0], x[1]), FloatsToPair<kType>(x[2], x[3]),
                       FloatsToPair<kType>(x[4], x[5]), FloatsToPair<kType>(x[6], x[7]));
  }
}

// Eight neighbouring elements as they lie in memory.
template <wire::DType kType>
struct Eight {
  static constexpr int kWords = kType == wire::DType::kF32 ? 8 : 4;
  std::uint32_t words[kWords];

  // `at` is aligned to 16 bytes.
  __device__ void Load(const std::byte* at) {
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      const uint4 part = __ldg(reinterpret_cast<const uint4*>(at) + i / 4);
      words[i] = part.x;
      words[i + 1] = part.y;
      words[i + 2] = part.z;
      words[i + 3] = part.w;
    }
  }
  // The first `valid` of the eight (0 to 8, or more); zeros for the others. `at` has its element's alignment.
  __device__ void LoadSome(const std::byte* at, long long valid) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (kType == wire::DType::kF32) {
        words[i] = i < valid ? reinterpret_cast<const std::uint32_t*>(at)[i] : 0U;
      } else {
        const auto* half = reinterpret_cast<const std::uint16_t*>(at);
        const std::uint32_t low = 2 * i < valid ? half[2 * i] : 0U;
        const std::uint32_t high = 2 * i + 1 < valid ? half[2 * i + 1] : 0U;
        words[i] = low | high << 16;
      }
    }
  }
  __device__ void ToFloats(float (&x)[8]) const {
    if constexpr (kType == wire::DType::kF32) {
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = __uint_as_float(words[i]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = PairToFloats<kType>(words[i]);
        x[2 * i] = pair.x;
        x[2 * i + 1] = pair.y;
      }
    }
  }
  // The greatest magnitude in the type's own bits: magnitudes order as integers, NaN above infinity.
  __device__ std::uint32_t Absmax() const {
    std::uint32_t most = 0;
    if constexpr (kType == wire::DType::kF32) {
#pragma unroll
      for (int i = 0; i < 8; ++i) most = max(most, words[i] & 0x7FFFFFFFU);
      return most;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) most = __vmaxu2(most, words[i] & 0x7FFF7FFFU);
      return max(most & 0xFFFFU, most >> 16);
    }
  }
  // The same as a float's bits.
  static __device__ std::uint32_t FloatBits(std::uint32_t absmax) {
    if constexpr (kType == wire::DType::kF32) return absmax;
    return kType == wire::DType::kBF16 ? absmax << 16 : __float_as_uint(HalfToFloat(absmax));
  }
};

}  // namespace bitpager::kernels::cuda
