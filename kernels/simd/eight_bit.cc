#include "kernels/simd/eight_bit.h"

#include <algorithm>

#include "quant/block.h"

namespace bitpager::kernels::simd {

void EncodeDynamic(bool is_signed, wire::DType dtype, const void* in, std::uint64_t elements,
                   std::uint32_t blocksize, std::uint8_t* codes, float* absmax) {
  const auto& thresholds = is_signed ? quant::kSignedDynamicThresholds : quant::kUnsignedDynamicThresholds;
  const auto* bytes = static_cast<const std::byte*>(in);
  for (std::uint64_t first = 0; first < elements; first += blocksize) {
    const std::uint64_t count = std::min<std::uint64_t>(blocksize, elements - first);
    *absmax++ =
        quant::EncodeBlock8(thresholds, dtype, bytes + first * wire::DTypeBytes(dtype), count, codes + first);
  }
}

void Decode8(const quant::Map256& map, wire::DType dtype, const std::uint8_t* codes, std::uint64_t elements,
             std::uint32_t blocksize, const float* absmax, void* out) {
  auto* bytes = static_cast<std::byte*>(out);
  for (std::uint64_t first = 0; first < elements; first += blocksize) {
    const std::uint64_t count = std::min<std::uint64_t>(blocksize, elements - first);
    quant::DecodeBlock8(map, dtype, codes + first, count, *absmax++, bytes + first * wire::DTypeBytes(dtype));
  }
}

}  // namespace bitpager::kernels::simd
