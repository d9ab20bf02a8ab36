// The C ABI of libbitpager_cuda.so: bitpager_cuda.h over local.h. Any thread; no exception leaves.
#include <algorithm>
#include <cstring>
#include <exception>

#include "kernels/cuda/bitpager_cuda.h"
#include "kernels/cuda/local.h"

namespace cuda = bitpager::kernels::cuda;
namespace wire = bitpager::wire;

namespace {

// Plain memory: no destructor runs at thread end.
thread_local char last_error[1024];

int Record(wire::Code code, const char* text) noexcept {
  const std::size_t bytes = std::min(std::strlen(text), sizeof(last_error) - 1);
  std::memcpy(last_error, text, bytes);
  last_error[bytes] = '\0';
  return static_cast<int>(code);
}

template <typename Call>
int Guarded(const Call& call) noexcept {
  try {
    const wire::Status status = call();
    return status.ok() ? 0 : Record(status.code(), status.message().c_str());
  } catch (const std::exception& error) {
    return Record(wire::Code::kInternal, error.what());
  }
}

// Values outside the enumerations become one that every check refuses.
wire::QuantType TypeOf(int value) {
  return static_cast<wire::QuantType>(value < 0 || value > 255 ? 255 : value);
}
wire::DType DTypeOf(int value) {
  return static_cast<wire::DType>(value < 0 || value > 255 ? 255 : value);
}

cuda::Planes4 PlanesOf(const void* packed, const float* absmax, const void* nested_codes,
                       const float* absmax2, const float* offset) {
  cuda::Planes4 planes;
  planes.packed = static_cast<std::uint8_t*>(const_cast<void*>(packed));
  planes.absmax = const_cast<float*>(absmax);
  planes.nested_codes = static_cast<std::uint8_t*>(const_cast<void*>(nested_codes));
  planes.absmax2 = const_cast<float*>(absmax2);
  planes.offset = const_cast<float*>(offset);
  return planes;
}

cuda::Blockwise BlockwiseOf(int map_kind, const float* map, int dtype, const void* plain, uint64_t n,
                            uint32_t blocksize, const void* codes, const float* absmax) {
  cuda::Blockwise args;
  args.kind = static_cast<cuda::MapKind>(map_kind < 0 || map_kind > 255 ? 255 : map_kind);
  args.map = map;
  args.dtype = DTypeOf(dtype);
  args.plain = static_cast<std::byte*>(const_cast<void*>(plain));
  args.elements = n;
  args.blocksize = blocksize;
  args.codes = static_cast<std::uint8_t*>(const_cast<void*>(codes));
  args.absmax = const_cast<float*>(absmax);
  return args;
}

wire::Result<cuda::Pages4> PagesOf(const bp_cuda_pages* weight) {
  if (weight == nullptr || weight->struct_bytes != sizeof(bp_cuda_pages)) {
    return wire::Status(wire::Code::kInvalidArgument, "bp_cuda_pages is missing or of another version");
  }
  const auto layout =
      bitpager::quant::MakeWeightLayout(weight->blocksize, weight->nested != 0, weight->page_bytes);
  if (!layout.ok()) return layout.status();
  cuda::Pages4 pages;
  pages.layout = *layout;
  pages.offset = weight->offset;
  pages.pages = {reinterpret_cast<const std::byte* const*>(weight->pages), weight->page_count};
  return pages;
}

}  // namespace

