// Multiply4: a batch of up to 32 rows times a 4-bit weight, which is read once.
//
// A thread block has 16 rows of the weight at a time, its 8 warps interleave over the columns. A byte of
// codes becomes the pair of its values by one load from shared memory (a copy of the table for each lane: no
// bank conflicts; the address is a byte permute), which is at once a register of the left operand of
// m16n8k16; x is the right one, its unused columns repeat the last row. Products within a block of the weight
// are summed by the tensor cores, then scaled by the block's absmax. Columns are dealt to lanes so that each
// loads neighbouring bytes; the product does not depend on their order. Each warp's next codes are on their
// way while it multiplies, across the tiles' ends too.
#include <algorithm>

#include "kernels/cuda/codebooks.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/gemv.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/weight_run.h"

namespace bitpager::kernels::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kRows = 16;                       // of a tile
constexpr int kUnit = 256;                      // columns that a warp loads at once
constexpr std::size_t kTableBytes = 256 * 256;  // a row of 256 bytes for each byte, its first half in use
// Sums of the warps, behind the table and the nested absmaxes' map.
template <int kBatches>
constexpr std::size_t kSharedBytes = kTableBytes + 256 * 4 + std::size_t{kWarps} * kRows * 8 * kBatches * 4;
template <int kBatches>
constexpr int kBlocksOf = kBatches == 1 ? 3 : 2;  // of a multiprocessor

struct GemvParams {
  const std::byte* pages[kGemvPages];  // [0] are the packed codes when not paged
  const std::byte* x;
  std::byte* y;
  const std::byte* scales;  // not paged
  const float* absmax2;     // not paged
  const float* offset_at;
  float offset;
  std::uint32_t batch, rows, columns;
  std::uint32_t log2_block;
  std::uint32_t blocks_per_page;
  std::uint32_t page_of_block;  // (2^32 - 1) / blocks_per_page
  std::uint32_t scales_offset, absmax2_offset;
  bool nested, fp4;
};
static_assert(sizeof(GemvParams) <= 4096);

// A block's page and its number there.
struct InPage {
  const std::byte* page;
  std::uint32_t block;
};
__device__ InPage PageOf(const GemvParams& p, std::uint32_t block) {
  std::uint32_t index = __umulhi(block, p.page_of_block);  // the quotient, or one less
  std::uint32_t inside = block - index * p.blocks_per_page;
  if (inside >= p.blocks_per_page) {
    ++index;
    inside -= p.blocks_per_page;
  }
  return {p.pages[index], inside};
}

// Where a block of the weight lies.
struct Place {
  const std::byte* packed;
  const std::byte* scale;
  const float* absmax2;
};
// Of block `block`, which is at.block of its page.
__device__ Place PlaceIn(const GemvParams& p, InPage at, std::uint32_t block) {
  const unsigned width = p.nested ? 1 : 4;
  return {
      at.page + (at.block << (p.log2_block - 1)), at.page + p.scales_offset + at.block * width,
      reinterpret_cast<const float*>(at.page + p.absmax2_offset) + (block / 256 - (block - at.block) / 256)};
}
template <bool kPaged>
__device__ Place PlaceOf(const GemvParams& p, std::uint32_t block) {
  if constexpr (kPaged) return PlaceIn(p, PageOf(p, block), block);
  const unsigned width = p.nested ? 1 : 4;
  return {p.pages[0] + (std::size_t{block} << (p.log2_block - 1)), p.scales + std::size_t{block} * width,
          p.absmax2 + block / 256};
}
// An absmax as it was loaded: turned into a number only when it is used, so that nobody waits for it before.
struct Scale {
  std::uint32_t raw;  // bits of the absmax, or its code when nested
  float absmax2;      // nested
};
__device__ Scale LoadScale(const GemvParams& p, const Place& place) {
  if (!p.nested) return {__ldg(reinterpret_cast<const std::uint32_t*>(place.scale)), 0.0F};
  return {__ldg(reinterpret_cast<const std::uint8_t*>(place.scale)), __ldg(place.absmax2)};
}
__device__ float ValueOf(const GemvParams& p, Scale scale, const float* map, float offset) {
  if (!p.nested) return __uint_as_float(scale.raw);
  return __fadd_rn(__fmul_rn(map[scale.raw], scale.absmax2), offset);
}

