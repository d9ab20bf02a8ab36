// Multiply4: a batch of up to 8 rows times a 4-bit weight, which is read once.
//
// A thread block has 16 rows of the weight at a time, its 16 warps interleave over the columns. A byte of
// codes becomes the pair of its values by one load from shared memory (a copy of the table for each lane: no
// bank conflicts; the address is a byte permute), which is at once a register of the left operand of
// m16n8k16; x is the right one, its unused columns repeat the last row. Products within a block of the weight
// are summed by the tensor cores, then scaled by the block's absmax. Columns are dealt to lanes so that each
// loads neighbouring bytes; the product does not depend on their order.
#include <algorithm>

#include "kernels/cuda/codebooks.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/gemv.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/weight_run.h"

namespace bitpager::kernels::cuda {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = 32 * kWarps;
constexpr int kRows = 16;                       // of a tile
constexpr int kUnit = 256;                      // columns that a warp loads at once
constexpr std::size_t kTableBytes = 256 * 256;  // a row of 256 bytes for each byte, its first half in use
constexpr std::size_t kSumBytes = std::size_t{kWarps} * kRows * 8 * 4;
constexpr std::size_t kSharedBytes = kTableBytes + kSumBytes + 256 * 4;

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
  std::uint32_t blocks_per_page;  // 0: not paged
  std::uint32_t scales_offset, absmax2_offset;
  bool nested, fp4;
};
static_assert(sizeof(GemvParams) <= 4096);

// Where a block of the weight lies.
struct Place {
  const std::byte* packed;
  const std::byte* scale;
  const float* absmax2;
};
__device__ Place PlaceOf(const GemvParams& p, std::uint32_t block) {
  const unsigned width = p.nested ? 1 : 4;
  if (p.blocks_per_page == 0) {
    return {p.pages[0] + (std::size_t{block} << (p.log2_block - 1)), p.scales + std::size_t{block} * width,
            p.absmax2 + block / 256};
  }
  const std::uint32_t index = block / p.blocks_per_page;
  const std::uint32_t first = index * p.blocks_per_page;
  const std::byte* const page = p.pages[index];
  return {page + (std::size_t{block - first} << (p.log2_block - 1)),
          page + p.scales_offset + std::size_t{block - first} * width,
          reinterpret_cast<const float*>(page + p.absmax2_offset) + (block / 256 - first / 256)};
}
__device__ float ScaleOf(const GemvParams& p, const Place& place, const float* map, float offset) {
  if (!p.nested) return __ldg(reinterpret_cast<const float*>(place.scale));
  const unsigned code = __ldg(reinterpret_cast<const std::uint8_t*>(place.scale));
  return __fadd_rn(__fmul_rn(map[code], __ldg(place.absmax2)), offset);
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
// four lanes of a row: the block, or 128 columns of a longer one.
template <int kStep>
struct Unit {
  static constexpr int kSteps = kUnit / kStep;
  static constexpr int kWords = kStep / 32;                    // of a lane and row
  static constexpr int kScales = kSteps > 4 ? kSteps / 4 : 1;  // that a lane keeps for a row
  std::uint32_t words[kSteps][2][kWords];
  float scales[kScales][2];

  __device__ void Load(const GemvParams& p, std::uint32_t (&row)[2], std::uint32_t column, const float* map,
                       float offset) {
    const unsigned lane = threadIdx.x % 4;
    const std::uint32_t row_blocks = p.columns >> p.log2_block;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const std::uint32_t at = min(column + s * kStep, p.columns - kStep);
        const std::uint32_t block = row[half] * row_blocks + (at >> p.log2_block);
        const std::uint32_t inside = at & ((1U << p.log2_block) - 1);
        const std::byte* const from = PlaceOf(p, block).packed + inside / 2 + lane * (4 * kWords);
        if constexpr (kWords == 1) {
          words[s][half][0] = __ldcs(reinterpret_cast<const std::uint32_t*>(from));
        } else if constexpr (kWords == 2) {
          const uint2 two = __ldcs(reinterpret_cast<const uint2*>(from));
          words[s][half][0] = two.x;
          words[s][half][1] = two.y;
        } else {
          const uint4 four = __ldcs(reinterpret_cast<const uint4*>(from));
          words[s][half][0] = four.x;
          words[s][half][1] = four.y;
          words[s][half][2] = four.z;
          words[s][half][3] = four.w;
        }
      }
#pragma unroll
      for (int i = 0; i < kScales; ++i) {  // of steps lane, lane + 4, ...
        const std::uint32_t at = column + (4 * i + lane) % kSteps * kStep;
        const std::uint32_t block = row[half] * row_blocks + (min(at, p.columns - kStep) >> p.log2_block);
        scales[i][half] = at < p.columns ? ScaleOf(p, PlaceOf(p, block), map, offset) : 0.0F;
      }
    }
  }

  template <wire::DType kType>
  __device__ void Add(const uint4 (&x)[kUnit / 32], const std::byte* table, float (&sums)[4]) const {
    const std::uint32_t lane_bytes = threadIdx.x % 32 * 4;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      float block[4] = {0.0F, 0.0F, 0.0F, 0.0F};
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const uint4 eight = x[s * kWords + w];
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          std::uint32_t a[4];
          a[0] = PairOf(table, words[s][0][w], lane_bytes, 2 * pair);
          a[1] = PairOf(table, words[s][1][w], lane_bytes, 2 * pair);
          a[2] = PairOf(table, words[s][0][w], lane_bytes, 2 * pair + 1);
          a[3] = PairOf(table, words[s][1][w], lane_bytes, 2 * pair + 1);
          Multiply<kType>(block, a, pair == 0 ? eight.x : eight.z, pair == 0 ? eight.y : eight.w);
        }
      }
      const int from = static_cast<int>((threadIdx.x % 32 & ~3U) + s % 4);
      const float upper = __shfl_sync(kWholeWarp, scales[s / 4][0], from);
      const float lower = __shfl_sync(kWholeWarp, scales[s / 4][1], from);
      sums[0] = __fmaf_rn(block[0], upper, sums[0]);
      sums[1] = __fmaf_rn(block[1], upper, sums[1]);
      sums[2] = __fmaf_rn(block[2], lower, sums[2]);
      sums[3] = __fmaf_rn(block[3], lower, sums[3]);
    }
  }
};

