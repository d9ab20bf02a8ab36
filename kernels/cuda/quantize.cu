// Quantize and BlockAbsmax: fp32, fp16 or bf16 to packed 4-bit codes and absmaxes, in pages or plain planes,
// one pass over the input (block_tile.cuh).
//
// Encoding: a value's bin (encode4.h) by one multiply-add, the bin's only pivot and code from the lane that
// keeps the bin, one comparison. The shuffles read only the low five bits of the lane number, so the
// multiply-add's result is used as it is.
#include <algorithm>
#include <vector>

#include "kernels/cuda/block_tile.cuh"
#include "kernels/cuda/encode4.h"
#include "kernels/cuda/packed.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/weight_run.h"
#include "kernels/cuda/weights.h"

namespace bitpager::kernels::cuda {
namespace {

constexpr std::uint64_t kTilesOfBlock = 8;

struct QuantizeParams {
  WeightRun runs[kRunsPerLaunch];
  EncodeTable table;
  std::uint32_t log2_block;
  bool absmax_given;  // read from `scales`, not computed and written there
};
static_assert(sizeof(QuantizeParams) <= 4096);

// What a lane keeps of the table.
struct LaneEntry {
  float pivot;
  unsigned codes;
};

// code += 1 when x > pivot.
__device__ void AddIfAbove(std::uint32_t& code, float x, float pivot) {
  asm("{\n .reg .pred above;\n setp.gt.f32 above, %1, %2;\n @above add.u32 %0, %0, 1;\n}"
      : "+r"(code)
      : "f"(x), "f"(pivot));
}

// 16 * word + code of x in [-1, 1]. All lanes of the warp.
template <bool kFp4>
__device__ std::uint32_t Append(std::uint32_t word, LaneEntry mine, float x) {
  if constexpr (!kFp4) {
    const int bin = __float_as_int(__fmaf_rn(x, kNf4Scale, kNf4Shift));
    const float pivot = __shfl_sync(kWholeWarp, mine.pivot, bin);
    word = word * 16 + __shfl_sync(kWholeWarp, mine.codes, bin);
    AddIfAbove(word, x, pivot);
    return word;
  } else {
    const float magnitude = fabsf(x);
    const int bin = __float_as_int(__fmaf_rn(magnitude, kFp4Scale, kFp4Shift));
    const float pivot = __shfl_sync(kWholeWarp, mine.pivot, bin);
    const unsigned both = __shfl_sync(kWholeWarp, mine.codes, bin);
    return word * 16 + ((magnitude > pivot ? both >> 4 : both & 15U) | (x < 0.0F ? 8U : 0U));
  }
}

// Element i of the order in which a word takes its codes: the even element of a byte in its high nibble, the
// first byte lowest.
__device__ constexpr int PackOrder(int i) {
  return 6 - i / 2 * 2 + i % 2;
}

// Codes of one vector of usual blocks.
template <bool kFp4>
__device__ std::uint32_t EncodeEight(LaneEntry mine, const float (&x)[8], float inverse) {
  std::uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) word = Append<kFp4>(word, mine, x[PackOrder(i)] * inverse);
  return word;
}

// The same for any block: NaN has the code 0, elements from `valid` on the code of zero.
template <bool kFp4>
__device__ std::uint32_t EncodeUnusual(LaneEntry mine, const float (&x)[8], std::uint32_t most, int valid) {
  std::uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float normal = PackOrder(i) < valid ? NormaliseUnusual(x[PackOrder(i)], most) : 0.0F;
    const bool nan = normal != normal;
    const std::uint32_t next = Append<kFp4>(word, mine, nan ? 0.0F : normal);
    word = nan ? word * 16 : next;
  }
  return word;
}