// d += a b, m16n8k16, fp32 sums.
template <wire::DType kType>
__device__ void Multiply([[maybe_unused]] float (&d)[4], [[maybe_unused]] const std::uint32_t (&a)[4],
                         [[maybe_unused]] std::uint32_t b0, [[maybe_unused]] std::uint32_t b1) {
#if __CUDA_ARCH__ >= 800  // older devices are refused before the launch
  if constexpr (kType == wire::DType::kBF16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#endif
}

// The values of byte `i` of `word`, the even element below.
__device__ std::uint32_t PairOf(const std::byte* table, std::uint32_t word, std::uint32_t lane_bytes, int i) {
  const std::uint32_t at = __byte_perm(word, lane_bytes, 0x5504U | static_cast<unsigned>(i) << 4);
  return *reinterpret_cast<const std::uint32_t*>(table + at);
}

// One unit of columns of 16 rows, loaded. kStep: columns that share an absmax and are loaded together by the
// four lanes of a row. kWhole: tell the units of which no row lies in two pages, nor past the last column:
// there one look-up serves a row, and all that it is needed for has a constant distance.
template <int kStep, bool kPaged, bool kWhole>
struct Unit {
  static constexpr int kSteps = kUnit / kStep;
  static constexpr int kWords = kStep / 32;                    // of a lane and row
  static constexpr int kScales = kSteps > 4 ? kSteps / 4 : 1;  // that a lane keeps for a row
  std::uint32_t words[kSteps][2][kWords];
  Scale scales[kScales][2];

  __device__ void Load(const GemvParams& p, std::uint32_t first_row, std::uint32_t column) {
    if constexpr (kWhole) {
      InPage at[2];
      bool whole = column < p.columns && p.columns - column >= kUnit;
      const std::uint32_t more = ((column + kUnit - 1) >> p.log2_block) - (column >> p.log2_block);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        at[half] = PageOf(p, FirstBlock(p, first_row, column, half));
        whole = whole && at[half].block + more < p.blocks_per_page;
      }
      if (__all_sync(kWholeWarp, whole)) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          LoadWhole(p, at[half], FirstBlock(p, first_row, column, half), column, half);
        }
        return;
      }
    }
    LoadAny(p, first_row, column);
  }

  // The row of the lane's quad.
  static __device__ std::uint32_t RowOf(const GemvParams& p, std::uint32_t first_row, int half) {
    return min(first_row + threadIdx.x % 32 / 4 + 8 * half, p.rows - 1);
  }
  static __device__ std::uint32_t FirstBlock(const GemvParams& p, std::uint32_t first_row,
                                             std::uint32_t column, int half) {
    return RowOf(p, first_row, half) * (p.columns >> p.log2_block) + (column >> p.log2_block);
  }
  __device__ void LoadWords(const std::byte* from, int s, int half) {
    if constexpr (kWords == 1) {
      words[s][half][0] = __ldcs(reinterpret_cast<const std::uint32_t*>(from));
    } else {
      const uint2 two = __ldcs(reinterpret_cast<const uint2*>(from));
      words[s][half][0] = two.x;
      words[s][half][1] = two.y;
    }
  }

  // A row that begins in `block`, which is at.block of its page.
  __device__ void LoadWhole(const GemvParams& p, InPage at, std::uint32_t block, std::uint32_t column,
                            int half) {
    const unsigned lane = threadIdx.x % 4;
    const std::uint32_t inside = column & ((1U << p.log2_block) - 1);
    const std::byte* const from = PlaceIn(p, at, block).packed + inside / 2 + lane * (4 * kWords);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) LoadWords(from + s * (kStep / 2), s, half);
#pragma unroll
    for (int i = 0; i < kScales; ++i) {
      const std::uint32_t after = (inside + (4 * i + lane) % kSteps * kStep) >> p.log2_block;
      scales[i][half] = LoadScale(p, PlaceIn(p, {at.page, at.block + after}, block + after));
    }
  }

  __device__ void LoadAny(const GemvParams& p, std::uint32_t first_row, std::uint32_t column) {
    const unsigned lane = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const std::uint32_t at = min(column + s * kStep, p.columns - kStep);
        const std::uint32_t inside = at & ((1U << p.log2_block) - 1);
        const std::byte* const packed = PlaceOf<kPaged>(p, FirstBlock(p, first_row, at, half)).packed;
        LoadWords(packed + inside / 2 + lane * (4 * kWords), s, half);
      }