// What a lane needs of x for the unit at `column`.
template <int kStep>
__device__ void LoadX(const GemvParams& p, const std::byte* x_row, std::uint32_t column,
                      uint4 (&x)[kUnit / 32]) {
  constexpr int kWords = kStep / 32;
#pragma unroll
  for (int s = 0; s < kUnit / kStep; ++s) {
    const std::uint32_t at = min(column + s * kStep, p.columns - kStep) + threadIdx.x % 4 * (kStep / 4);
#pragma unroll
    for (int w = 0; w < kWords; ++w)
      x[s * kWords + w] = __ldg(reinterpret_cast<const uint4*>(x_row + at * 2) + w);
  }
}

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
template <wire::DType kType>
__device__ void Deliver(const GemvParams& p, std::uint32_t first_row, const float (&mine)[4], float* sums) {
  const unsigned lane = threadIdx.x % 32;
  float* const warp = sums + threadIdx.x / 32 * (kRows * 8);
  const unsigned at = lane / 4 * 8 + lane % 4 * 2;
  warp[at] = mine[0];
  warp[at + 1] = mine[1];
  warp[at + 64] = mine[2];
  warp[at + 65] = mine[3];
  __syncthreads();
  const unsigned row = threadIdx.x / 8;
  const unsigned batch = threadIdx.x % 8;
  if (row < kRows && first_row + row < p.rows && batch < p.batch) {
    float total = 0.0F;
    for (int w = 0; w < kWarps; ++w) total += sums[w * (kRows * 8) + threadIdx.x];
    StoreElement<kType>(p.y + (std::size_t{batch} * p.rows + first_row + row) * 2, total);
  }
  __syncthreads();
}

// Rows of a lane in tile `t` of a group of rows that begins at `first`; past the end, the last row.
__device__ void RowsOf(const GemvParams& p, std::uint32_t first, int t, std::uint32_t (&row)[2]) {
  const std::uint32_t upper = first + t * kRows + threadIdx.x % 32 / 4;
  row[0] = min(upper, p.rows - 1);
  row[1] = min(upper + 8, p.rows - 1);
}

