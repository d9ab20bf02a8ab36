// Dequantize: packed 4-bit codes and absmaxes, in pages or plain planes, to fp32, fp16 or bf16.
//
// A thread decodes as many neighbouring elements as fill one 16-byte store, so that loads and stores of a
// warp are both contiguous; it has the loads of kSteps such stores in flight. The 16 values of the type lie
// in the lanes of the warp (twice, so that the bit above a nibble does not matter) and are looked up by
// shuffles.
#include <algorithm>
#include <vector>

#include "kernels/cuda/codebooks.cuh"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/status.h"
#include "kernels/cuda/weight_run.h"
#include "kernels/cuda/weights.h"

namespace bitpager::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSteps = 4;

// Parameters are copied at every launch: few runs take a small form.
constexpr std::size_t kFewRuns = 8;

struct DequantizeFormat {
  float table[16];
  float offset;
  const float* offset_at;  // null: `offset`
  std::uint32_t log2_block;
  bool nested;
};
template <std::size_t kRuns>
struct DequantizeParams : DequantizeFormat {
  WeightRun runs[kRuns];
};
static_assert(sizeof(DequantizeParams<kRunsPerLaunch>) <= 4096);

// What nested absmaxes need beside their codes.
struct NestedTables {
  const float* map;  // the signed dynamic map, in shared memory
  float offset;
};

// absmax of block `block` of a run.
__device__ float ScaleOf(const DequantizeFormat& p, const WeightRun& run, std::uint64_t block,
                         const NestedTables& nested) {
  if (!p.nested) return __ldg(reinterpret_cast<const float*>(run.scales) + block);
  const unsigned code = __ldg(reinterpret_cast<const std::uint8_t*>(run.scales) + block);
  const float absmax2 = __ldg(run.absmax2 + ((block + run.group_phase) >> 8));
  return __fadd_rn(__fmul_rn(nested.map[code], absmax2), nested.offset);
}

// Element j of the neighbours that start at the lowest byte of `word`. All lanes of the warp.
__device__ float ValueOf(float lane_value, std::uint32_t word, int j) {
  return __shfl_sync(kWholeWarp, lane_value, static_cast<int>(word >> (j / 2 * 8 + (j % 2 == 0 ? 4 : 0))));
}

template <wire::DType kType>
struct Tile {
  static constexpr int kTogether = 16 / kBytesOf<kType>;  // elements of one store
  static constexpr int kElements = kThreads * kSteps * kTogether;

  // The first `elements` of the tile, aligned. The pointers and `block0` are the tile's.
  template <bool kWhole>
  static __device__ void Decode(const DequantizeFormat& p, const WeightRun& run, std::uint64_t block0,
                                const std::uint8_t* packed, std::byte* out, float value,
                                const NestedTables& nested, unsigned elements) {
    std::uint32_t words[kSteps];
    float scales[kSteps];
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const unsigned at = s * kThreads + threadIdx.x;
      words[s] = 0;
      if (!kWhole && (at + 1) * kTogether > elements) continue;
      if constexpr (kTogether == 8) {
        words[s] = __ldg(reinterpret_cast<const std::uint32_t*>(packed) + at);
      } else {
        words[s] = __ldg(reinterpret_cast<const std::uint16_t*>(packed) + at);
      }
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const unsigned element = (s * kThreads + threadIdx.x) * kTogether;
      scales[s] = 0.0F;
      if (!kWhole && element + kTogether > elements) continue;
      scales[s] = ScaleOf(p, run, block0 + (element >> p.log2_block), nested);
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const unsigned at = s * kThreads + threadIdx.x;
      float x[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) x[j] = ValueOf(value, words[s], j) * scales[s];
      if (!kWhole && (at + 1) * kTogether > elements) continue;
      uint4 stored;
      if constexpr (kType == wire::DType::kF32) {
        stored = make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]),
                            __float_as_uint(x[3]));
      } else {
        stored = make_uint4(FloatsToPair<kType>(x[0], x[1]), FloatsToPair<kType>(x[2], x[3]),
                            FloatsToPair<kType>(x[4], x[5]), FloatsToPair<kType>(x[6], x[7]));
      }
      reinterpret_cast<uint4*>(out)[at] = stored;
    }
  }

  // Elements [first, elements), `first` even, at any alignment: a byte of codes, two elements, at a time.
  static __device__ void DecodeRagged(const DequantizeFormat& p, const WeightRun& run, std::uint64_t block0,
                                      const std::uint8_t* packed, std::byte* out, float value,
                                      const NestedTables& nested, unsigned first, unsigned elements) {
    for (; first < elements; first += 2 * kThreads) {
      const unsigned element = first + 2 * threadIdx.x;
      const bool inside = element < elements;
      const std::uint32_t code = inside ? packed[element / 2] : 0U;
      const float scale = inside ? ScaleOf(p, run, block0 + (element >> p.log2_block), nested) : 0.0F;
      const float even = ValueOf(value, code, 0) * scale;
      const float odd = ValueOf(value, code, 1) * scale;
      std::byte* const at = out + std::size_t{element} * kBytesOf<kType>;
      if (inside) StoreElement<kType>(at, even);
      if (element + 1 < elements) StoreElement<kType>(at + kBytesOf<kType>, odd);
    }
  }
};

