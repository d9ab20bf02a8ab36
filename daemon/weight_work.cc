// Requests on quantized weights: admission, and launches over resident windows.
#include <algorithm>
#include <bit>
#include <string>

#include "daemon/admission.h"
#include "daemon/weight_piece.h"
#include "daemon/weight_spans.h"

namespace bitpager::daemon {
namespace {

using wire::Code;
using wire::Status;

// Behind a window that holds the first page: copies the start of the weight out, for whoever looks whether
// others hold the same.
kernels::Event CopyStart(kernels::Device& device, const WeightPiece& start,
                         std::span<const ResidentPage> window, kernels::Event filled) {
  if (!start) return filled;
  for (const ResidentPage& page : window) {
    if (page.index == 0) return start.Out(device, {&page, 1});
  }
  return filled;
}

WeightPiece StartOf(kernels::Device& device, const Weight& weight) {
  if (!weight.shareable) return {};
  const std::uint64_t blocks = StartBlocks(weight);
  WeightPiece start(device, weight.format.layout, blocks);
  start.Aim(weight, {0, blocks, std::min(weight.elements, blocks * weight.format.layout.blocksize)});
  return start;
}

class DequantizeWork final : public Work {
 public:
  DequantizeWork(Extent& extent, BlockRange range, Place out, wire::DType dtype)
      : extent_(extent), range_(range), out_(out.at), dtype_(dtype) {
    Hold(std::move(out.buffer));
  }
  [[nodiscard]] paging::RequestSpec Pages() const override {
    return {extent_.job, paging::Access::kRead, Cover(extent_.paged, *extent_.weight(), range_), false};
  }
  kernels::Event Launch(kernels::Device& device, std::span<const ResidentPage> window) override {
    const Weight& weight = *extent_.weight();
    kernels::DequantizeArgs args;
    args.format = weight.format;
    args.out_dtype = dtype_;
    const std::uint64_t blocksize = weight.format.layout.blocksize;
    for (const ResidentPage& page : window) {
      const kernels::WeightSpan span = Cut(weight, range_, page);
      const std::uint64_t element = (span.first_global_block - range_.first) * blocksize;
      args.spans.push_back(span);
      args.outs.push_back(out_ + element * wire::DTypeBytes(dtype_));
    }
    return device.Dequantize(std::move(args));
  }
  wire::Status Finish(wire::CompletionRecord&) override { return {}; }

 private:
  Extent& extent_;
  BlockRange range_;
  std::byte* out_;
  wire::DType dtype_;
};

// Statistics of a whole weight while it is quantized; of nested ones only.
struct Statistics {
  Scratch absmax;   // fp32 a block
  Scratch codes;    // uint8 a block
  Scratch absmax2;  // fp32 a group
  Scratch offset;   // fp32, read here
};

class QuantizeWork final : public Work {
 public:
  QuantizeWork(Extent& extent, Place in, wire::DType dtype, Statistics statistics, WeightPiece start)
      : extent_(extent),
        in_(in.at),
        dtype_(dtype),
        statistics_(std::move(statistics)),
        start_(std::move(start)) {
    Hold(std::move(in.buffer));
  }
  [[nodiscard]] paging::RequestSpec Pages() const override {
    return {extent_.job, paging::Access::kOverwrite, CoverFilled(extent_), false};
  }
  [[nodiscard]] Filling Fills() const override { return {&extent_, &start_}; }

  void Prepare(kernels::Device&) override {
    Weight& weight = *extent_.weight();
    weight.filled = false;
  }

  kernels::Event Launch(kernels::Device& device, std::span<const ResidentPage> window) override {
    const Weight& weight = *extent_.weight();
    kernels::QuantizeArgs args;
    args.format = weight.format;
    args.in_dtype = dtype_;
    std::uint64_t blocks = 0;
    for (const ResidentPage& page : window) {
      const kernels::WeightSpan span = Cut(weight, Whole(weight), page);
      const std::uint64_t element = span.first_global_block * weight.format.layout.blocksize;
      args.spans.push_back(span);
      args.ins.push_back(in_ + element * wire::DTypeBytes(dtype_));
      blocks += span.blocks;
    }
    const kernels::Event filled = weight.format.layout.nested
                                      ? FillNested(device, std::move(args), blocks == weight.blocks())
                                      : device.Quantize(std::move(args));
    return CopyStart(device, start_, window, filled);
  }

  wire::Status Finish(wire::CompletionRecord& completion) override {
    Weight& weight = *extent_.weight();
    weight.format.offset = weight.format.layout.nested ? *offset() : 0.0F;
    weight.filled = true;
    completion.values[0] = std::bit_cast<std::uint32_t>(weight.format.offset);
    return {};
  }
  void Abandon() override { extent_.weight()->filled = false; }

