// A tile of a tensor that a thread block quantizes, held in registers, and the absmax of each of its
// quantization blocks (32 to 4096 elements). Shared by the 4-bit and the 8-bit kernels.
//
// A thread holds kVectors vectors of eight neighbouring elements; vector v of all threads lies behind vector
// v - 1 of all threads, so that every access of a warp is contiguous (256 elements). Blocks of up to 256
// elements are reduced by shuffles, greater ones also through shared memory.
#pragma once

#include "kernels/cuda/elements.cuh"

namespace bitpager::kernels::cuda {

inline constexpr int kTileThreads = 256;
inline constexpr int kTileVectors = 4;
inline constexpr unsigned kTileElements = kTileThreads * kTileVectors * 8;  // a multiple of every block size
inline constexpr int kTileChunks = kTileElements / 256;                     // one for each lane of a warp
static_assert(kTileChunks == 32);

// First element, in the tile, of vector `v` of this thread.
__device__ inline unsigned VectorAt(int v) {
  return (static_cast<unsigned>(v) * kTileThreads + threadIdx.x) * 8;
}

template <wire::DType kType>
struct BlockTile {
  Eight<kType> vectors[kTileVectors];

  // `left`: elements of the run from the tile's first on; those past it become zeros.
  __device__ void Load(const std::byte* in, std::uint64_t left, bool vectorised) {
    if (vectorised && left >= kTileElements) {
#pragma unroll
      for (int v = 0; v < kTileVectors; ++v) vectors[v].Load(in + std::size_t{VectorAt(v)} * kBytesOf<kType>);
      return;
    }
#pragma unroll
    for (int v = 0; v < kTileVectors; ++v) {
      const long long valid = static_cast<long long>(left) - VectorAt(v);
      vectors[v].LoadSome(in + std::size_t{VectorAt(v)} * kBytesOf<kType>, valid);
    }
  }

  // most[v]: bits of the absmax of the block that holds vector v. All threads of the block; `chunks` is
  // shared memory for kTileChunks words.
  __device__ void Absmax(std::uint32_t log2_block, std::uint32_t* chunks,
                         std::uint32_t (&most)[kTileVectors]) const {
#pragma unroll
    for (int v = 0; v < kTileVectors; ++v) most[v] = vectors[v].AbsmaxBits();
    const int lanes = log2_block >= 8 ? 32 : 1 << (log2_block - 3);  // of one block
    for (int apart = lanes / 2; apart != 0; apart /= 2) {
#pragma unroll
      for (int v = 0; v < kTileVectors; ++v) {
        most[v] = max(most[v], __shfl_xor_sync(kWholeWarp, most[v], apart));
      }
    }
    if (log2_block <= 8) return;
    const unsigned warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) {
#pragma unroll
      for (int v = 0; v < kTileVectors; ++v) chunks[v * (kTileThreads / 32) + warp] = most[v];
    }
    __syncthreads();
    if (warp == 0) {  // lane c reduces chunk c with those of its block
      std::uint32_t mine = chunks[threadIdx.x];
      for (int apart = 1 << (log2_block - 9); apart != 0; apart /= 2) {
        mine = max(mine, __shfl_xor_sync(kWholeWarp, mine, apart));
      }
      chunks[threadIdx.x] = mine;
    }
    __syncthreads();
#pragma unroll
    for (int v = 0; v < kTileVectors; ++v) most[v] = chunks[v * (kTileThreads / 32) + warp];
  }
};

// x * pre * inverse normalises a block; `unusual` blocks need `pre` and a look at NaN: absmax is NaN,
// infinite or so small that 1 / absmax would overflow. As quant::ReciprocalOf.
struct Normaliser {
  float pre;
  float inverse;
  bool unusual;
};
__device__ inline Normaliser NormaliserOf(std::uint32_t absmax_bits) {
  constexpr std::uint32_t kTiny = 7U << 23;  // 2^-120
  if (absmax_bits == 0) return {1.0F, 0.0F, false};
  const float absmax = __uint_as_float(absmax_bits);
  if (absmax_bits >= kTiny) return {1.0F, __frcp_rn(absmax), absmax_bits >= 0x7F800000U};
  return {0x1p64F, __frcp_rn(absmax * 0x1p64F), true};
}

}  // namespace bitpager::kernels::cuda