// Any grid: a thread block takes every gridDim.x-th group of kTiles tiles of 16 rows.
template <wire::DType kType, int kStep, int kTiles>
__global__ void __launch_bounds__(kThreads, kTiles == 1 ? 2 : 1)
    GemvKernel(const __grid_constant__ GemvParams p) {
  extern __shared__ __align__(256) std::byte shared[];
  std::byte* const table = shared;
  auto* const sums = reinterpret_cast<float*>(shared + kTableBytes);
  auto* const map = reinterpret_cast<float*>(shared + kTableBytes + kSumBytes);
  const float offset = p.offset_at == nullptr ? p.offset : *p.offset_at;
  if (p.nested && threadIdx.x < 256) map[threadIdx.x] = kSignedMapOnDevice.values[threadIdx.x];
  FillTable<kType>(p.fp4 ? kFp4OnDevice.values : kNf4OnDevice.values, table);
  __syncthreads();
  const unsigned quad = threadIdx.x % 32 / 4;
  const std::byte* const x_row = p.x + std::size_t{min(quad, p.batch - 1)} * p.columns * 2;
  const std::uint32_t first_column = threadIdx.x / 32 * kUnit;
  for (std::uint32_t first = blockIdx.x * kRows * kTiles; first < p.rows;
       first += gridDim.x * kRows * kTiles) {
    std::uint32_t row[2];
    float mine[kTiles][4] = {};
    Unit<kStep> next;
    RowsOf(p, first, 0, row);
    if (first_column < p.columns) next.Load(p, row, first_column, map, offset);
    for (std::uint32_t column = first_column; column < p.columns; column += kWarps * kUnit) {
      uint4 x[kUnit / 32];
      LoadX<kStep>(p, x_row, column, x);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const Unit<kStep> unit = next;
        const std::uint32_t ahead = t + 1 < kTiles ? column : column + kWarps * kUnit;
        RowsOf(p, first, (t + 1) % kTiles, row);
        if (ahead < p.columns) next.Load(p, row, ahead, map, offset);
        unit.template Add<kType>(x, table, mine[t]);
      }
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) Deliver<kType>(p, first + t * kRows, mine[t], sums);
  }
}

template <wire::DType kType, int kStep, int kTiles>
wire::Status LaunchTiles(CUstream_st* stream, const GemvParams& p, int multiprocessors) {
  const auto kernel = GemvKernel<kType, kStep, kTiles>;
  if (wire::Status s = StatusOf(
          cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kSharedBytes)),
          "give a product its shared memory");
      !s.ok()) {
    return s;
  }
  const unsigned groups = (p.rows + kRows * kTiles - 1) / (kRows * kTiles);
  const unsigned room = (kTiles == 1 ? 2 : 1) * static_cast<unsigned>(multiprocessors);
  const unsigned rounds = (groups + room - 1) / room;  // the same number of groups for every thread block
  kernel<<<(groups + rounds - 1) / rounds, kThreads, kSharedBytes, stream>>>(p);
  return LaunchStatus("multiply by a 4-bit weight");
}

template <wire::DType kType, int kStep>
wire::Status LaunchOf(CUstream_st* stream, const GemvParams& p) {
  int device = 0;
  int multiprocessors = 1;
  if (wire::Status s = StatusOf(cudaGetDevice(&device), "find the current device"); !s.ok()) return s;
  if (wire::Status s =
          StatusOf(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
                   "count multiprocessors");
      !s.ok()) {
    return s;
  }
  // Groups of 64 rows only where there are enough of them for every multiprocessor.
  if (p.rows >= 60U * static_cast<unsigned>(multiprocessors)) {
    return LaunchTiles<kType, kStep, 4>(stream, p, multiprocessors);
  }
  return LaunchTiles<kType, kStep, 1>(stream, p, multiprocessors);
}

template <wire::DType kType>
wire::Status Launch(CUstream_st* stream, const GemvParams& p) {
  if (p.log2_block == 5) return LaunchOf<kType, 32>(stream, p);
  if (p.log2_block == 6) return LaunchOf<kType, 64>(stream, p);
  return LaunchOf<kType, 128>(stream, p);
}

}  // namespace

wire::Status Multiply4(CUstream_st* stream, const Gemv4& args) {
  GemvParams p{};
  if (args.pages != nullptr) {
    std::copy_n(args.pages, args.page_count, p.pages);
    p.blocks_per_page = args.blocks_per_page;
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