 private:
  // Packing needs a block's own absmax alone, double quantization all of them. `whole`: the window holds the
  // weight, whose absmaxes follow its codes into the pages. Else they are found before, by a look at the
  // input of its own, so that no page has to come twice.
  kernels::Event FillNested(kernels::Device& device, kernels::QuantizeArgs args, bool whole) {
    const Weight& weight = *extent_.weight();
    const kernels::NestAbsmaxArgs nest{absmax(), weight.blocks(), codes(), absmax2(), offset()};
    if (whole) {
      kernels::PackedArgs scales;
      scales.format = args.format;
      scales.spans = args.spans;
      scales.nested_codes = codes();
      scales.absmax2 = absmax2();
      args.absmax_out = absmax();
      device.Quantize(std::move(args));
      device.NestAbsmax(nest);
      return device.MovePacked(std::move(scales));
    }
    if (!std::exchange(nested_, true)) {
      device.BlockAbsmax({in_, dtype_, weight.elements, weight.format.layout.blocksize, absmax()});
      device.NestAbsmax(nest);
    }
    args.absmax = absmax();
    args.nested_codes = codes();
    args.absmax2 = absmax2();
    return device.Quantize(std::move(args));
  }
  [[nodiscard]] float* absmax() const { return reinterpret_cast<float*>(statistics_.absmax.get()); }
  [[nodiscard]] std::uint8_t* codes() const {
    return reinterpret_cast<std::uint8_t*>(statistics_.codes.get());
  }
  [[nodiscard]] float* absmax2() const { return reinterpret_cast<float*>(statistics_.absmax2.get()); }
  [[nodiscard]] float* offset() const { return reinterpret_cast<float*>(statistics_.offset.get()); }

  Extent& extent_;
  const std::byte* in_;
  wire::DType dtype_;
  Statistics statistics_;
  WeightPiece start_;
  bool nested_ = false;  // the statistics are known
};

class PackedWork final : public Work {
 public:
  PackedWork(Extent& extent, bool into_pages, float offset, WeightPiece start)
      : extent_(extent), into_pages_(into_pages), offset_(offset), start_(std::move(start)) {
    args_.format = extent.weight()->format;
    args_.into_pages = into_pages;
  }
  void SetPlanes(Place packed, Place absmax, Place absmax2) {
    args_.packed = packed.at;
    if (args_.format.layout.nested) {
      args_.nested_codes = reinterpret_cast<std::uint8_t*>(absmax.at);
      args_.absmax2 = reinterpret_cast<float*>(absmax2.at);
    } else {
      args_.absmax = reinterpret_cast<float*>(absmax.at);
    }
    Hold(std::move(packed.buffer));
    Hold(std::move(absmax.buffer));
    if (absmax2.buffer != nullptr) Hold(std::move(absmax2.buffer));
  }

  [[nodiscard]] paging::RequestSpec Pages() const override {
    if (into_pages_) return {extent_.job, paging::Access::kOverwrite, CoverFilled(extent_), false};
    const Weight& weight = *extent_.weight();
    return {extent_.job, paging::Access::kRead, Cover(extent_.paged, weight, Whole(weight)), false};
  }
  [[nodiscard]] Filling Fills() const override {
    return into_pages_ ? Filling{&extent_, &start_} : Filling{};
  }
  kernels::Event Launch(kernels::Device& device, std::span<const ResidentPage> window) override {
    if (into_pages_) extent_.weight()->filled = false;
    kernels::PackedArgs args = args_;
    for (const ResidentPage& page : window) {
      args.spans.push_back(Cut(*extent_.weight(), Whole(*extent_.weight()), page));
    }
    return CopyStart(device, start_, window, device.MovePacked(std::move(args)));
  }
  wire::Status Finish(wire::CompletionRecord& completion) override {
    Weight& weight = *extent_.weight();
    if (into_pages_) {
      weight.format.offset = weight.format.layout.nested ? offset_ : 0.0F;
      weight.filled = true;
    }
    completion.values[0] = std::bit_cast<std::uint32_t>(weight.format.offset);
    return {};
  }

