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

// What lane `v` of this lane's quad has. All lanes of the warp.
template <typename T>
__device__ inline T OfQuad(T mine, int v) {
  return __shfl_sync(kWholeWarp, mine, static_cast<int>(threadIdx.x % 32 & ~3U) + v);
}

template <wire::DType kType>
struct BlockTile {
  Eight<kType> vectors[kTileVectors];

  // `left`: elements of the run from the tile's first on; those past it become zeros.
  __device__ void Load(const std::byte* in, std::uint64_t left, bool vectorised) {
    const std::byte* const mine = in + std::size_t{VectorAt(0)} * kBytesOf<kType>;
    if (vectorised && left >= kTileElements) {
#pragma unroll
      for (int v = 0; v < kTileVectors; ++v)
        vectors[v].Load(mine + std::size_t{VectorAt(v) - VectorAt(0)} * kBytesOf<kType>);
      return;
    }
#pragma unroll
    for (int v = 0; v < kTileVectors; ++v) {
      const long long valid = static_cast<long long>(left) - VectorAt(v);
      const std::byte* const from = mine + std::size_t{VectorAt(v) - VectorAt(0)} * kBytesOf<kType>;
      if (vectorised && valid >= 8) {
        vectors[v].Load(from);
      } else {
        vectors[v].LoadSome(from, valid);
      }
    }
  }

  // Bits of the absmax of the block that holds one vector of this lane's quad: vector lane % 4 (the four
  // lanes of a quad share the block of each of their vectors). All threads of the block; `chunks` is shared
  // memory for kTileChunks words, which are used when a block has more than 256 elements, around one barrier:
  // before they are written again, all threads must have met once more.
  __device__ std::uint32_t QuadAbsmax(std::uint32_t log2_block, std::uint32_t* chunks) const {
    static_assert(kTileVectors == 4);
    const unsigned lane = threadIdx.x % 32;
    std::uint32_t all[kTileVectors];
#pragma unroll
    for (int v = 0; v < kTileVectors; ++v) all[v] = vectors[v].Absmax();
    const bool odd = lane % 2 != 0;
    const bool upper = lane % 4 >= 2;
    const std::uint32_t low =
        max(odd ? all[1] : all[0], __shfl_xor_sync(kWholeWarp, odd ? all[0] : all[1], 1));
    const std::uint32_t high =
        max(odd ? all[3] : all[2], __shfl_xor_sync(kWholeWarp, odd ? all[2] : all[3], 1));
    std::uint32_t most = max(upper ? high : low, __shfl_xor_sync(kWholeWarp, upper ? low : high, 2));
    if (log2_block >= 8) {  // the usual case, without a loop
#pragma unroll
      for (int apart = 4; apart < 32; apart *= 2) most = max(most, __shfl_xor_sync(kWholeWarp, most, apart));
    } else {
      for (int apart = 4; apart << 3 < 1 << log2_block; apart *= 2) {
        most = max(most, __shfl_xor_sync(kWholeWarp, most, apart));
      }
    }
    most = Eight<kType>::FloatBits(most);
    if (log2_block <= 8) return most;
    const unsigned warp = threadIdx.x / 32;
    if (lane < kTileVectors) chunks[lane * (kTileThreads / 32) + warp] = most;
    __syncthreads();
    std::uint32_t chunk = chunks[lane];  // of each warp, lane c reduces chunk c with those of its block
#pragma unroll
    for (int apart = 1; apart < 16; apart *= 2) {
      const std::uint32_t other = __shfl_xor_sync(kWholeWarp, chunk, apart);
      if (apart << 8 < 1 << log2_block) chunk = max(chunk, other);
    }
    return __shfl_sync(kWholeWarp, chunk, static_cast<int>(lane % 4 * (kTileThreads / 32) + warp));
  }

  // most[v]: bits of the absmax of the block that holds vector v. As QuadAbsmax.
  __device__ void Absmax(std::uint32_t log2_block, std::uint32_t* chunks,
                         std::uint32_t (&most)[kTileVectors]) const {
    const std::uint32_t mine = QuadAbsmax(log2_block, chunks);
#pragma unroll
    for (int v = 0; v < kTileVectors; ++v) most[v] = OfQuad(mine, v);
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
  for (int v = 0; v < kTileVectors; ++v) inverse[v] = OfQuad(mine, v);
}

}  // namespace bitpager::kernels::cuda
