#include "kernels/cuda/local.h"

#include <cuda_runtime_api.h>

#include <bit>
#include <string>
#include <vector>

#include "kernels/cuda/gemv.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/weight_run.h"
#include "kernels/cuda/weights.h"

namespace bitpager::kernels::cuda {
namespace {

using wire::Code;
using wire::DTypeBytes;
using wire::Status;

Status Invalid(std::string message) {
  return {Code::kInvalidArgument, std::move(message)};
}

Status CheckCommon(wire::DType dtype, std::uint32_t blocksize, std::uint32_t least) {
  if (dtype != wire::DType::kF32 && dtype != wire::DType::kF16 && dtype != wire::DType::kBF16) {
    return Invalid("dtype " + std::to_string(static_cast<int>(dtype)) +
                   " is not a float type: use float32, float16 or bfloat16");
  }
  if (blocksize < least || blocksize > 4096 || !std::has_single_bit(blocksize)) {
    return Invalid("blocksize " + std::to_string(blocksize) + " is not a power of two from " +
                   std::to_string(least) + " to 4096");
  }
  return {};
}

Status CheckType(wire::QuantType type) {
  if (type == wire::QuantType::kNF4 || type == wire::QuantType::kFP4) return {};
  return Invalid("unknown 4-bit type " + std::to_string(static_cast<int>(type)) + ": use nf4 or fp4");
}

struct Named {
  const void* pointer;
  const char* name;
};
Status CheckPointers(std::uint64_t elements, std::initializer_list<Named> all) {
  if (elements == 0) return {};
  for (const Named& one : all) {
    if (one.pointer == nullptr) {
      return Invalid(std::string(one.name) + " is null but " + std::to_string(elements) +
                     " elements were given");
    }
  }
  return {};
}

Status CheckPlanes(const Planes4& planes, std::uint64_t elements, const void* plain, bool absmax_needed) {
  if (Status s = CheckPointers(elements, {{plain, "the tensor"}, {planes.packed, "packed"}}); !s.ok())
    return s;
  if (absmax_needed || planes.nested_codes == nullptr) {
    if (Status s = CheckPointers(elements, {{planes.absmax, "absmax"}}); !s.ok()) return s;
  }
  if (planes.nested_codes == nullptr) return {};
  return CheckPointers(elements, {{planes.absmax2, "absmax2"}, {planes.offset, "offset"}});
}

CUstream_st* StreamOf(void* stream) {
  return static_cast<CUstream_st*>(stream);
}

WeightRun RunOfPlanes(const Planes4& planes, const void* plain, std::uint64_t elements, bool nested) {
  WeightRun run;
  run.packed = planes.packed;
  run.scales = nested ? reinterpret_cast<std::byte*>(planes.nested_codes)
                      : reinterpret_cast<std::byte*>(planes.absmax);
  run.absmax2 = planes.absmax2;
  run.plain = static_cast<std::byte*>(const_cast<void*>(plain));
  run.elements = elements;
  return run;
}

RunFormat FormatOf(wire::QuantType type, std::uint32_t blocksize) {
  RunFormat format;
  format.type = type;
  format.blocksize = blocksize;
  return format;
}

Status CheckPages(const Pages4& in, std::uint64_t first, std::uint64_t count) {
  if (in.layout.blocks_per_page == 0) return Invalid("the layout holds no block: use MakeWeightLayout");
  const std::uint64_t page_elements = std::uint64_t{in.layout.blocks_per_page} * in.layout.blocksize;
  const std::uint64_t end = (first + count + page_elements - 1) / page_elements;
  for (std::uint64_t page = first / page_elements; page < end && count != 0; ++page) {
    if (page >= in.pages.size() || in.pages[page] == nullptr) {
      return Invalid("page " + std::to_string(page) + " of the weight is needed but has no address");
    }
  }
  return {};
}

Status CheckBlockwise(const Blockwise& args) {
  if (Status s = CheckCommon(args.dtype, args.blocksize, 64); !s.ok()) return s;
  if (args.kind == MapKind::kGiven) {
    if (Status s = CheckPointers(args.elements, {{args.map, "the map"}}); !s.ok()) return s;
  }
  if (args.kind > MapKind::kGiven)
    return Invalid("unknown kind of map " + std::to_string(static_cast<int>(args.kind)));
  return CheckPointers(args.elements,
                       {{args.plain, "the tensor"}, {args.codes, "codes"}, {args.absmax, "absmax"}});
}

Status CheckProduct(const Product4& args, std::uint32_t blocksize) {
  if (Status s = CheckCommon(args.dtype, blocksize, 32); !s.ok()) return s;
  if (Status s = CheckType(args.type); !s.ok()) return s;
  if (args.dtype == wire::DType::kF32) return Invalid("a product takes float16 or bfloat16");
  if (args.batch < 1 || args.batch > kGemvBatch) {
    return Invalid("a batch of " + std::to_string(args.batch) + " is not 1 to " + std::to_string(kGemvBatch) +
                   ": dequantize and multiply instead");
  }
  if (args.columns == 0 || args.columns % blocksize != 0) {
    return Invalid(std::to_string(args.columns) + " columns are no multiple of the block size " +
                   std::to_string(blocksize) + ": dequantize and multiply instead");
  }
  const std::uint64_t elements = std::uint64_t{args.rows} * args.columns;
  if (elements / blocksize >= (std::uint64_t{1} << 32)) return Invalid("the weight has too many blocks");
  if (Status s = CheckPointers(elements, {{args.x, "x"}, {args.y, "y"}}); !s.ok()) return s;
  if (!IsAligned(args.x, 16) || !IsAligned(args.y, 2)) return Invalid("x must be aligned to 16 bytes");
  return {};
}

Status FillFromPlanes(const Planes4& planes, std::uint64_t elements, const void* plain, Gemv4& out) {
  if (Status s = CheckPlanes(planes, elements, plain, false); !s.ok()) return s;
  out.nested = planes.nested_codes != nullptr;
  out.packed = reinterpret_cast<const std::byte*>(planes.packed);
  out.scales = out.nested ? reinterpret_cast<const std::byte*>(planes.nested_codes)
                          : reinterpret_cast<const std::byte*>(planes.absmax);
  out.absmax2 = planes.absmax2;
  out.offset_at = planes.offset;
  if (!IsAligned(out.packed, 16)) return Invalid("packed must be aligned to 16 bytes for a product");
  return {};
}

Status FillFromPages(const Pages4& pages, std::uint64_t elements, Gemv4& out) {
  if (Status s = CheckPages(pages, 0, elements); !s.ok()) return s;
  out.page_count = quant::PagesOf(pages.layout, elements);
  if (out.page_count > kGemvPages) {
    return Invalid("the weight lies in " + std::to_string(out.page_count) + " pages, a product takes up to " +
                   std::to_string(kGemvPages) + ": dequantize and multiply instead");
  }
  out.pages = pages.pages.data();
  out.nested = pages.layout.nested;
  out.offset = pages.offset;
  out.blocks_per_page = pages.layout.blocks_per_page;
  out.scales_offset = pages.layout.absmax_offset;
  out.absmax2_offset = pages.layout.absmax2_offset;
  return {};
}

// Compute capability of the current device, 10 * major + minor.
Status CapabilityOf(int* capability) {
  int device = 0;
  int major = 0;
  int minor = 0;
  if (Status s = StatusOf(cudaGetDevice(&device), "find the current device"); !s.ok()) return s;
  if (Status s = StatusOf(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
                          "read the device's compute capability");
      !s.ok()) {
    return s;
  }
  if (Status s = StatusOf(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
                          "read the device's compute capability");
      !s.ok()) {
    return s;
  }
  *capability = 10 * major + minor;
  return {};
}

}  // namespace

wire::Status Quantize4BitOn(void* stream, wire::QuantType type, wire::DType dtype, const void* in,
                            std::uint64_t elements, std::uint32_t blocksize, const Planes4& out) {
  if (Status s = CheckCommon(dtype, blocksize, 32); !s.ok()) return s;
  if (Status s = CheckType(type); !s.ok()) return s;
  if (Status s = CheckPlanes(out, elements, in, true); !s.ok()) return s;
  const WeightRun run = RunOfPlanes(out, in, elements, false);
  if (Status s = QuantizeRuns(StreamOf(stream), FormatOf(type, blocksize), dtype, false, {&run, 1}); !s.ok())
    return s;
  if (out.nested_codes == nullptr) return {};
  NestAbsmaxArgs nest;
  nest.absmax = out.absmax;
  nest.blocks = quant::BlocksOf(elements, blocksize);
  nest.codes = out.nested_codes;
  nest.absmax2 = out.absmax2;
  nest.offset = out.offset;
  return nest.blocks == 0 && out.offset == nullptr ? Status() : NestAbsmax(StreamOf(stream), nest);
}

wire::Status Dequantize4BitOn(void* stream, wire::QuantType type, const Planes4& in, std::uint64_t elements,
                              std::uint32_t blocksize, wire::DType dtype, void* out) {
  if (Status s = CheckCommon(dtype, blocksize, 32); !s.ok()) return s;
  if (Status s = CheckType(type); !s.ok()) return s;
  if (Status s = CheckPlanes(in, elements, out, false); !s.ok()) return s;
  RunFormat format = FormatOf(type, blocksize);
  format.nested = in.nested_codes != nullptr;
  format.offset_at = in.offset;
  const WeightRun run = RunOfPlanes(in, out, elements, format.nested);
  return DequantizeRuns(StreamOf(stream), format, dtype, {&run, 1});
}

wire::Status DequantizePagesOn(void* stream, wire::QuantType type, const Pages4& in, std::uint64_t elements,
                               std::uint64_t first, std::uint64_t count, wire::DType dtype, void* out) {
  const quant::WeightLayout& layout = in.layout;
  if (Status s = CheckCommon(dtype, layout.blocksize, 32); !s.ok()) return s;
  if (Status s = CheckType(type); !s.ok()) return s;
  if (Status s = CheckPointers(count, {{out, "the output"}}); !s.ok()) return s;
  if (first > elements || count > elements - first) {
    return {Code::kOutOfRange, "elements " + std::to_string(first) + " + " + std::to_string(count) +
                                   " pass the weight's end at " + std::to_string(elements)};
  }
  if (first % layout.blocksize != 0) {
    return Invalid("first element " + std::to_string(first) + " is not at a block of " +
                   std::to_string(layout.blocksize));
  }
  if (Status s = CheckPages(in, first, count); !s.ok()) return s;
  RunFormat format = FormatOf(type, layout.blocksize);
  format.nested = layout.nested;
  format.offset = in.offset;
  std::vector<WeightRun> runs;
  const std::uint64_t page_elements = std::uint64_t{layout.blocks_per_page} * layout.blocksize;
  for (std::uint64_t at = first; at < first + count;) {
    const std::uint64_t page = at / page_elements;
    WeightSpan span;
    span.page = const_cast<std::byte*>(in.pages[page]);  // only read
    span.page_global_block = page * layout.blocks_per_page;
    span.first_global_block = at / layout.blocksize;
    span.first_block = static_cast<std::uint32_t>(span.first_global_block - span.page_global_block);
    span.elements = std::min(first + count, (page + 1) * page_elements) - at;
    runs.push_back(RunOf(layout, span, static_cast<std::byte*>(out) + (at - first) * DTypeBytes(dtype)));
    at += span.elements;
  }
  return DequantizeRuns(StreamOf(stream), format, dtype, runs);
}

wire::Status QuantizeBlockwiseOn(void* stream, const Blockwise& args) {
  if (Status s = CheckBlockwise(args); !s.ok()) return s;
  return EncodeBlockwise(StreamOf(stream), args);
}

wire::Status DequantizeBlockwiseOn(void* stream, const Blockwise& args) {
  if (Status s = CheckBlockwise(args); !s.ok()) return s;
  return DecodeBlockwise(StreamOf(stream), args);
}

wire::Status Multiply4BitOn(void* stream, const Product4& args) {
  if ((args.planes == nullptr) == (args.pages == nullptr)) return Invalid("a product takes planes or pages");
  Gemv4 gemv;
  gemv.blocksize = args.pages != nullptr ? args.pages->layout.blocksize : args.blocksize;
  if (Status s = CheckProduct(args, gemv.blocksize); !s.ok()) return s;
  const std::uint64_t elements = std::uint64_t{args.rows} * args.columns;
  if (elements == 0) return {};
  Status filled = args.pages != nullptr ? FillFromPages(*args.pages, elements, gemv)
                                        : FillFromPlanes(*args.planes, elements, args.x, gemv);
  if (!filled.ok()) return filled;
  int capability = 0;
  if (Status s = CapabilityOf(&capability); !s.ok()) return s;
  if (capability < 80) {
    return {Code::kUnsupported, "products with a 4-bit weight need compute capability 8.0; the device has " +
                                    std::to_string(capability / 10) + "." + std::to_string(capability % 10)};
  }
  gemv.type = args.type;
  gemv.dtype = args.dtype;
  gemv.x = args.x;
  gemv.y = args.y;
  gemv.batch = args.batch;
  gemv.rows = args.rows;
  gemv.columns = args.columns;
  return Multiply4(StreamOf(stream), gemv);
}

wire::Status CheckCurrentDevice() {
  int capability = 0;
  if (Status s = CapabilityOf(&capability); !s.ok()) return s;
  return CheckKernels();
}

}  // namespace bitpager::kernels::cuda
