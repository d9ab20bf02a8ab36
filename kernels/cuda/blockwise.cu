// 8-bit blockwise quantization. Encoding reads its input once (block_tile.cuh). The dynamic maps go by a
// table of magnitudes (encode8.h): one load from shared memory and an addition whose carry decides. Any other
// map: each thread block first makes the map's thresholds and, for bins of the values' leading bits, the
// range of codes that is left; a short binary search does the rest, so a block works on many tiles.
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

// `magnitude` is not negative.
template <typename Table>
__device__ unsigned MagnitudeCode(const std::uint32_t* entries, float magnitude) {
  const std::uint32_t bits = max(__float_as_uint(magnitude), Table::kFirst << Table::kLowBits);
  return (entries[(bits >> Table::kLowBits) - Table::kFirst] + bits) >> Table::kLowBits;
}

// Each encoder: kWords of shared memory, Prepare (all threads, before a barrier), and the code of a
// normalised value, which is finite and at most a rounding above 1.
struct SignedEncoder {
  static constexpr std::size_t kWords = SignedTable::kBins;
  static __device__ void Prepare(const float*, std::uint32_t* words) {
    for (unsigned i = threadIdx.x; i < kWords; i += blockDim.x) words[i] = kSignedTable.entries[i];
  }
  static __device__ int Code(const std::uint32_t* words, float x) {
    const int code = static_cast<int>(MagnitudeCode<SignedTable>(words, fabsf(x)));
    const int sign = __float_as_int(x) >> 31;  // 0 or -1
    return (code ^ sign) - sign + 127;         // -1 where the greatest magnitude has no negative partner
  }
};

struct UnsignedEncoder {
  static constexpr std::size_t kWords = UnsignedTable::kBins;
  static __device__ void Prepare(const float*, std::uint32_t* words) {
    for (unsigned i = threadIdx.x; i < kWords; i += blockDim.x) words[i] = kUnsignedTable.entries[i];
  }
  static __device__ int Code(const std::uint32_t* words, float x) {
    return static_cast<int>(MagnitudeCode<UnsignedTable>(words, fmaxf(x, 0.0F)));
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
  static __device__ int Code(const std::uint32_t* words, float x) {
    const std::uint32_t range = words[256 + BinOf(x)];
    return static_cast<int>(Search(reinterpret_cast<const float*>(words), x, range & 0xFFFFU, range >> 16));
  }
};

// Two codes into bytes, under two others: bytes (lower's low 16 bits << 16) | second << 8 | first, each code
// saturated to 0 ... 255.
__device__ std::uint32_t PackPair(int first, int second, std::uint32_t under) {
  std::uint32_t packed;
  asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, %3;" : "=r"(packed) : "r"(second), "r"(first), "r"(under));
  return packed;
}

// Codes of four neighbours. `unusual`: see block_tile.cuh; NaN encodes as 0.
template <typename Encoder>
__device__ std::uint32_t EncodeFour(const std::uint32_t* words, const float* x, float inverse,
                                    std::uint32_t most, bool unusual) {
  int codes[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (!unusual) {
      codes[i] = Encoder::Code(words, x[i] * inverse);
    } else {
      const float normal = NormaliseUnusual(x[i], most);
      codes[i] = normal == normal ? Encoder::Code(words, normal) : 0;
    }
  }
  return PackPair(codes[0], codes[1], PackPair(codes[2], codes[3], 0U));
}

template <typename Encoder, wire::DType kType>
__device__ void EncodeTile(const BlockwiseParams& p, const BlockTile<kType>& tile, std::uint64_t first,
                           const std::uint32_t* words, std::uint32_t* chunks) {
  const std::uint64_t left = p.elements - first;
  std::uint32_t most[kTileVectors];
  tile.Absmax(p.log2_block, chunks, most);
  float inverse[kTileVectors];
  Inverses(most, inverse);
  float* const absmax = p.absmax + (first >> p.log2_block);
#pragma unroll
  for (int v = 0; v < kTileVectors; ++v) {
    const unsigned at = VectorAt(v);
    const bool begins = (at & ((1U << p.log2_block) - 1)) == 0;
    if (begins && at < left) absmax[at >> p.log2_block] = __uint_as_float(most[v]);
    float x[8];
    tile.vectors[v].ToFloats(x);
    const bool unusual = IsUnusual(most[v]);
    const std::uint32_t low = EncodeFour<Encoder>(words, x, inverse[v], most[v], unusual);
    const std::uint32_t high = EncodeFour<Encoder>(words, x + 4, inverse[v], most[v], unusual);
    std::uint8_t* const codes = p.codes + first + at;
    if (p.vectorised && at + 8 <= left) {
      *reinterpret_cast<uint2*>(codes) = make_uint2(low, high);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (at + i < left) codes[i] = static_cast<std::uint8_t>((i < 4 ? low : high) >> (8 * (i % 4)));
      }
    }
  }
}

// Any grid: a thread block takes every gridDim.x-th tile.
template <typename Encoder, wire::DType kType>
__global__ void __launch_bounds__(kTileThreads) EncodeKernel(const BlockwiseParams p) {
  __shared__ std::uint32_t words[Encoder::kWords];
  __shared__ std::uint32_t chunks[kTileChunks];
  Encoder::Prepare(p.map, words);
  __syncthreads();
  // Bound by the look-ups, not by memory: more thread blocks serve better than tiles ahead.
  for (std::uint64_t first = std::uint64_t{blockIdx.x} * kTileElements; first < p.elements;
       first += std::uint64_t{gridDim.x} * kTileElements) {
    BlockTile<kType> tile;
    tile.Load(p.plain + first * kBytesOf<kType>, p.elements - first, p.vectorised);
    EncodeTile<Encoder, kType>(p, tile, first, words, chunks);
    if (p.log2_block > 8) __syncthreads();  // `chunks` is used again
  }
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