// Packs a tile. `left`: elements of the run from the tile's first on; `packed` is the tile's.
template <wire::DType kType, bool kFp4>
__device__ void EncodeTile(const BlockTile<kType>& tile, const std::uint32_t (&most)[kTileVectors],
                           LaneEntry mine, std::uint8_t* packed, std::uint64_t left, bool vectorised) {
  bool unusual = false;
#pragma unroll
  for (int v = 0; v < kTileVectors; ++v) unusual = unusual || IsUnusual(most[v]);
  unusual = __any_sync(kWholeWarp, unusual) != 0;
  float inverse[kTileVectors];
  Inverses(most, inverse);
#pragma unroll
  for (int v = 0; v < kTileVectors; ++v) {
    float x[8];
    tile.vectors[v].ToFloats(x);
    const long long valid = static_cast<long long>(left) - VectorAt(v);
    const int inside = static_cast<int>(valid < 8 ? valid : 8);
    const std::uint32_t word =
        unusual ? EncodeUnusual<kFp4>(mine, x, most[v], inside) : EncodeEight<kFp4>(mine, x, inverse[v]);
    std::uint8_t* const at = packed + VectorAt(v) / 2;
    if (vectorised && valid >= 8) {
      *reinterpret_cast<std::uint32_t*>(at) = word;
    } else {
      for (int i = 0; 2 * i < inside; ++i) at[i] = static_cast<std::uint8_t>(word >> (8 * i));
    }
  }
}

// The absmaxes of a tile's vectors, read or computed and written.
template <wire::DType kType>
__device__ void FindAbsmax(const QuantizeParams& p, const BlockTile<kType>& tile, float* absmax,
                           std::uint64_t left, std::uint32_t* chunks, std::uint32_t (&most)[kTileVectors]) {
  if (p.absmax_given) {
#pragma unroll
    for (int v = 0; v < kTileVectors; ++v) {
      const unsigned block = VectorAt(v) >> p.log2_block;  // lanes of one block read the same
      most[v] = (block << p.log2_block) < left ? __float_as_uint(absmax[block]) : 0U;
    }
    return;
  }
  tile.Absmax(p.log2_block, chunks, most);
  if (p.log2_block > 8) __syncthreads();  // `chunks` is used again
#pragma unroll
  for (int v = 0; v < kTileVectors; ++v) {
    const bool begins = (VectorAt(v) & ((1U << p.log2_block) - 1)) == 0;
    if (begins && VectorAt(v) < left) absmax[VectorAt(v) >> p.log2_block] = __uint_as_float(most[v]);
  }
}

// Grid: any number of thread blocks for each run, runs. A run without `packed` gets its absmaxes alone.
template <wire::DType kType, bool kFp4>
__global__ void __launch_bounds__(kTileThreads, kTileBlocksOf<kType>)
    QuantizeKernel(const __grid_constant__ QuantizeParams p) {
  __shared__ std::uint32_t chunks[kTileChunks];
  const WeightRun& run = p.runs[blockIdx.y];
  const LaneEntry mine = {p.table.pivots[threadIdx.x % 32], p.table.codes[threadIdx.x % 32]};
  const auto load = [&](BlockTile<kType>& tile, std::uint64_t first) {
    tile.Load(run.plain + first * kBytesOf<kType>, run.elements - first, run.vectorised != 0);
  };
  const auto work = [&](const BlockTile<kType>& tile, std::uint64_t first) {
    const std::uint64_t left = run.elements - first;
    std::uint32_t most[kTileVectors];
    FindAbsmax(p, tile, reinterpret_cast<float*>(run.scales) + (first >> p.log2_block), left, chunks, most);
    if (run.packed == nullptr) return;
    EncodeTile<kType, kFp4>(tile, most, mine, run.packed + first / 2, left, run.vectorised != 0);
  };
  ForTiles<kType>(run.elements, blockIdx.x, gridDim.x, load, work);
}

