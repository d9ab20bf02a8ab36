// 8-bit blockwise quantization. Encoding reads its input once (block_tile.cuh). The dynamic maps go by a
// table of magnitudes (encode8.h): one load from shared memory and an addition whose carry decides; signs are
// put to four codes at once. Any other map: each thread block first makes the map's thresholds and, for bins
// of the values' leading bits, the range of codes that is left; a short binary search does the rest, so a
// block works on many tiles. A warp asks once a tile whether all its blocks are usual: then nothing branches.
#include <algorithm>

#include "kernels/cuda/block_tile.cuh"
#include "kernels/cuda/blockwise.h"
#include "kernels/cuda/codebooks.cuh"
#include "kernels/cuda/encode8.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/weight_run.h"

namespace bitpager::kernels::cuda {
namespace {

__device__ const SignedTable kSignedTable =
    MakeMagnitudeTable<SignedTable>(quant::kSignedDynamicThresholds, quant::kSignedZeroCode);
__device__ const UnsignedTable kUnsignedTable =
    MakeMagnitudeTable<UnsignedTable>(quant::kUnsignedDynamicThresholds, quant::kUnsignedZeroCode);
__device__ const FloatTable<256> kUnsignedMapOnDevice = TableOf(quant::kUnsignedDynamicMap);

struct BlockwiseParams {
  const float* map;  // kGiven
  std::byte* plain;
  std::uint64_t elements;
  std::uint8_t* codes;
  float* absmax;
  std::uint32_t log2_block;
  std::uint32_t tiles;
  bool vectorised;
};

__device__ std::uint32_t Permute(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  std::uint32_t word;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(word) : "r"(a), "r"(b), "r"(selector));
  return word;
}
// Bytes of four neighbours, 0xFF for a set sign bit.
template <wire::DType kType>
__device__ std::uint32_t SignsOf(const Eight<kType>& eight, int four) {
  const std::uint32_t* const words = eight.words + four * (Eight<kType>::kWords / 2);
  if constexpr (kType == wire::DType::kF32) {
    return Permute(Permute(words[0], words[1], 0xFBU), Permute(words[2], words[3], 0xFBU), 0x5410U);
  } else {
    return Permute(words[0], words[1], 0xFDB9U);
  }
}

// x * factor; denormal numbers count as zero, before and after.
__device__ float MultiplyFlushing(float x, float factor) {
  float product;
  asm("mul.ftz.f32 %0, %1, %2;" : "=f"(product) : "f"(x), "f"(factor));
  return product;
}
// The magnitudes' codes of four scaled values (encode8.h), which are not negative: a byte each.
template <typename Table>
__device__ std::uint32_t MagnitudesOf(const std::uint32_t* entries, const std::uint32_t (&bits)[4]) {
  std::uint32_t sums[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[i] = entries[bits[i] >> Table::kLowBits] + bits[i];
  return Permute(Permute(sums[0], sums[1], 0x73U), Permute(sums[2], sums[3], 0x73U), 0x5410U);
}
// Blocks that one flushing product scales without error: the factor is no denormal number, and what is
// flushed lies under 2^-23 of the absmax. Zeros too.
__device__ bool IsScalable(std::uint32_t absmax_bits) {
  constexpr std::uint32_t kLeast = (127U - 102) << 23;
  constexpr std::uint32_t kMost = (127U + 23) << 23;
  return absmax_bits == 0 || absmax_bits - kLeast <= kMost - kLeast;
}

// Each encoder: kWords of shared memory; Prepare (all threads, before a barrier); whether a block is usual,
// by the bits of its absmax; the factor for its values, given 1 / absmax; and the codes of four neighbours, a
// byte each, given that factor. x times the inverse is finite and at most a rounding above 1; `signs` are
// those of x (SignsOf).
struct SignedEncoder {
  static constexpr std::size_t kWords = SignedTable::kBins;
  static __device__ void Prepare(const float*, std::uint32_t* words) {
    for (unsigned i = threadIdx.x; i < kWords; i += blockDim.x) words[i] = kSignedTable.entries[i];
  }
  static __device__ bool IsUsual(std::uint32_t absmax_bits) { return IsScalable(absmax_bits); }
  static __device__ float FactorOf(float inverse) { return inverse * kDown; }
  static __device__ std::uint32_t Four(const std::uint32_t* words, const float* x, float factor,
                                       std::uint32_t signs) {
    std::uint32_t bits[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) bits[i] = __float_as_uint(MultiplyFlushing(fabsf(x[i]), factor));
    std::uint32_t codes = MagnitudesOf<SignedTable>(words, bits);  // 0 ... 128
    codes -= (codes & signs & 0x80808080U) >> 7;                   // 128 has no negative partner
    return (codes ^ (signs & 0x7F7F7F7FU)) + (~signs & 0x7F7F7F7FU);
  }
};

struct UnsignedEncoder {
  static constexpr std::size_t kWords = UnsignedTable::kBins;
  static __device__ void Prepare(const float*, std::uint32_t* words) {
    for (unsigned i = threadIdx.x; i < kWords; i += blockDim.x) words[i] = kUnsignedTable.entries[i];
  }
  static __device__ bool IsUsual(std::uint32_t absmax_bits) { return IsScalable(absmax_bits); }
  static __device__ float FactorOf(float inverse) { return inverse * kDown; }
  static __device__ std::uint32_t Four(const std::uint32_t* words, const float* x, float factor,
                                       std::uint32_t) {
    std::uint32_t bits[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      bits[i] = static_cast<std::uint32_t>(max(__float_as_int(MultiplyFlushing(x[i], factor)), 0));
    }
    return MagnitudesOf<UnsignedTable>(words, bits);
  }
};

// words: 256 thresholds, then kBins ranges (codes from the lower 16 bits up to the upper 16).
struct GivenEncoder {
  static constexpr int kLowBits = 17;                 // six mantissa bits a bin
  static constexpr std::uint32_t kLeast = 111U << 6;  // 2^-16: smaller magnitudes share a bin
  static constexpr std::uint32_t kHalf = (16U << 6) + 1;
  static constexpr std::uint32_t kBins = 2 * kHalf;
  static constexpr std::size_t kWords = 256 + kBins;

  // quant's thresholds: the greatest float not above the midpoint (under it, for a negative one).
  static __device__ float Threshold(double midpoint) {
    const float rounded = __double2float_rn(midpoint);
    const bool over = double{rounded} > midpoint || (midpoint < 0.0 && double{rounded} == midpoint);
    if (!over) return rounded;
    const std::uint32_t bits = __float_as_uint(rounded);
    if (rounded == 0.0F) return __uint_as_float(0x80000001U);
    return __uint_as_float(rounded > 0.0F ? bits - 1 : bits + 1);
  }
  // Number of thresholds under x, looked for from code `low` to `high`.
  static __device__ unsigned Search(const float* thresholds, float x, unsigned low, unsigned high) {
    while (low < high) {
      const unsigned middle = (low + high) / 2;
      if (x > thresholds[middle]) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
  static __device__ std::uint32_t BinOf(float x) {
    const std::uint32_t bits = __float_as_uint(x) & 0x7FFFFFFFU;
    const std::uint32_t bin = min(max(bits >> kLowBits, kLeast) - kLeast, kHalf - 1);
    return x < 0.0F ? kHalf + bin : bin;
  }
  static __device__ void Prepare(const float* map, std::uint32_t* words) {
    auto* const thresholds = reinterpret_cast<float*>(words);
    for (unsigned c = threadIdx.x; c < 256; c += blockDim.x) {
      thresholds[c] =
          c == 255 ? __uint_as_float(0x7F800000U) : Threshold((double{map[c]} + double{map[c + 1]}) / 2.0);
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < kBins; i += blockDim.x) {
      const std::uint32_t bin = i % kHalf;
      // The least and the greatest magnitude of the bin.
      const float least = bin == 0 ? 0.0F : __uint_as_float((kLeast + bin) << kLowBits);
      const float most = __uint_as_float(((kLeast + bin + 1) << kLowBits) - 1);
      const bool negative = i >= kHalf;
      const unsigned low = Search(thresholds, negative ? -most : least, 0, 255);
      const unsigned high = Search(thresholds, negative ? -least : most, 0, 255);
      words[256 + i] = low | high << 16;
    }
  }
  static __device__ bool IsUsual(std::uint32_t absmax_bits) { return !IsUnusual(absmax_bits); }
  static __device__ float FactorOf(float inverse) { return inverse; }
  static __device__ std::uint32_t Four(const std::uint32_t* words, const float* x, float factor,
                                       std::uint32_t) {
    std::uint32_t codes = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float normal = x[i] * factor;
      const std::uint32_t range = words[256 + BinOf(normal)];
      codes |= Search(reinterpret_cast<const float*>(words), normal, range & 0xFFFFU, range >> 16) << (8 * i);
    }
    return codes;
  }
};

// Codes of half a vector of usual blocks.
template <typename Encoder, wire::DType kType>
__device__ std::uint32_t EncodeFour(const std::uint32_t* words, const Eight<kType>& eight, int four,
                                    float factor) {
  float x[8];
  eight.ToFloats(x);
  return Encoder::Four(words, x + 4 * four, factor, SignsOf<kType>(eight, four));
}

// The codes of a vector of any block; NaN encodes as 0. Not inlined, to leave the usual path its registers.
template <typename Encoder, wire::DType kType>
__device__ __noinline__ uint2 EncodeUnusual(const std::uint32_t* words, Eight<kType> eight,
                                            std::uint32_t most) {
  float x[8];
  eight.ToFloats(x);
  std::uint32_t codes[2];
#pragma unroll
  for (int four = 0; four < 2; ++four) {
    float normal[4];
    std::uint32_t signs = 0;
    std::uint32_t numbers = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      normal[i] = NormaliseUnusual(x[4 * four + i], most);
      const bool nan = normal[i] != normal[i];
      if (nan) normal[i] = 0.0F;
      numbers |= (nan ? 0U : 0xFFU) << (8 * i);
      signs |= (__float_as_int(normal[i]) < 0 ? 0xFFU : 0U) << (8 * i);
    }
    codes[four] = Encoder::Four(words, normal, Encoder::FactorOf(1.0F), signs) & numbers;
  }
  return make_uint2(codes[0], codes[1]);
}

// The tile's codes from `left` elements on are not written. `codes` is the tile's.
__device__ void StoreCodes(const uint2 (&from)[kTileVectors], std::uint8_t* codes, std::uint64_t left,
                           bool vectorised) {
  if (vectorised && left >= kTileElements) {
#pragma unroll
    for (int v = 0; v < kTileVectors; ++v) *reinterpret_cast<uint2*>(codes + VectorAt(v)) = from[v];
    return;
  }
#pragma unroll
  for (int v = 0; v < kTileVectors; ++v) {
    const unsigned at = VectorAt(v);
    std::uint64_t eight = std::uint64_t{from[v].y} << 32 | from[v].x;
#pragma unroll 1
    for (unsigned i = 0; i < 8 && at + i < left; ++i, eight >>= 8) {
      codes[at + i] = static_cast<std::uint8_t>(eight);
    }
  }
}

// All threads of the block. `chunks`: as QuadAbsmax has it.
template <typename Encoder, wire::DType kType>
__device__ void EncodeTile(const BlockwiseParams& p, const BlockTile<kType>& tile, std::uint64_t first,
                           const std::uint32_t* words, std::uint32_t* chunks) {
  const std::uint64_t left = p.elements - first;
  const std::uint32_t most = tile.QuadAbsmax(p.log2_block, chunks);
  // Where the quad's vector of which this lane has the absmax lies.
  const unsigned at = (threadIdx.x % 4 * kTileThreads + (threadIdx.x & ~3U)) * 8;
  if ((at & ((1U << p.log2_block) - 1)) == 0 && at < left) {
    p.absmax[(first + at) >> p.log2_block] = __uint_as_float(most);
  }
  uint2 codes[kTileVectors];
  if (__all_sync(kWholeWarp, Encoder::IsUsual(most))) {
    const float factor = Encoder::FactorOf(InverseOf(most));
#pragma unroll
    for (int v = 0; v < kTileVectors; ++v) {
      const float of_vector = OfQuad(factor, v);
      codes[v].x = EncodeFour<Encoder, kType>(words, tile.vectors[v], 0, of_vector);
      codes[v].y = EncodeFour<Encoder, kType>(words, tile.vectors[v], 1, of_vector);
    }
  } else {
#pragma unroll
    for (int v = 0; v < kTileVectors; ++v) {
      codes[v] = EncodeUnusual<Encoder, kType>(words, tile.vectors[v], OfQuad(most, v));
    }
  }
  StoreCodes(codes, p.codes + first, left, p.vectorised);
}

// Any grid: a thread block takes every gridDim.x-th tile.
template <typename Encoder, wire::DType kType>
__global__ void __launch_bounds__(kTileThreads, kTileBlocksOf<kType>) EncodeKernel(const BlockwiseParams p) {
  __shared__ std::uint32_t words[Encoder::kWords];
  __shared__ std::uint32_t chunks[2][kTileChunks];  // in turn: each tile's barrier guards the other's
  Encoder::Prepare(p.map, words);
  __syncthreads();
  unsigned turn = 0;
  const auto load = [&](BlockTile<kType>& tile, std::uint64_t first) {
    tile.Load(p.plain + first * kBytesOf<kType>, p.elements - first, p.vectorised);
  };
  const auto work = [&](const BlockTile<kType>& tile, std::uint64_t first) {
    EncodeTile<Encoder, kType>(p, tile, first, words, chunks[turn]);
    turn ^= 1;
  };
  ForTiles<kType>(p.elements, blockIdx.x, gridDim.x, load, work);
}

// Any grid. A thread decodes eight neighbours at a time.
template <wire::DType kType>
__global__ void __launch_bounds__(kTileThreads) DecodeKernel(const BlockwiseParams p, MapKind kind) {
  __shared__ float map[256];
  const float* const from = kind == MapKind::kGiven           ? p.map
                            : kind == MapKind::kSignedDynamic ? kSignedMapOnDevice.values
                                                              : kUnsignedMapOnDevice.values;
  map[threadIdx.x] = from[threadIdx.x];
  __syncthreads();
  for (std::uint32_t tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    const std::uint64_t first = std::uint64_t{tile} * kTileElements;
    const std::uint64_t left = p.elements - first;
    const bool whole = p.vectorised && left >= kTileElements;
    uint2 codes[kTileVectors];
    float scales[kTileVectors];
#pragma unroll
    for (int v = 0; v < kTileVectors; ++v) {
      const unsigned at = VectorAt(v);
      const std::uint8_t* const mine = p.codes + first + at;
      codes[v] = make_uint2(0, 0);
      if (whole) {
        codes[v] = __ldg(reinterpret_cast<const uint2*>(mine));
      } else {
        for (unsigned i = 0; i < 8; ++i) {
          const std::uint32_t code = at + i < left ? mine[i] : 0U;
          (i < 4 ? codes[v].x : codes[v].y) |= code << (8 * (i % 4));
        }
      }
      scales[v] = at < left ? p.absmax[(first + at) >> p.log2_block] : 0.0F;
    }
#pragma unroll
    for (int v = 0; v < kTileVectors; ++v) {
      const unsigned at = VectorAt(v);
      std::byte* const out = p.plain + (first + at) * kBytesOf<kType>;
      float x[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        x[i] = map[((i < 4 ? codes[v].x : codes[v].y) >> (8 * (i % 4))) & 255U] * scales[v];
      }
      if (whole) {
        StoreEight<kType>(out, x);
      } else {
        for (int i = 0; i < 8; ++i) {
          if (at + i < left) StoreElement<kType>(out + i * kBytesOf<kType>, x[i]);
        }
      }
    }
  }
}

BlockwiseParams ParamsOf(const Blockwise& args) {
  BlockwiseParams p{};
  p.map = args.map;
  p.plain = args.plain;
  p.elements = args.elements;
  p.codes = args.codes;
  p.absmax = args.absmax;
  p.log2_block = Log2(args.blocksize);
  p.tiles = static_cast<std::uint32_t>((args.elements + kTileElements - 1) / kTileElements);
  p.vectorised = IsAligned(args.plain, 16) && IsAligned(args.codes, 8);
  return p;
}

// Thread blocks that fill any GPU several times over; the tables are then made for many tiles each.
constexpr std::uint32_t kGrid = 2048;

template <typename Encoder>
wire::Status LaunchEncode(CUstream_st* stream, const Blockwise& args) {
  const BlockwiseParams p = ParamsOf(args);
  const unsigned grid = std::min(p.tiles, kGrid);
  switch (args.dtype) {
    case wire::DType::kF32:
      EncodeKernel<Encoder, wire::DType::kF32><<<grid, kTileThreads, 0, stream>>>(p);
      break;
    case wire::DType::kF16:
      EncodeKernel<Encoder, wire::DType::kF16><<<grid, kTileThreads, 0, stream>>>(p);
      break;
    default:
      EncodeKernel<Encoder, wire::DType::kBF16><<<grid, kTileThreads, 0, stream>>>(p);
  }
  return LaunchStatus("quantize blockwise");
}

}  // namespace

wire::Status EncodeBlockwise(CUstream_st* stream, const Blockwise& args) {
  if (args.elements == 0) return {};
  switch (args.kind) {
    case MapKind::kSignedDynamic:
      return LaunchEncode<SignedEncoder>(stream, args);
    case MapKind::kUnsignedDynamic:
      return LaunchEncode<UnsignedEncoder>(stream, args);
    default:
      return LaunchEncode<GivenEncoder>(stream, args);
  }
}

wire::Status DecodeBlockwise(CUstream_st* stream, const Blockwise& args) {
  if (args.elements == 0) return {};
  const BlockwiseParams p = ParamsOf(args);
  const unsigned grid = std::min(p.tiles, kGrid);
  switch (args.dtype) {
    case wire::DType::kF32:
      DecodeKernel<wire::DType::kF32><<<grid, kTileThreads, 0, stream>>>(p, args.kind);
      break;
    case wire::DType::kF16:
      DecodeKernel<wire::DType::kF16><<<grid, kTileThreads, 0, stream>>>(p, args.kind);
      break;
    default:
      DecodeKernel<wire::DType::kBF16><<<grid, kTileThreads, 0, stream>>>(p, args.kind);
  }
  return LaunchStatus("dequantize blockwise");
}

}  // namespace bitpager::kernels::cuda
