// A run of blocks of one weight as its kernels see it: addresses instead of pages. Host side: makes runs of
// the spans of kernels/ops.h and hands them out in batches that fit the parameters of one launch. Any thread.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "client/wire/status.h"
#include "kernels/ops.h"
#include "quant/weight_layout.h"

struct CUstream_st;  // a cudaStream_t points to one

namespace bitpager::kernels::cuda {

// Blocks that lie one behind the other. The pointers are those of the first block; what an op does not use is
// null. `plain` is only read by kernels that quantize.
struct WeightRun {
  std::uint8_t* packed = nullptr;
  std::byte* scales = nullptr;    // fp32 absmax, or its uint8 codes when nested
  float* absmax2 = nullptr;       // of the first block's group; nested only
  std::byte* plain = nullptr;     // first element
  std::uint64_t elements = 0;     // the last block may be short
  std::uint32_t group_phase = 0;  // the first block's place in its group of 256
  std::uint32_t vectorised = 0;   // set by DequantizeRuns and QuantizeRuns: vector accesses are aligned
};

// Runs of one launch: with the rest of a kernel's parameters under 4 KiB, which every driver takes.
inline constexpr std::size_t kRunsPerLaunch = 64;

[[nodiscard]] inline bool IsAligned(const void* at, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(at) % bytes == 0;
}

[[nodiscard]] inline std::uint32_t Log2(std::uint32_t power_of_two) {
  return static_cast<std::uint32_t>(std::countr_zero(power_of_two));
}

// The run of a span; `plain` is its first element outside the page.
[[nodiscard]] inline WeightRun RunOf(const quant::WeightLayout& layout, const WeightSpan& span,
                                     const void* plain) {
  WeightRun run;
  run.packed =
      reinterpret_cast<std::uint8_t*>(span.page) + std::uint64_t{span.first_block} * (layout.blocksize / 2);
  run.scales = span.page + layout.absmax_offset + std::uint64_t{span.first_block} * (layout.nested ? 1 : 4);
  if (layout.nested) {
    const std::uint64_t group = span.first_global_block / quant::kNestedBlock;
    run.absmax2 = reinterpret_cast<float*>(span.page + layout.absmax2_offset) +
                  (group - span.page_global_block / quant::kNestedBlock);
    run.group_phase = static_cast<std::uint32_t>(span.first_global_block % quant::kNestedBlock);
  }
  run.plain = static_cast<std::byte*>(const_cast<void*>(plain));
  run.elements = span.elements;
  return run;
}

// How the blocks of a run are coded.
struct RunFormat {
  wire::QuantType type = wire::QuantType::kNF4;
  std::uint32_t blocksize = 64;
  bool nested = false;
  float offset = 0.0F;               // nested: mean absmax
  const float* offset_at = nullptr;  // nested: where it lies on the device, instead
};

// Calls launch(runs of one batch, elements of the longest) for all of `runs`, as many at once as one launch
// takes. Stops at the first error. Empty runs are left out.
template <typename Launch>
[[nodiscard]] wire::Status InBatches(std::span<const WeightRun> runs, const Launch& launch) {
  WeightRun batch[kRunsPerLaunch];
  std::size_t filled = 0;
  std::uint64_t longest = 0;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    if (runs[i].elements != 0) {
      batch[filled++] = runs[i];
      longest = std::max(longest, runs[i].elements);
    }
    if (filled == 0 || (filled < kRunsPerLaunch && i + 1 < runs.size())) continue;
    if (wire::Status s = launch(std::span<const WeightRun>(batch, filled), longest); !s.ok()) return s;
    filled = 0;
    longest = 0;
  }
  return {};
}

// Enqueue on the stream what Dequantize and Quantize do, given runs. The kernels find out by themselves where
// vectors can be used. `absmax_given`: `scales` holds the fp32 absmax of the blocks to quantize with; else it
// is computed and written there. Runs to quantize are not nested; one without `packed` gets its absmax alone.
[[nodiscard]] wire::Status DequantizeRuns(CUstream_st* stream, const RunFormat& format, wire::DType out_dtype,
                                          std::span<const WeightRun> runs);
[[nodiscard]] wire::Status QuantizeRuns(CUstream_st* stream, const RunFormat& format, wire::DType in_dtype,
                                        bool absmax_given, std::span<const WeightRun> runs);

}  // namespace bitpager::kernels::cuda