template <wire::DType kType>
void LaunchOf(CUstream_st* stream, bool fp4, const QuantizeParams& p, dim3 grid) {
  if (fp4) {
    QuantizeKernel<kType, true><<<grid, kTileThreads, 0, stream>>>(p);
  } else {
    QuantizeKernel<kType, false><<<grid, kTileThreads, 0, stream>>>(p);
  }
}

wire::Status Launch(CUstream_st* stream, wire::DType type, bool fp4, const QuantizeParams& p,
                    std::size_t runs, std::uint64_t longest) {
  std::uint32_t multiprocessors = 0;
  if (wire::Status s = CountMultiprocessors(&multiprocessors); !s.ok()) return s;
  // Whole rounds of thread blocks, each with up to kTilesOfBlock tiles.
  const std::uint64_t tiles = (longest + kTileElements - 1) / kTileElements;
  const std::uint64_t room = std::uint64_t{multiprocessors} * kTileBlocks;
  const std::uint64_t rounds = (tiles * runs + room * kTilesOfBlock - 1) / (room * kTilesOfBlock);
  const std::uint64_t of_block = (tiles * runs + room * rounds - 1) / (room * rounds);
  const dim3 grid(static_cast<unsigned>((tiles + of_block - 1) / of_block), static_cast<unsigned>(runs));
  switch (type) {
    case wire::DType::kF32:
      LaunchOf<wire::DType::kF32>(stream, fp4, p, grid);
      break;
    case wire::DType::kF16:
      LaunchOf<wire::DType::kF16>(stream, fp4, p, grid);
      break;
    default:
      LaunchOf<wire::DType::kBF16>(stream, fp4, p, grid);
  }
  return LaunchStatus("quantize");
}

}  // namespace

wire::Status QuantizeRuns(CUstream_st* stream, const RunFormat& format, wire::DType in_dtype,
                          bool absmax_given, std::span<const WeightRun> runs) {
  QuantizeParams p{};
  const bool fp4 = format.type == wire::QuantType::kFP4;
  p.table = fp4 ? kFp4Encode : kNf4Encode;
  p.log2_block = Log2(format.blocksize);
  p.absmax_given = absmax_given;
  return InBatches(runs, [&](std::span<const WeightRun> batch, std::uint64_t longest) {
    std::copy(batch.begin(), batch.end(), p.runs);
    for (WeightRun& run : p.runs)
      run.vectorised = IsAligned(run.plain, 16) && IsAligned(run.packed, 4) ? 1 : 0;
    return Launch(stream, in_dtype, fp4, p, batch.size(), longest);
  });
}

wire::Status BlockAbsmax(CUstream_st* stream, const BlockAbsmaxArgs& args) {
  RunFormat format;
  format.blocksize = args.blocksize;
  WeightRun run;
  run.plain = static_cast<std::byte*>(const_cast<void*>(args.in));
  run.scales = reinterpret_cast<std::byte*>(args.absmax);
  run.elements = args.elements;
  return QuantizeRuns(stream, format, args.in_dtype, false, {&run, 1});
}

wire::Status Quantize(CUstream_st* stream, const QuantizeArgs& args) {
  const bool given = args.absmax != nullptr;
  const float* const absmax = given ? args.absmax : args.absmax_out;
  if (given) {
    if (wire::Status s = MovePacked(stream, ScalesInto(args)); !s.ok()) return s;
  }
  RunFormat format;
  format.type = args.format.type;
  format.blocksize = args.format.layout.blocksize;
  std::vector<WeightRun> runs;
  runs.reserve(args.spans.size());
  for (std::size_t i = 0; i < args.spans.size(); ++i) {
    const WeightSpan& span = args.spans[i];
    WeightRun run = RunOf(args.format.layout, span, args.ins[i]);
    if (absmax != nullptr) {
      run.scales = reinterpret_cast<std::byte*>(const_cast<float*>(absmax + span.first_global_block));
    }
    runs.push_back(run);
  }
  return QuantizeRuns(stream, format, args.in_dtype, given, runs);
}

}  // namespace bitpager::kernels::cuda
