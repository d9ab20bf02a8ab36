// Moves states between pages and planes of a whole tensor, and zeroes pages that were never written. Planes
// may lie in device memory or in host memory that the device reads and writes in place. The device thread.
#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/step_kernels.h"
#include "quant/codebook.h"

namespace bitpager::kernels::cuda {
namespace {

using optim8bit::StateLayout;
using wire::kStateBlock;

constexpr std::uint32_t kThreads = 256;
constexpr std::uint32_t kSlices = 32;  // thread blocks a run of bytes

// `bytes` bytes at `to`: those of `from`, or when it is null all equal to `fill`. The `pad` bytes behind
// become `fill` too.
struct ByteRun {
  std::byte* to;
  const std::byte* from;
  std::uint64_t bytes;
  std::uint32_t pad;
  std::uint32_t fill;
};

__device__ void FillBytes(std::byte* to, std::uint32_t fill, std::uint64_t bytes, std::uint64_t first,
                          std::uint64_t step) {
  const auto value = static_cast<std::byte>(fill);
  const std::uint64_t head = min(static_cast<unsigned long long>(-reinterpret_cast<std::uintptr_t>(to) & 15U),
                                 static_cast<unsigned long long>(bytes));
  const std::uint64_t words = (bytes - head) / 16;
  const std::uint32_t four = fill * 0x01010101U;
  for (std::uint64_t i = first; i < head; i += step) to[i] = value;
  for (std::uint64_t i = first; i < words; i += step) {
    reinterpret_cast<uint4*>(to + head)[i] = make_uint4(four, four, four, four);
  }
  for (std::uint64_t i = head + 16 * words + first; i < bytes; i += step) to[i] = value;
}

// Whole words of T when both ends are aligned to it; the rest byte by byte.
template <typename T>
__device__ std::uint64_t CopyWords(std::byte* to, const std::byte* from, std::uint64_t bytes,
                                   std::uint64_t first, std::uint64_t step) {
  const auto misaligned =
      (reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from)) % sizeof(T);
  if (misaligned != 0) return 0;
  const std::uint64_t words = bytes / sizeof(T);
  for (std::uint64_t i = first; i < words; i += step) {
    reinterpret_cast<T*>(to)[i] = reinterpret_cast<const T*>(from)[i];
  }
  return words * sizeof(T);
}

__global__ void __launch_bounds__(kThreads) MoveBytesKernel(const ByteRun* runs) {
  const ByteRun run = runs[blockIdx.x];
  const std::uint64_t first = std::uint64_t{blockIdx.y} * kThreads + threadIdx.x;
  const std::uint64_t step = std::uint64_t{gridDim.y} * kThreads;
  if (run.from == nullptr) {
    FillBytes(run.to, run.fill, run.bytes, first, step);
  } else {
    std::uint64_t done = CopyWords<uint4>(run.to, run.from, run.bytes, first, step);
    if (done == 0) done = CopyWords<std::uint32_t>(run.to, run.from, run.bytes, first, step);
    for (std::uint64_t i = done + first; i < run.bytes; i += step) run.to[i] = run.from[i];
  }
  for (std::uint64_t i = first; i < run.pad; i += step) {
    run.to[run.bytes + i] = static_cast<std::byte>(run.fill);
  }
}

wire::Status Enqueue(LaunchContext& context, const std::vector<ByteRun>& runs) {
  if (runs.empty()) return {};
  auto table = context.Upload(runs.data(), runs.size() * sizeof(ByteRun), alignof(ByteRun));
  if (!table.ok()) return table.status();
  const dim3 grid(static_cast<std::uint32_t>(runs.size()), kSlices);
  MoveBytesKernel<<<grid, kThreads, 0, context.stream()>>>(static_cast<const ByteRun*>(table.value()));
  return LaunchStatus("state move");
}

// A page seen through its layout.
struct StatePage {
  const StateLayout& layout;
  std::byte* page;

  [[nodiscard]] bool coded() const { return layout.bits == wire::StateBits::k8; }
  [[nodiscard]] std::uint64_t width() const { return coded() ? 1 : sizeof(float); }
  [[nodiscard]] std::uint32_t zero(std::uint32_t k) const {
    return coded() && k == 0 ? quant::kSignedZeroCode : 0U;
  }
  [[nodiscard]] std::byte* State(std::uint32_t k, std::uint32_t unit) const {
    return page + std::uint64_t{k} * layout.plane_bytes + std::uint64_t{unit} * kStateBlock * width();
  }
  [[nodiscard]] std::byte* Absmax(std::uint32_t k, std::uint32_t unit) const {
    return page + layout.absmax_offset + std::uint64_t{k} * layout.absmax_stride + 4ULL * unit;
  }
};

// State k of one span, which starts at element `at` of the planes.
void AppendSpan(const StatePlanesArgs& args, const StepSpan& span, std::uint32_t k, std::uint64_t at,
                std::vector<ByteRun>& runs) {
  const StatePage page{args.layout, span.page};
  const std::uint64_t bytes = span.elements * page.width();
  std::byte* const plane = args.planes[k] + at * page.width();
  std::byte* const state = page.State(k, span.first_unit);
  const auto pad = static_cast<std::uint32_t>(std::uint64_t{span.units} * kStateBlock * page.width() - bytes);
  if (args.into_pages) {
    runs.push_back({state, plane, bytes, pad, page.zero(k)});
  } else {
    runs.push_back({plane, span.zero_page ? nullptr : state, bytes, 0, page.zero(k)});
  }
  if (!page.coded()) return;
  auto* const outside = reinterpret_cast<std::byte*>(args.absmax[k] + at / kStateBlock);
  std::byte* const inside = page.Absmax(k, span.first_unit);
  if (args.into_pages) {
    runs.push_back({inside, outside, 4ULL * span.units, 0, 0});
  } else {
    runs.push_back({outside, span.zero_page ? nullptr : inside, 4ULL * span.units, 0, 0});
  }
}

}  // namespace

wire::Status ZeroFreshPages(LaunchContext& context, const StateLayout& layout,
                            const std::vector<StepSpan>& spans) {
  std::vector<std::byte*> fresh;
  for (const StepSpan& span : spans) {
    if (span.zero_page && (fresh.empty() || fresh.back() != span.page)) fresh.push_back(span.page);
  }
  std::sort(fresh.begin(), fresh.end());
  fresh.erase(std::unique(fresh.begin(), fresh.end()), fresh.end());
  std::vector<ByteRun> runs;
  for (std::byte* const at : fresh) {
    const StatePage page{layout, at};
    for (std::uint32_t k = 0; k < layout.states; ++k) {
      runs.push_back({page.State(k, 0), nullptr, layout.plane_bytes, 0, page.zero(k)});
      if (page.coded()) runs.push_back({page.Absmax(k, 0), nullptr, 4ULL * layout.units_per_page, 0, 0});
    }
  }
  return Enqueue(context, runs);
}

wire::Status LaunchMoveStates(LaunchContext& context, const StatePlanesArgs& args) {
  if (args.into_pages) {
    if (wire::Status status = ZeroFreshPages(context, args.layout, args.spans); !status.ok()) return status;
  }
  std::vector<ByteRun> runs;
  std::uint64_t at = 0;
  for (const StepSpan& span : args.spans) {
    for (std::uint32_t k = 0; k < args.layout.states; ++k) AppendSpan(args, span, k, at, runs);
    at += std::uint64_t{span.units} * kStateBlock;
  }
  return Enqueue(context, runs);
}

}  // namespace bitpager::kernels::cuda