 private:
  Extent& extent_;
  bool into_pages_;
  float offset_;
  WeightPiece start_;
  kernels::PackedArgs args_;
};

Status CheckFloat(wire::DType dtype, const char* what) {
  if (IsFloat(dtype)) return {};
  return {Code::kInvalidArgument, std::string(what) + " must be fp32, fp16 or bf16."};
}

}  // namespace

AdmitResult AdmitDequantize(const SessionScope& scope, const wire::DequantizeBody& body) {
  wire::Result<Extent*> extent = FindWeight(scope, body.extent, true);
  if (!extent.ok()) return extent.status();
  if (Status fine = CheckFloat(body.out_dtype, "the output of a dequantize request"); !fine.ok()) return fine;
  const Weight& weight = *(*extent)->weight();
  const std::uint64_t blocksize = weight.format.layout.blocksize;
  if (body.first_element % blocksize != 0 || body.first_element >= weight.elements || body.elements == 0 ||
      body.elements > weight.elements - body.first_element) {
    return Status(Code::kOutOfRange, "elements " + std::to_string(body.first_element) + " + " +
                                         std::to_string(body.elements) + " of a weight of " +
                                         std::to_string(weight.elements) +
                                         ": start at a multiple of the block size and end inside it.");
  }
  const std::uint64_t size = wire::DTypeBytes(body.out_dtype);
  wire::Result<Place> out = Resolve(scope, body.out, body.elements * size, size, true, "output");
  if (!out.ok()) return out.status();
  const std::uint64_t end = body.first_element + body.elements;
  const BlockRange range{body.first_element / blocksize, (end + blocksize - 1) / blocksize, end};
  return std::unique_ptr<Work>(
      std::make_unique<DequantizeWork>(**extent, range, std::move(*out), body.out_dtype));
}

AdmitResult AdmitQuantize(const SessionScope& scope, const wire::QuantizeBody& body,
                          kernels::Device& device) {
  wire::Result<Extent*> extent = FindWeight(scope, body.extent, false);
  if (!extent.ok()) return extent.status();
  if (Status fine = CheckFloat(body.in_dtype, "the input of a quantize request"); !fine.ok()) return fine;
  const Weight& weight = *(*extent)->weight();
  const std::uint64_t size = wire::DTypeBytes(body.in_dtype);
  wire::Result<Place> in = Resolve(scope, body.in, weight.elements * size, size, false, "input");
  if (!in.ok()) return in.status();
  const std::uint64_t blocks = weight.blocks();
  Statistics statistics;
  bool fits = true;
  if (weight.format.layout.nested) {
    statistics.absmax = Scratch::ForKernels(device, blocks * sizeof(float));
    statistics.codes = Scratch::ForKernels(device, blocks);
    statistics.absmax2 =
        Scratch::ForKernels(device, quant::BlocksOf(blocks, quant::kNestedBlock) * sizeof(float));
    statistics.offset = Scratch(device, sizeof(float));
    fits = statistics.absmax && statistics.codes && statistics.absmax2 && statistics.offset;
  }
  if (!fits) {
    return Status(Code::kOutOfMemory,
                  "no memory for the absmaxes of " + std::to_string(blocks) + " blocks while quantizing.");
  }
  return std::unique_ptr<Work>(std::make_unique<QuantizeWork>(
      **extent, std::move(*in), body.in_dtype, std::move(statistics), StartOf(device, weight)));
}

AdmitResult AdmitMovePacked(const SessionScope& scope, const wire::PackedBody& body,
                            kernels::Device& device) {
  const bool into = body.into_pages == 1;
  if (body.into_pages > 1) return Status(Code::kInvalidArgument, "into_pages is neither 0 nor 1.");
  wire::Result<Extent*> extent = FindWeight(scope, body.extent, !into);
  if (!extent.ok()) return extent.status();
  const Weight& weight = *(*extent)->weight();
  const bool nested = weight.format.layout.nested;
  wire::Result<Place> packed =
      Resolve(scope, body.packed, (weight.elements + 1) / 2, 1, !into, "packed codes");
  if (!packed.ok()) return packed.status();
  wire::Result<Place> absmax = Resolve(scope, body.absmax, weight.blocks() * (nested ? 1 : sizeof(float)),
                                       nested ? 1 : sizeof(float), !into, "absmax");
  if (!absmax.ok()) return absmax.status();
  wire::Result<Place> absmax2 = Place{};
  if (nested) {
    const std::uint64_t groups = quant::BlocksOf(weight.blocks(), quant::kNestedBlock);
    absmax2 = Resolve(scope, body.absmax2, groups * sizeof(float), sizeof(float), !into, "absmax2");
    if (!absmax2.ok()) return absmax2.status();
  }
  auto work = std::make_unique<PackedWork>(**extent, into, body.offset,
                                           into ? StartOf(device, weight) : WeightPiece());
  work->SetPlanes(std::move(*packed), std::move(*absmax), std::move(*absmax2));
  return std::unique_ptr<Work>(std::move(work));
}

}  // namespace bitpager::daemon
