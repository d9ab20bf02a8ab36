// NestAbsmax: double quantization of block absmaxes. Three kernels, no memory of their own: sums of whole
// chunks of 4096 absmaxes, left in the codes that the third overwrites; the mean; the codes, a warp a group
// of 256. The order of the sum is quant::OrderedSum's: 32 running sums, one in each lane, folded by halves.
#include "kernels/cuda/block_tile.cuh"
#include "kernels/cuda/codebooks.cuh"
#include "kernels/cuda/status.h"
#include "kernels/cuda/weights.h"
#include "quant/block.h"
#include "quant/weight_layout.h"

namespace bitpager::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kAtOnce = 16;  // loads in flight of a lane
constexpr std::uint64_t kChunk = quant::kMeanChunk;
static_assert(quant::kMeanSums == 32);
static_assert(kChunk % (32 * kAtOnce) == 0 && kChunk >= sizeof(double));

// s[k] += s[k + apart] for apart = 16, 8, 4, 2, 1; lane 0 has the sum.
__device__ double Fold(double sum) {
  for (int apart = 16; apart != 0; apart /= 2) sum += __shfl_down_sync(kWholeWarp, sum, apart);
  return sum;
}

// Sum of load(0), ..., load(count - 1), in lane 0. All lanes of one warp.
template <typename Load>
__device__ double OrderedSum(std::uint64_t count, const Load& load) {
  const unsigned lane = threadIdx.x % 32;
  double sum = 0.0;
  std::uint64_t at = lane;
  for (; at - lane + 32 * kAtOnce <= count; at += 32 * kAtOnce) {
    double held[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) held[i] = load(at + 32 * i);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) sum += held[i];
  }
  for (; at < count; at += 32) sum += load(at);
  return Fold(sum);
}

// A double in the first bytes of a chunk's codes, whatever their alignment.
__device__ void Leave(std::uint8_t* at, double sum) {
  const auto bits = static_cast<unsigned long long>(__double_as_longlong(sum));
  for (int i = 0; i < 8; ++i) at[i] = static_cast<std::uint8_t>(bits >> (8 * i));
}
__device__ double Found(const std::uint8_t* at) {
  unsigned long long bits = 0;
  for (int i = 0; i < 8; ++i) bits |= static_cast<unsigned long long>(at[i]) << (8 * i);
  return __longlong_as_double(static_cast<long long>(bits));
}

// A warp a whole chunk.
__global__ void __launch_bounds__(kThreads)
    ChunkSumKernel(const float* absmax, std::uint64_t chunks, std::uint8_t* codes) {
  const std::uint64_t chunk = std::uint64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (chunk >= chunks) return;
  const float* const from = absmax + chunk * kChunk;
  const double sum = OrderedSum(kChunk, [from](std::uint64_t i) { return double{__ldg(from + i)}; });
  if (threadIdx.x % 32 == 0) Leave(codes + chunk * kChunk, sum);
}

// One warp. The sum of the last chunk, when it is short, is made here.
__global__ void __launch_bounds__(32)
    MeanKernel(const float* absmax, std::uint64_t blocks, const std::uint8_t* codes, float* offset) {
  const std::uint64_t chunks = blocks / kChunk;
  const float* const rest = absmax + chunks * kChunk;
  const double last = __shfl_sync(
      kWholeWarp, OrderedSum(blocks % kChunk, [rest](std::uint64_t i) { return double{rest[i]}; }), 0);
  const double sum = OrderedSum(chunks + (blocks % kChunk != 0 ? 1 : 0), [=](std::uint64_t i) {
    return i < chunks ? Found(codes + i * kChunk) : last;
  });
  if (threadIdx.x == 0) *offset = blocks == 0 ? 0.0F : static_cast<float>(sum / static_cast<double>(blocks));
}

// A warp a group of 256 blocks, eight a lane.
__global__ void __launch_bounds__(kThreads)
    NestKernel(const float* absmax, std::uint64_t blocks, const float* offset, std::uint8_t* codes,
               float* absmax2) {
  __shared__ float thresholds[256];
  thresholds[threadIdx.x] = kSignedThresholdsOnDevice.values[threadIdx.x];
  __syncthreads();
  const std::uint64_t group = std::uint64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const std::uint64_t first = group * quant::kNestedBlock + threadIdx.x % 32;
  if (group * quant::kNestedBlock >= blocks) return;
  const float mean = *offset;
  float centred[8];
  std::uint32_t most = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    centred[i] = first + 32 * i < blocks ? __fsub_rn(absmax[first + 32 * i], mean) : 0.0F;
    most = max(most, __float_as_uint(centred[i]) & 0x7FFFFFFFU);
  }
  for (int apart = 16; apart != 0; apart /= 2) most = max(most, __shfl_xor_sync(kWholeWarp, most, apart));
  const bool unusual = IsUnusual(most);
  const float inverse = InverseOf(most);
  if (threadIdx.x % 32 == 0) absmax2[group] = __uint_as_float(most);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float x = unusual ? NormaliseUnusual(centred[i], most) : centred[i] * inverse;
    unsigned code = 0;  // as quant::EncodeNearest
    for (unsigned step = 128; step != 0; step /= 2) code += x > thresholds[code + step - 1] ? step : 0U;
    if (first + 32 * i < blocks) codes[first + 32 * i] = static_cast<std::uint8_t>(code);
  }
}

unsigned BlocksFor(std::uint64_t warps) {
  return static_cast<unsigned>((warps + kWarps - 1) / kWarps);
}

}  // namespace

wire::Status NestAbsmax(CUstream_st* stream, const NestAbsmaxArgs& args) {
  const std::uint64_t chunks = args.blocks / kChunk;
  if (chunks != 0) {
    ChunkSumKernel<<<BlocksFor(chunks), kThreads, 0, stream>>>(args.absmax, chunks, args.codes);
    if (wire::Status s = LaunchStatus("sum absmaxes"); !s.ok()) return s;
  }
  MeanKernel<<<1, 32, 0, stream>>>(args.absmax, args.blocks, args.codes, args.offset);
  if (wire::Status s = LaunchStatus("average absmaxes"); !s.ok() || args.blocks == 0) return s;
  const std::uint64_t groups = (args.blocks + quant::kNestedBlock - 1) / quant::kNestedBlock;
  NestKernel<<<BlocksFor(groups), kThreads, 0, stream>>>(args.absmax, args.blocks, args.offset, args.codes,
                                                         args.absmax2);
  return LaunchStatus("nest absmaxes");
}

}  // namespace bitpager::kernels::cuda