#pragma unroll
      for (int i = 0; i < kScales; ++i) {  // of steps lane, lane + 4, ...
        const std::uint32_t at = min(column + (4 * i + lane) % kSteps * kStep, p.columns - kStep);
        scales[i][half] = LoadScale(p, PlaceOf<kPaged>(p, FirstBlock(p, first_row, at, half)));
      }
    }
  }

  // sums += the unit times x from `column` on. x_rows: the row of x that the lane's quad has, of each batch
  // of 8.
  template <wire::DType kType, int kBatches>
  __device__ void Add(const GemvParams& p, const std::byte* const (&x_rows)[kBatches], std::uint32_t column,
                      const std::byte* table, const float* map, float offset,
                      float (&sums)[kBatches][4]) const {
    const std::uint32_t lane_bytes = threadIdx.x % 32 * 4;
    float values[kScales][2];
#pragma unroll
    for (int i = 0; i < kScales; ++i) {
      const bool inside = column + (4 * i + threadIdx.x % 4) % kSteps * kStep < p.columns;
      values[i][0] = inside ? ValueOf(p, scales[i][0], map, offset) : 0.0F;
      values[i][1] = inside ? ValueOf(p, scales[i][1], map, offset) : 0.0F;
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const std::uint32_t at = min(column + s * kStep, p.columns - kStep) + threadIdx.x % 4 * (kStep / 4);
      float block[kBatches][4] = {};
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        std::uint32_t a[2][4];
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          a[pair][0] = PairOf(table, words[s][0][w], lane_bytes, 2 * pair);
          a[pair][1] = PairOf(table, words[s][1][w], lane_bytes, 2 * pair);
          a[pair][2] = PairOf(table, words[s][0][w], lane_bytes, 2 * pair + 1);
          a[pair][3] = PairOf(table, words[s][1][w], lane_bytes, 2 * pair + 1);
        }
#pragma unroll
        for (int b = 0; b < kBatches; ++b) {
          const uint4 eight = __ldg(reinterpret_cast<const uint4*>(x_rows[b] + std::size_t{at} * 2) + w);
          Multiply<kType>(block[b], a[0], eight.x, eight.y);
          Multiply<kType>(block[b], a[1], eight.z, eight.w);
        }
      }
      const int from = static_cast<int>((threadIdx.x % 32 & ~3U) + s % 4);
      const float upper = __shfl_sync(kWholeWarp, values[s / 4][0], from);
      const float lower = __shfl_sync(kWholeWarp, values[s / 4][1], from);
#pragma unroll
      for (int b = 0; b < kBatches; ++b) {
        sums[b][0] = __fmaf_rn(block[b][0], upper, sums[b][0]);
        sums[b][1] = __fmaf_rn(block[b][1], upper, sums[b][1]);
        sums[b][2] = __fmaf_rn(block[b][2], lower, sums[b][2]);
        sums[b][3] = __fmaf_rn(block[b][3], lower, sums[b][3]);
      }
    }
  }
};

// Pairs of values for every byte of codes, a copy for each lane.
template <wire::DType kType>
__device__ void FillTable(const float* values, std::byte* table) {
  for (unsigned i = threadIdx.x; i < 256 * 32; i += kThreads) {
    const unsigned byte = i / 32;
    const std::uint32_t pair = FloatsToPair<kType>(values[byte / 16], values[byte % 16]);
    *reinterpret_cast<std::uint32_t*>(table + byte * 256 + i % 32 * 4) = pair;
  }
}

// Sums of the warps in order, to y.
template <wire::DType kType, int kBatches>
__device__ void Deliver(const GemvParams& p, std::uint32_t first_row, const float (&mine)[kBatches][4],
                        float* sums) {
  constexpr unsigned kAll = kRows * 8 * kBatches;  // sums of one warp
  const unsigned lane = threadIdx.x % 32;
#pragma unroll
  for (int b = 0; b < kBatches; ++b) {
    float* const at = sums + threadIdx.x / 32 * kAll + b * (kRows * 8) + lane / 4 * 8 + lane % 4 * 2;
    at[0] = mine[b][0];
    at[1] = mine[b][1];
    at[64] = mine[b][2];
    at[65] = mine[b][3];
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < kAll; i += kThreads) {
    const unsigned row = first_row + i / 8 % kRows;
    const unsigned batch = i / (kRows * 8) * 8 + i % 8;
    if (row >= p.rows || batch >= p.batch) continue;
    float total = 0.0F;
#pragma unroll
    for (unsigned w = 0; w < kWarps; ++w) total += sums[w * kAll + i];
    StoreElement<kType>(p.y + (std::size_t{batch} * p.rows + row) * 2, total);
  }
  __syncthreads();
}

