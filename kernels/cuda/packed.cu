// MovePacked: copies of runs of bytes between the pages of a weight and its interchange planes, as many as
// fit a launch at once. Any alignment: 16 bytes at a time where both sides allow it, else 4, else single
// bytes.
#include <algorithm>

#include "kernels/cuda/packed.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/weight_run.h"

namespace bitpager::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSteps = 4;
constexpr std::uint64_t kPieceBytes = std::uint64_t{kThreads} * kSteps * 16;
constexpr std::size_t kMoves = 160;

struct Move {
  std::byte* to;
  const std::byte* from;
  std::uint64_t bytes;
};
struct Moves {
  Move moves[kMoves];
};
static_assert(sizeof(Moves) <= 4096);

template <typename T>
__device__ void CopyPiece(std::byte* to, const std::byte* from, unsigned bytes) {
  const unsigned count = bytes / sizeof(T);
  const unsigned per_round = kThreads * kSteps;
  for (unsigned first = threadIdx.x; first < count; first += per_round) {
    T held[kSteps];
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const unsigned at = first + s * kThreads;
      if (at < count) held[s] = reinterpret_cast<const T*>(from)[at];
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const unsigned at = first + s * kThreads;
      if (at < count) reinterpret_cast<T*>(to)[at] = held[s];
    }
  }
  for (unsigned at = count * sizeof(T) + threadIdx.x; at < bytes; at += kThreads) to[at] = from[at];
}

// Grid: pieces of the longest move, moves.
__global__ void __launch_bounds__(kThreads) MoveKernel(const __grid_constant__ Moves p) {
  const Move& move = p.moves[blockIdx.y];
  const std::uint64_t first = blockIdx.x * kPieceBytes;
  if (first >= move.bytes) return;
  const std::uint64_t left = move.bytes - first;
  const auto bytes = static_cast<unsigned>(left < kPieceBytes ? left : kPieceBytes);
  std::byte* const to = move.to + first;
  const std::byte* const from = move.from + first;
  const auto either = reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from);
  if (either % 16 == 0) {
    CopyPiece<uint4>(to, from, bytes);
  } else if (either % 4 == 0) {
    CopyPiece<std::uint32_t>(to, from, bytes);
  } else {
    CopyPiece<std::uint8_t>(to, from, bytes);
  }
}

// Collects moves and launches them.
class Mover {
 public:
  Mover(CUstream_st* stream, bool into_pages) : stream_(stream), into_pages_(into_pages) {}

  [[nodiscard]] wire::Status Add(std::byte* page, const void* plane, std::uint64_t bytes) {
    if (bytes == 0) return {};
    auto* const other = static_cast<std::byte*>(const_cast<void*>(plane));
    params_.moves[filled_++] = into_pages_ ? Move{page, other, bytes} : Move{other, page, bytes};
    longest_ = std::max(longest_, bytes);
    return filled_ == kMoves ? Flush() : wire::Status();
  }
  [[nodiscard]] wire::Status Flush() {
    if (filled_ == 0) return {};
    const dim3 grid(static_cast<unsigned>((longest_ + kPieceBytes - 1) / kPieceBytes),
                    static_cast<unsigned>(filled_));
    MoveKernel<<<grid, kThreads, 0, stream_>>>(params_);
    filled_ = 0;
    longest_ = 0;
    return LaunchStatus("move packed weights");
  }

 private:
  CUstream_st* stream_;
  bool into_pages_;
  Moves params_{};
  std::size_t filled_ = 0;
  std::uint64_t longest_ = 0;
};

wire::Status AddScales(Mover& mover, const PackedArgs& args, const WeightSpan& span) {
  const WeightRun run = RunOf(args.format.layout, span, nullptr);
  const std::uint64_t block = span.first_global_block;
  if (!args.format.layout.nested)
    return mover.Add(run.scales, args.absmax + block, std::uint64_t{4} * span.blocks);
  if (wire::Status s = mover.Add(run.scales, args.nested_codes + block, span.blocks); !s.ok()) return s;
  const std::uint64_t group = block / quant::kNestedBlock;
  const std::uint64_t last = (block + span.blocks - 1) / quant::kNestedBlock;
  return mover.Add(reinterpret_cast<std::byte*>(run.absmax2), args.absmax2 + group, 4 * (last - group + 1));
}

}  // namespace

PackedArgs ScalesInto(const QuantizeArgs& args) {
  PackedArgs move;
  move.format = args.format;
  move.spans = args.spans;
  // Into the page: the planes are only read.
  move.absmax = const_cast<float*>(args.absmax);
  move.nested_codes = const_cast<std::uint8_t*>(args.nested_codes);
  move.absmax2 = const_cast<float*>(args.absmax2);
  move.into_pages = true;
  return move;
}

wire::Status CheckKernels() {
  cudaFuncAttributes attributes{};
  return StatusOf(cudaFuncGetAttributes(&attributes, MoveKernel), "find code for the current device");
}

wire::Status MovePacked(CUstream_st* stream, const PackedArgs& args) {
  Mover mover(stream, args.into_pages);
  const std::uint64_t block_bytes = args.format.layout.blocksize / 2;
  for (const WeightSpan& span : args.spans) {
    if (span.blocks == 0) continue;
    if (wire::Status s = AddScales(mover, args, span); !s.ok()) return s;
    if (args.packed == nullptr) continue;
    std::byte* const page = span.page + span.first_block * block_bytes;
    const std::byte* const plane = args.packed + span.first_global_block * block_bytes;
    if (wire::Status s = mover.Add(page, plane, (span.elements + 1) / 2); !s.ok()) return s;
  }
  return mover.Flush();
}

}  // namespace bitpager::kernels::cuda
