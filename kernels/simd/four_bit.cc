#include "kernels/simd/four_bit.h"

#include <algorithm>

#include "quant/block.h"
#include "quant/weight_layout.h"

namespace bitpager::kernels::simd {

void BlockAbsmax(wire::DType dtype, const void* in, std::uint64_t elements, std::uint32_t blocksize,
                 float* absmax) {
  const auto* bytes = static_cast<const std::byte*>(in);
  for (std::uint64_t first = 0; first < elements; first += blocksize) {
    const std::uint64_t count = std::min<std::uint64_t>(blocksize, elements - first);
    *absmax++ = quant::AbsmaxOf(dtype, bytes + first * wire::DTypeBytes(dtype), count);
  }
}

void Pack4(wire::QuantType type, wire::DType dtype, const void* in, std::uint64_t elements,
           std::uint32_t blocksize, const float* absmax, std::uint8_t* packed) {
  const auto* bytes = static_cast<const std::byte*>(in);
  for (std::uint64_t first = 0; first < elements; first += blocksize) {
    const std::uint64_t count = std::min<std::uint64_t>(blocksize, elements - first);
    quant::PackBlock4(type, dtype, bytes + first * wire::DTypeBytes(dtype), count, *absmax++,
                      packed + first / 2);
  }
}

void Unpack4(wire::QuantType type, wire::DType dtype, const std::uint8_t* packed, std::uint64_t elements,
             std::uint32_t blocksize, const float* absmax, void* out, bool /*stream*/) {
  auto* bytes = static_cast<std::byte*>(out);
  for (std::uint64_t first = 0; first < elements; first += blocksize) {
    const std::uint64_t count = std::min<std::uint64_t>(blocksize, elements - first);
    quant::UnpackBlock4(type, dtype, packed + first / 2, count, *absmax++,
                        bytes + first * wire::DTypeBytes(dtype));
  }
}

void UnnestRun(const std::uint8_t* codes, std::uint64_t first_block, std::uint64_t blocks,
               const float* absmax2, float offset, float* absmax) {
  const std::uint64_t first_group = first_block / quant::kNestedBlock;
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const std::uint64_t group = (first_block + i) / quant::kNestedBlock - first_group;
    absmax[i] = quant::UnnestAbsmax(codes[i], absmax2[group], offset);
  }
}

}  // namespace bitpager::kernels::simd