// Grid: tiles of the longest run, runs.
template <wire::DType kType, std::size_t kRuns>
__global__ void __launch_bounds__(kThreads)
    DequantizeKernel(const __grid_constant__ DequantizeParams<kRuns> p) {
  __shared__ float map[256];
  const WeightRun& run = p.runs[blockIdx.y];
  const std::uint64_t first = std::uint64_t{blockIdx.x} * Tile<kType>::kElements;
  if (first >= run.elements) return;
  const float value = p.table[threadIdx.x % 16];
  NestedTables nested = {map, 0.0F};
  if (p.nested) {
    nested.offset = p.offset_at == nullptr ? p.offset : *p.offset_at;
    map[threadIdx.x] = kSignedMapOnDevice.values[threadIdx.x];
    __syncthreads();
  }
  const std::uint8_t* const packed = run.packed + first / 2;
  std::byte* const out = run.plain + first * kBytesOf<kType>;
  const std::uint64_t left = run.elements - first;
  const std::uint64_t block0 = first >> p.log2_block;
  if (run.vectorised != 0 && left >= Tile<kType>::kElements) {
    Tile<kType>::template Decode<true>(p, run, block0, packed, out, value, nested, Tile<kType>::kElements);
    return;
  }
  const auto elements = static_cast<unsigned>(left < Tile<kType>::kElements ? left : Tile<kType>::kElements);
  unsigned done = 0;
  if (run.vectorised != 0) {
    Tile<kType>::template Decode<false>(p, run, block0, packed, out, value, nested, elements);
    done = elements / Tile<kType>::kTogether * Tile<kType>::kTogether;
  }
  Tile<kType>::DecodeRagged(p, run, block0, packed, out, value, nested, done, elements);
}

template <wire::DType kType, std::size_t kRuns>
wire::Status LaunchRuns(CUstream_st* stream, const DequantizeFormat& format, std::span<const WeightRun> runs,
                        std::uint64_t longest) {
  constexpr std::uint64_t kTile = Tile<kType>::kElements;
  DequantizeParams<kRuns> p{format, {}};
  std::copy(runs.begin(), runs.end(), p.runs);
  for (WeightRun& run : p.runs) run.vectorised = IsAligned(run.packed, 4) && IsAligned(run.plain, 16) ? 1 : 0;
  const dim3 grid(static_cast<unsigned>((longest + kTile - 1) / kTile), static_cast<unsigned>(runs.size()));
  DequantizeKernel<kType, kRuns><<<grid, kThreads, 0, stream>>>(p);
  return LaunchStatus("dequantize");
}

template <wire::DType kType>
wire::Status Launch(CUstream_st* stream, const DequantizeFormat& format, std::span<const WeightRun> runs,
                    std::uint64_t longest) {
  return runs.size() <= kFewRuns ? LaunchRuns<kType, kFewRuns>(stream, format, runs, longest)
                                 : LaunchRuns<kType, kRunsPerLaunch>(stream, format, runs, longest);
}

}  // namespace

wire::Status DequantizeRuns(CUstream_st* stream, const RunFormat& format, wire::DType out_dtype,
                            std::span<const WeightRun> runs) {
  DequantizeFormat p{};
  const auto& table = format.type == wire::QuantType::kNF4 ? quant::kNf4 : quant::kFp4;
  std::copy(table.begin(), table.end(), p.table);
  p.offset = format.offset;
  p.offset_at = format.offset_at;
  p.log2_block = Log2(format.blocksize);
  p.nested = format.nested;
  return InBatches(runs, [&](std::span<const WeightRun> batch, std::uint64_t longest) {
    switch (out_dtype) {
      case wire::DType::kF32:
        return Launch<wire::DType::kF32>(stream, p, batch, longest);
      case wire::DType::kF16:
        return Launch<wire::DType::kF16>(stream, p, batch, longest);
      default:
        return Launch<wire::DType::kBF16>(stream, p, batch, longest);
    }
  });
}

wire::Status Dequantize(CUstream_st* stream, const DequantizeArgs& args) {
  RunFormat format;
  format.type = args.format.type;
  format.blocksize = args.format.layout.blocksize;
  format.nested = args.format.layout.nested;
  format.offset = args.format.offset;
  std::vector<WeightRun> runs;
  runs.reserve(args.spans.size());
  for (std::size_t i = 0; i < args.spans.size(); ++i) {
    runs.push_back(RunOf(args.format.layout, args.spans[i], args.outs[i]));
  }
  return DequantizeRuns(stream, format, args.out_dtype, runs);
}

}  // namespace bitpager::kernels::cuda