extern "C" {

uint32_t bp_cuda_abi_version(void) {
  return BP_CUDA_ABI_VERSION;
}
const char* bp_cuda_last_error(void) {
  return last_error;
}
int bp_cuda_check_device(void) {
  return Guarded([] { return cuda::CheckCurrentDevice(); });
}

int bp_cuda_quantize_4bit(void* stream, int quant_type, int dtype, const void* in, uint64_t n,
                          uint32_t blocksize, void* packed, float* absmax, void* nested_codes, float* absmax2,
                          float* offset) {
  return Guarded([&] {
    return cuda::Quantize4BitOn(stream, TypeOf(quant_type), DTypeOf(dtype), in, n, blocksize,
                                PlanesOf(packed, absmax, nested_codes, absmax2, offset));
  });
}

int bp_cuda_dequantize_4bit(void* stream, int quant_type, int dtype, const void* packed, const float* absmax,
                            const void* nested_codes, const float* absmax2, const float* offset, uint64_t n,
                            uint32_t blocksize, void* out) {
  return Guarded([&] {
    return cuda::Dequantize4BitOn(stream, TypeOf(quant_type),
                                  PlanesOf(packed, absmax, nested_codes, absmax2, offset), n, blocksize,
                                  DTypeOf(dtype), out);
  });
}

int bp_cuda_quantize_blockwise(void* stream, int map_kind, const float* map, int dtype, const void* in,
                               uint64_t n, uint32_t blocksize, void* codes, float* absmax) {
  return Guarded([&] {
    return cuda::QuantizeBlockwiseOn(stream,
                                     BlockwiseOf(map_kind, map, dtype, in, n, blocksize, codes, absmax));
  });
}

int bp_cuda_dequantize_blockwise(void* stream, int map_kind, const float* map, int dtype, const void* codes,
                                 const float* absmax, uint64_t n, uint32_t blocksize, void* out) {
  return Guarded([&] {
    return cuda::DequantizeBlockwiseOn(stream,
                                       BlockwiseOf(map_kind, map, dtype, out, n, blocksize, codes, absmax));
  });
}

int bp_cuda_dequantize_pages(void* stream, int quant_type, int dtype, const bp_cuda_pages* weight, uint64_t n,
                             uint64_t first, uint64_t count, void* out) {
  return Guarded([&]() -> wire::Status {
    const auto pages = PagesOf(weight);
    if (!pages.ok()) return pages.status();
    return cuda::DequantizePagesOn(stream, TypeOf(quant_type), *pages, n, first, count, DTypeOf(dtype), out);
  });
}

int bp_cuda_multiply_4bit(void* stream, int quant_type, int dtype, const void* x, uint32_t batch,
                          uint32_t rows, uint32_t columns, uint32_t blocksize, const void* packed,
                          const float* absmax, const void* nested_codes, const float* absmax2,
                          const float* offset, void* y) {
  return Guarded([&] {
    const cuda::Planes4 planes = PlanesOf(packed, absmax, nested_codes, absmax2, offset);
    cuda::Product4 product;
    product.type = TypeOf(quant_type);
    product.dtype = DTypeOf(dtype);
    product.x = x;
    product.y = y;
    product.batch = batch;
    product.rows = rows;
    product.columns = columns;
    product.blocksize = blocksize;
    product.planes = &planes;
    return cuda::Multiply4BitOn(stream, product);
  });
}

int bp_cuda_multiply_pages(void* stream, int quant_type, int dtype, const void* x, uint32_t batch,
                           uint32_t rows, uint32_t columns, const bp_cuda_pages* weight, void* y) {
  return Guarded([&]() -> wire::Status {
    const auto pages = PagesOf(weight);
    if (!pages.ok()) return pages.status();
    cuda::Product4 product;
    product.type = TypeOf(quant_type);
    product.dtype = DTypeOf(dtype);
    product.x = x;
    product.y = y;
    product.batch = batch;
    product.rows = rows;
    product.columns = columns;
    product.pages = &*pages;
    return cuda::Multiply4BitOn(stream, product);
  });
}

int bp_cuda_dequantize_leased(void* call, const void* pages) {
  const auto& c = *static_cast<const bp_cuda_dequantize_call*>(call);
  return bp_cuda_dequantize_pages(c.stream, c.quant_type, c.dtype, static_cast<const bp_cuda_pages*>(pages),
                                  c.n, c.first, c.count, c.out);
}

int bp_cuda_multiply_leased(void* call, const void* pages) {
  const auto& c = *static_cast<const bp_cuda_multiply_call*>(call);
  return bp_cuda_multiply_pages(c.stream, c.quant_type, c.dtype, c.x, c.batch, c.rows, c.columns,
                                static_cast<const bp_cuda_pages*>(pages), c.y);
}

}  // extern "C"
