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
      const std::byte* const from = in + std::size_t{VectorAt(v)} * kBytesOf<kType>;
      if (vectorised && valid >= 8) {
        vectors[v].Load(from);
      } else {
        vectors[v].LoadSome(from, valid);
      }
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

// 16-bit types: the next tile is on its way while one is encoded, for the loads of a thread block would else
// stand still meanwhile. Of fp32 that is too many registers.
template <wire::DType kType>
inline constexpr bool kLoadAhead = kBytesOf<kType> == 2;
// Thread blocks of a multiprocessor that hold two tiles.
inline constexpr int kTileBlocks = 4;
template <wire::DType kType>
inline constexpr int kTileBlocksOf = kLoadAhead<kType> ? kTileBlocks : 3;

// Calls work(tile, first) for the tiles of `elements` elements that this thread block has: first tile
// `index`, then every `stride`-th. load(tile, first) loads one.
template <wire::DType kType, typename LoadTile, typename Work>
__device__ void ForTiles(std::uint64_t elements, unsigned index, unsigned stride, const LoadTile& load,
                         const Work& work) {
  std::uint64_t first = std::uint64_t{index} * kTileElements;
  const std::uint64_t step = std::uint64_t{stride} * kTileElements;
  if (first >= elements) return;
  if constexpr (!kLoadAhead<kType>) {
    for (; first < elements; first += step) {
      BlockTile<kType> tile;
      load(tile, first);
      work(tile, first);
    }
  } else {
    BlockTile<kType> next;
    load(next, first);
    while (true) {
      const BlockTile<kType> tile = next;
      const std::uint64_t ahead = first + step;
      if (ahead < elements) load(next, ahead);
      work(tile, first);
      if (ahead >= elements) return;
      first = ahead;
    }
  }
}

// Blocks whose absmax is NaN, infinite, or so small that 1 / absmax would overflow: they need
// quant::ReciprocalOf in full and a look at NaN. All others are normalised by one product with InverseOf.
__device__ inline bool IsUnusual(std::uint32_t absmax_bits) {
  constexpr std::uint32_t kTiny = 7U << 23;  // 2^-120
  return absmax_bits != 0 && absmax_bits - kTiny >= 0x7F800000U - kTiny;
}
__device__ inline float InverseOf(std::uint32_t absmax_bits) {
  return absmax_bits == 0 ? 0.0F : __frcp_rn(__uint_as_float(absmax_bits));
}
// x / absmax as quant::ReciprocalOf has it, for any absmax.
__device__ inline float NormaliseUnusual(float x, std::uint32_t absmax_bits) {
  const float absmax = __uint_as_float(absmax_bits);
  if (absmax_bits >= 7U << 23) return x * __frcp_rn(absmax);
  return absmax_bits == 0 ? x * 0.0F : x * 0x1p64F * __frcp_rn(absmax * 0x1p64F);
}

// InverseOf for each vector. Four lanes share every block at least, so that each makes one division.
__device__ inline void Inverses(const std::uint32_t (&most)[kTileVectors], float (&inverse)[kTileVectors]) {
  static_assert(kTileVectors == 4);
  const unsigned lane = threadIdx.x % 32;
  const std::uint32_t low = lane % 2 == 0 ? most[0] : most[1];
  const std::uint32_t high = lane % 2 == 0 ? most[2] : most[3];
  const float mine = InverseOf(lane % 4 < 2 ? low : high);
#pragma unroll
  for (int v = 0; v < kTileVectors; ++v) {
    inverse[v] = __shfl_sync(kWholeWarp, mine, static_cast<int>((lane & ~3U) + v));
  }
}

}  // namespace bitpager::kernels::cuda