// Any grid: a thread block takes every gridDim.x-th tile of 16 rows. kBatches: of 8 rows of x.
template <wire::DType kType, int kStep, bool kPaged, int kBatches>
__global__ void __launch_bounds__(kThreads, kBlocksOf<kBatches>)
    GemvKernel(const __grid_constant__ GemvParams p) {
  extern __shared__ __align__(256) std::byte table[];
  auto* const map = reinterpret_cast<float*>(table + kTableBytes);
  float* const sums = map + 256;
  const float offset = p.offset_at == nullptr ? p.offset : *p.offset_at;
  if (p.nested) map[threadIdx.x] = kSignedMapOnDevice.values[threadIdx.x];
  const std::byte* x_rows[kBatches];
#pragma unroll
  for (int b = 0; b < kBatches; ++b) {
    x_rows[b] = p.x + std::size_t{min(8 * b + threadIdx.x % 32 / 4, p.batch - 1)} * p.columns * 2;
  }
  const std::uint32_t first_column = threadIdx.x / 32 * kUnit;
  std::uint32_t row = blockIdx.x * kRows;
  std::uint32_t column = first_column;  // past the end for some warps: then their scales are zeros
  using Loaded = Unit<kStep, kPaged, kPaged && kBatches == 1>;  // of more batches, registers are short
  Loaded next;
  next.Load(p, row, column);
  FillTable<kType>(p.fp4 ? kFp4OnDevice.values : kNf4OnDevice.values, table);
  __syncthreads();
  float mine[kBatches][4] = {};
  while (true) {
    const Loaded unit = next;
    const std::uint32_t here = column;
    const bool ends = column - first_column + kWarps * kUnit >= p.columns;  // for all warps alike
    const std::uint32_t ahead = ends ? row + gridDim.x * kRows : row;
    column = ends ? first_column : column + kWarps * kUnit;
    if (ahead < p.rows) next.Load(p, ahead, column);
    unit.template Add<kType>(p, x_rows, here, table, map, offset, mine);
    if (!ends) continue;
    Deliver<kType>(p, row, mine, sums);
    if (ahead >= p.rows) return;
    row = ahead;
#pragma unroll
    for (int b = 0; b < kBatches; ++b) mine[b][0] = mine[b][1] = mine[b][2] = mine[b][3] = 0.0F;
  }
}

template <wire::DType kType, int kStep, bool kPaged, int kBatches>
wire::Status LaunchBatches(CUstream_st* stream, const GemvParams& p) {
  const auto kernel = GemvKernel<kType, kStep, kPaged, kBatches>;
  constexpr std::size_t kBytes = kSharedBytes<kBatches>;
  if (wire::Status s = StatusOf(
          cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes)),
          "give a product its shared memory");
      !s.ok()) {
    return s;
  }
  std::uint32_t multiprocessors = 0;
  if (wire::Status s = CountMultiprocessors(&multiprocessors); !s.ok()) return s;
  const unsigned tiles = (p.rows + kRows - 1) / kRows;
  const unsigned room = kBlocksOf<kBatches> * multiprocessors;
  const unsigned rounds = (tiles + room - 1) / room;  // the same number of tiles for every thread block
  kernel<<<(tiles + rounds - 1) / rounds, kThreads, kBytes, stream>>>(p);
  return LaunchStatus("multiply by a 4-bit weight");
}

template <wire::DType kType, int kStep, bool kPaged>
wire::Status LaunchPlaced(CUstream_st* stream, const GemvParams& p) {
  if (p.batch <= 8) return LaunchBatches<kType, kStep, kPaged, 1>(stream, p);
  return LaunchBatches<kType, kStep, kPaged, 4>(stream, p);
}

template <wire::DType kType>
wire::Status Launch(CUstream_st* stream, const GemvParams& p) {
  const bool paged = p.blocks_per_page != 0;
  if (p.log2_block == 5) {
    return paged ? LaunchPlaced<kType, 32, true>(stream, p) : LaunchPlaced<kType, 32, false>(stream, p);
  }
  return paged ? LaunchPlaced<kType, 64, true>(stream, p) : LaunchPlaced<kType, 64, false>(stream, p);
}

}  // namespace

wire::Status Multiply4(CUstream_st* stream, const Gemv4& args) {
  GemvParams p{};
  if (args.pages != nullptr) {
    std::copy_n(args.pages, args.page_count, p.pages);
    p.blocks_per_page = args.blocks_per_page;
    p.page_of_block = 0xFFFFFFFFU / args.blocks_per_page;
  } else {
    p.pages[0] = args.packed;
  }
  p.x = static_cast<const std::byte*>(args.x);
  p.y = static_cast<std::byte*>(args.y);
  p.scales = args.scales;
  p.absmax2 = args.absmax2;
  p.offset = args.offset;
  p.offset_at = args.offset_at;
  p.batch = args.batch;
  p.rows = args.rows;
  p.columns = args.columns;
  p.log2_block = Log2(args.blocksize);
  p.scales_offset = args.scales_offset;
  p.absmax2_offset = args.absmax2_offset;
  p.nested = args.nested;
  p.fp4 = args.type == wire::QuantType::kFP4;
  return args.dtype == wire::DType::kBF16 ? Launch<wire::DType::kBF16>(stream, p)
                                          : Launch<wire::DType::kF16>(stream, p);
}

}  // namespace bitpager::kernels::cuda
