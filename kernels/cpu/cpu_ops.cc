#include "kernels/cpu/cpu_ops.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "kernels/cpu/pieces.h"
#include "kernels/simd/copy.h"
#include "kernels/simd/eight_bit.h"
#include "kernels/simd/four_bit.h"
#include "kernels/simd/step.h"
#include "quant/block.h"
#include "quant/codebook.h"

namespace bitpager::kernels::cpu {
namespace {

using optim8bit::StateLayout;
using wire::DTypeBytes;
using wire::kStateBlock;

// Work of one piece: enough to hide the hand-out (some hundred ns), little enough to balance.
constexpr std::uint64_t kPieceElements = 32 * 1024;
constexpr std::uint64_t kPieceUnits = kPieceElements / kStateBlock;
constexpr std::uint64_t kPieceBytes = 512 * 1024;
constexpr std::uint64_t kPieceNested = 64 * quant::kNestedBlock;  // blocks whose absmax is quantized

// Where unit `unit` of state k lies in a page, and its absmax.
std::byte* StateAt(const StateLayout& layout, std::byte* page, std::uint32_t k, std::uint32_t unit) {
  return page + k * layout.plane_bytes +
         std::uint64_t{unit} * (layout.bits == wire::StateBits::k8 ? 256 : 1024);
}
float* AbsmaxAt(const StateLayout& layout, std::byte* page, std::uint32_t k, std::uint32_t unit) {
  return reinterpret_cast<float*>(page + layout.absmax_offset + k * layout.absmax_stride) + unit;
}

// All units of a page that was never written: every state reads as zero.
void ZeroStates(const StateLayout& layout, std::byte* page) {
  for (std::uint32_t k = 0; k < layout.states; ++k) {
    const bool coded = layout.bits == wire::StateBits::k8;
    const int fill = coded && k == 0 ? quant::kSignedZeroCode : 0;
    std::memset(StateAt(layout, page, k, 0), fill, layout.plane_bytes);
    if (coded) std::memset(AbsmaxAt(layout, page, k, 0), 0, std::size_t{4} * layout.units_per_page);
  }
}

// Initialises each distinct zero page of `spans` once.
void ZeroFreshPages(WorkerPool& pool, const StateLayout& layout, const std::vector<StepSpan>& spans) {
  std::vector<std::byte*> fresh;
  for (const StepSpan& span : spans) {
    if (span.zero_page && (fresh.empty() || fresh.back() != span.page)) fresh.push_back(span.page);
  }
  std::sort(fresh.begin(), fresh.end());
  fresh.erase(std::unique(fresh.begin(), fresh.end()), fresh.end());
  pool.Run(fresh.size(), [&](std::uint64_t i) { ZeroStates(layout, fresh[i]); });
}

// Partner: the same call on the pool's other threads; the op's event publishes the result.
void Report(StepReport* report, std::uint64_t blocks, std::uint32_t tensor) {
  if (blocks == 0 || report == nullptr) return;
  std::atomic_ref(report->nonfinite_blocks).fetch_add(blocks, std::memory_order_relaxed);
  std::atomic_ref<std::uint32_t> first(report->first_tensor);
  std::uint32_t seen = first.load(std::memory_order_relaxed);
  while (tensor < seen && !first.compare_exchange_weak(seen, tensor, std::memory_order_relaxed)) {
  }
}

void StepSlice(const StepArgs& args, const StepSpan& span, std::uint32_t first, std::uint32_t units) {
  const std::uint64_t skip = std::uint64_t{first} * kStateBlock;
  simd::StepRun run;
  run.rule = args.layout.rule;
  run.bits = args.layout.bits;
  run.param_dtype = span.param_dtype;
  run.grad_dtype = span.grad_dtype;
  run.skip_nonfinite = args.on_nonfinite == wire::OnNonFinite::kSkip;
  for (std::uint32_t k = 0; k < args.layout.states; ++k) {
    run.states[k] = StateAt(args.layout, span.page, k, span.first_unit + first);
    run.absmax[k] = AbsmaxAt(args.layout, span.page, k, span.first_unit + first);
  }
  run.param = static_cast<std::byte*>(span.param) + skip * DTypeBytes(span.param_dtype);
  run.grad = static_cast<const std::byte*>(span.grad) + skip * DTypeBytes(span.grad_dtype);
  run.elements = std::min<std::uint64_t>(span.elements - skip, std::uint64_t{units} * kStateBlock);
  run.hyper = &args.hypers[span.hyper];
  Report(args.report, simd::Step(run), span.tensor);
}

std::uint32_t PieceBlocks(const quant::WeightLayout& layout) {
  return static_cast<std::uint32_t>(std::max<std::uint64_t>(1, kPieceElements / layout.blocksize));
}

// The part of a weight span that a slice covers.
struct WeightSlice {
  std::uint64_t slot = 0;   // of its first block in the page
  std::uint64_t block = 0;  // of its first block in the weight
  std::uint64_t skip = 0;   // elements of the span before it
  std::uint64_t elements = 0;
};
WeightSlice Cut(const WeightSpan& span, const Slice& slice, std::uint32_t blocksize) {
  WeightSlice out;
  out.slot = std::uint64_t{span.first_block} + slice.first;
  out.block = span.first_global_block + slice.first;
  out.skip = std::uint64_t{slice.first} * blocksize;
  out.elements = std::min(span.elements - out.skip, std::uint64_t{slice.count} * blocksize);
  return out;
}

std::uint8_t* PackedAt(const quant::WeightLayout& layout, std::byte* page, std::uint64_t slot) {
  return reinterpret_cast<std::uint8_t*>(page) + slot * (layout.blocksize / 2);
}
float* PlainAbsmaxAt(const quant::WeightLayout& layout, std::byte* page, std::uint64_t slot) {
  return reinterpret_cast<float*>(page + layout.absmax_offset) + slot;
}
std::uint8_t* NestedCodeAt(const quant::WeightLayout& layout, std::byte* page, std::uint64_t slot) {
  return reinterpret_cast<std::uint8_t*>(page + layout.absmax_offset) + slot;
}
// absmax2 of the group that holds block `block` of the weight.
float* Absmax2At(const quant::WeightLayout& layout, const WeightSpan& span, std::uint64_t block) {
  return reinterpret_cast<float*>(span.page + layout.absmax2_offset) +
         (block / quant::kNestedBlock - span.page_global_block / quant::kNestedBlock);
}

void DequantizeSlice(const DequantizeArgs& args, const Slice& slice) {
  const quant::WeightLayout& layout = args.format.layout;
  const WeightSpan& span = args.spans[slice.run];
  const WeightSlice cut = Cut(span, slice, layout.blocksize);
  std::byte* out = static_cast<std::byte*>(args.outs[slice.run]) + cut.skip * DTypeBytes(args.out_dtype);
  const std::uint8_t* packed = PackedAt(layout, span.page, cut.slot);
  if (!layout.nested) {
    simd::Unpack4(args.format.type, args.out_dtype, packed, cut.elements, layout.blocksize,
                  PlainAbsmaxAt(layout, span.page, cut.slot), out, true);
    return;
  }
  float absmax[kPieceElements / 32];
  simd::UnnestRun(NestedCodeAt(layout, span.page, cut.slot), cut.block, slice.count,
                  Absmax2At(layout, span, cut.block), args.format.offset, absmax);
  simd::Unpack4(args.format.type, args.out_dtype, packed, cut.elements, layout.blocksize, absmax, out, true);
}

// Both directions of a plane copy.
void MoveBytes(void* page, void* plane, std::uint64_t bytes, bool into_page) {
  into_page ? std::memcpy(page, plane, bytes) : std::memcpy(plane, page, bytes);
}

// absmax planes of one weight span, between its page and planes of the whole weight.
void MoveAbsmax(const quant::WeightLayout& layout, const WeightSpan& span, float* absmax,
                std::uint8_t* nested_codes, float* absmax2, bool into_page) {
  const std::uint64_t block = span.first_global_block;
  if (!layout.nested) {
    MoveBytes(PlainAbsmaxAt(layout, span.page, span.first_block), absmax + block,
              std::uint64_t{4} * span.blocks, into_page);
    return;
  }
  MoveBytes(NestedCodeAt(layout, span.page, span.first_block), nested_codes + block, span.blocks, into_page);
  const std::uint64_t group = block / quant::kNestedBlock;
  const std::uint64_t groups = (block + span.blocks - 1) / quant::kNestedBlock - group + 1;
  MoveBytes(Absmax2At(layout, span, block), absmax2 + group, 4 * groups, into_page);
}

void PackSlice(const QuantizeArgs& args, const Slice& slice) {
  const quant::WeightLayout& layout = args.format.layout;
  const WeightSpan& span = args.spans[slice.run];
  const WeightSlice cut = Cut(span, slice, layout.blocksize);
  const auto* in = static_cast<const std::byte*>(args.ins[slice.run]) + cut.skip * DTypeBytes(args.in_dtype);
  std::uint8_t* packed = PackedAt(layout, span.page, cut.slot);
  if (args.absmax != nullptr) {
    simd::Pack4(args.format.type, args.in_dtype, in, cut.elements, layout.blocksize, args.absmax + cut.block,
                packed);
    return;
  }
  float* absmax = layout.nested ? args.absmax_out + cut.block : PlainAbsmaxAt(layout, span.page, cut.slot);
  simd::Quantize4(args.format.type, args.in_dtype, in, cut.elements, layout.blocksize, absmax, packed);
}

// One span's states of one kind, between its page and the planes at element `at` of the tensor.
void MoveStateSpan(const StatePlanesArgs& args, const StepSpan& span, std::uint32_t k, std::uint64_t at) {
  const StateLayout& layout = args.layout;
  const bool coded = layout.bits == wire::StateBits::k8;
  const std::uint64_t width = coded ? 1 : 4;
  std::byte* const plane = args.planes[k] + at * width;
  const int zero = coded && k == 0 ? quant::kSignedZeroCode : 0;
  if (!args.into_pages && span.zero_page) {
    std::memset(plane, zero, span.elements * width);
    if (coded) std::memset(args.absmax[k] + at / kStateBlock, 0, std::size_t{4} * span.units);
    return;
  }
  std::byte* const state = StateAt(layout, span.page, k, span.first_unit);
  MoveBytes(state, plane, span.elements * width, args.into_pages);
  if (args.into_pages) {
    std::memset(state + span.elements * width, zero,
                (std::uint64_t{span.units} * kStateBlock - span.elements) * width);
  }
  if (coded) {
    MoveBytes(AbsmaxAt(layout, span.page, k, span.first_unit), args.absmax[k] + at / kStateBlock,
              std::uint64_t{4} * span.units, args.into_pages);
  }
}

}  // namespace

void RunStep(WorkerPool& pool, const StepArgs& args) {
  ZeroFreshPages(pool, args.layout, args.spans);
  ForSlices(
      pool, args.spans.size(), kPieceUnits, [&](std::uint32_t run) { return args.spans[run].units; },
      [&](const Slice& s) { StepSlice(args, args.spans[s.run], s.first, s.count); });
}

void RunDequantize(WorkerPool& pool, const DequantizeArgs& args) {
  ForSlices(
      pool, args.spans.size(), PieceBlocks(args.format.layout),
      [&](std::uint32_t run) { return args.spans[run].blocks; },
      [&](const Slice& s) { DequantizeSlice(args, s); });
}

void RunBlockAbsmax(WorkerPool& pool, const BlockAbsmaxArgs& args) {
  const std::uint64_t grain = std::max<std::uint64_t>(kPieceElements, args.blocksize);
  pool.Run((args.elements + grain - 1) / grain, [&](std::uint64_t piece) {
    const std::uint64_t first = piece * grain;
    simd::BlockAbsmax(
        args.in_dtype, static_cast<const std::byte*>(args.in) + first * DTypeBytes(args.in_dtype),
        std::min(grain, args.elements - first), args.blocksize, args.absmax + first / args.blocksize);
  });
}

void RunNestAbsmax(WorkerPool& pool, const NestAbsmaxArgs& args) {
  const float mean = simd::NestMean(args.absmax, args.blocks);
  *args.offset = mean;
  pool.Run((args.blocks + kPieceNested - 1) / kPieceNested, [&](std::uint64_t piece) {
    const std::uint64_t first = piece * kPieceNested;
    simd::NestRun(args.absmax + first, std::min(kPieceNested, args.blocks - first), mean, args.codes + first,
                  args.absmax2 + first / quant::kNestedBlock);
  });
}

void RunQuantize(WorkerPool& pool, const QuantizeArgs& args) {
  for (const WeightSpan& span : args.spans) {
    if (args.absmax == nullptr) break;  // written with the codes
    // Into the page: the planes are only read.
    MoveAbsmax(args.format.layout, span, const_cast<float*>(args.absmax),
               const_cast<std::uint8_t*>(args.nested_codes), const_cast<float*>(args.absmax2), true);
  }
  ForSlices(
      pool, args.spans.size(), PieceBlocks(args.format.layout),
      [&](std::uint32_t run) { return args.spans[run].blocks; }, [&](const Slice& s) { PackSlice(args, s); });
}

void RunMovePacked(WorkerPool& pool, const PackedArgs& args) {
  const quant::WeightLayout& layout = args.format.layout;
  for (const WeightSpan& span : args.spans) {
    MoveAbsmax(layout, span, args.absmax, args.nested_codes, args.absmax2, args.into_pages);
  }
  if (args.packed == nullptr) return;
  pool.Run(args.spans.size(), [&](std::uint64_t i) {
    const WeightSpan& span = args.spans[i];
    MoveBytes(PackedAt(layout, span.page, span.first_block),
              args.packed + span.first_global_block * (layout.blocksize / 2), (span.elements + 1) / 2,
              args.into_pages);
  });
}

void RunMoveStates(WorkerPool& pool, const StatePlanesArgs& args) {
  if (args.into_pages) ZeroFreshPages(pool, args.layout, args.spans);
  std::vector<std::uint64_t> starts;
  std::uint64_t at = 0;
  for (const StepSpan& span : args.spans) {
    starts.push_back(at);
    at += std::uint64_t{span.units} * kStateBlock;
  }
  pool.Run(args.spans.size(), [&](std::uint64_t i) {
    for (std::uint32_t k = 0; k < args.layout.states; ++k) MoveStateSpan(args, args.spans[i], k, starts[i]);
  });
}

void RunCopy(WorkerPool& pool, void* to, const void* from, std::uint64_t bytes) {
  pool.Run((bytes + kPieceBytes - 1) / kPieceBytes, [&](std::uint64_t piece) {
    const std::uint64_t first = piece * kPieceBytes;
    simd::BulkCopy(static_cast<std::byte*>(to) + first, static_cast<const std::byte*>(from) + first,
                   std::min(kPieceBytes, bytes - first));
  });
}

}  // namespace bitpager::kernels::cpu
