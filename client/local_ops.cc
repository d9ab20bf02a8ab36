#include "client/local_ops.h"

#include <string>

#include "kernels/local.h"

namespace bitpager::client {

void CopyBytes(void* to, const void* from, std::uint64_t bytes, bool stream) {
  stream ? kernels::StreamCopy(to, from, bytes) : kernels::ParallelCopy(to, from, bytes, 1);
}

int UsableProcessors() {
  return kernels::UsableProcessors();
}

wire::Result<int> ThreadsFrom(int threads) {
  if (threads < 0 || threads > 1024) {
    return wire::Status(wire::Code::kInvalidArgument,
                        "threads is " + std::to_string(threads) + "; 0 (all usable processors) to 1024");
  }
  return threads == 0 ? UsableProcessors() : threads;
}

wire::Status DecodeLeased(const LeasedWeight& weight, wire::DType dtype, void* out, int threads) {
  kernels::PagedWeight paged;
  paged.type = weight.type;
  paged.layout = weight.layout;
  paged.offset = weight.offset;
  paged.pages = weight.pages;
  paged.elements = weight.elements;
  return kernels::DequantizePages(paged, 0, weight.elements, dtype, out, threads);
}

wire::Status Quantize4Bit(wire::QuantType type, wire::DType dtype, const void* in, std::uint64_t elements,
                          std::uint32_t blocksize, std::uint8_t* packed, float* absmax, int threads) {
  kernels::Packed4 out;
  out.packed = packed;
  out.absmax = absmax;
  return kernels::Quantize4Bit(type, dtype, in, elements, blocksize, &out, threads);
}

wire::Status Dequantize4Bit(wire::QuantType type, wire::DType dtype, const std::uint8_t* packed,
                            const float* absmax, std::uint64_t elements, std::uint32_t blocksize, void* out,
                            int threads) {
  kernels::Packed4 in;  // only read
  in.packed = const_cast<std::uint8_t*>(packed);
  in.absmax = const_cast<float*>(absmax);
  return kernels::Dequantize4Bit(type, in, elements, blocksize, dtype, out, threads);
}

wire::Status QuantizeBlockwise(const float* map, wire::DType dtype, const void* in, std::uint64_t elements,
                               std::uint32_t blocksize, std::uint8_t* codes, float* absmax, int threads) {
  return kernels::QuantizeBlockwise({map, 256}, dtype, in, elements, blocksize, codes, absmax, threads);
}

wire::Status DequantizeBlockwise(const float* map, wire::DType dtype, const std::uint8_t* codes,
                                 const float* absmax, std::uint64_t elements, std::uint32_t blocksize,
                                 void* out, int threads) {
  return kernels::DequantizeBlockwise({map, 256}, codes, absmax, elements, blocksize, dtype, out, threads);
}

}  // namespace bitpager::client
