#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/eight_bit.cc"
#include <hwy/foreach_target.h>
// Highway needs the line above first.
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/simd/eight_bit.h"
#include "kernels/simd/encode-inl.h"
#include "kernels/simd/vectors-inl.h"
#include "quant/block.h"

HWY_BEFORE_NAMESPACE();
namespace bitpager::kernels::simd::HWY_NAMESPACE {

inline void EncodeReference(bool is_signed, wire::DType dtype, const void* in, std::size_t count,
                            std::uint8_t* codes, float* absmax) {
  const auto& thresholds = is_signed ? quant::kSignedDynamicThresholds : quant::kUnsignedDynamicThresholds;
  *absmax = quant::EncodeBlock8(thresholds, dtype, in, count, codes);
}

#if BITPAGER_VECTORS

inline constexpr std::size_t kMaxBlock = 4096;
inline constexpr std::size_t kGroup = 4 * kLanes;

template <typename T>
HWY_ATTR void EncodeBlocks(bool is_signed, wire::DType dtype, const std::byte* in, std::uint64_t elements,
                           std::uint32_t blocksize, std::uint8_t* codes, float* absmax) {
  const Df d;
  HWY_ALIGN float values[kMaxBlock];
  for (std::uint64_t first = 0; first < elements; first += blocksize, ++absmax) {
    const std::size_t count = std::min<std::uint64_t>(blocksize, elements - first);
    const std::byte* block = in + first * T::kBytes;
    Vi greatest = hn::Zero(Di());
    for (std::size_t i = 0; i + kLanes <= count; i += kLanes) {
      const Vf x = T::Load(block + i * T::kBytes);
      hn::Store(x, d, values + i);
      greatest = hn::Max(greatest, MagnitudeBits(x));
    }
    const float most = ReduceAbsmax(greatest);
    if (count % kGroup != 0 || !std::isfinite(most) || (most < 0x1p-120F && most != 0.0F)) {
      EncodeReference(is_signed, dtype, block, count, codes + first, absmax);
      continue;
    }
    *absmax = most;
    if (is_signed) {
      EncodeValues<Form::kSigned>(kSignedPieces, values, count, most, codes + first);
      continue;
    }
    // The unsigned map takes negative values to its entry 0.
    for (std::size_t i = 0; i < count; i += kLanes) {
      hn::Store(hn::Max(hn::Load(d, values + i), hn::Zero(d)), d, values + i);
    }
    EncodeValues<Form::kUnsigned>(kUnsignedPieces, values, count, most, codes + first);
  }
}

template <typename T>
HWY_ATTR void DecodeBlocks(const DecodeTables& tables, wire::DType dtype, const std::uint8_t* codes,
                           std::uint64_t elements, std::uint32_t blocksize, const float* absmax,
                           std::byte* out) {
  for (std::uint64_t first = 0; first < elements; first += blocksize, ++absmax) {
    const std::size_t count = std::min<std::uint64_t>(blocksize, elements - first);
    const Vf scale = hn::Set(Df(), *absmax);
    std::size_t i = 0;
    for (; std::isfinite(*absmax) && i + kGroup <= count; i += kGroup) {
      Vf values[4];
      Decode4(tables, codes + first + i, scale, values);
      for (std::size_t j = 0; j < 4; ++j) T::Store(values[j], out + (first + i + j * kLanes) * T::kBytes);
    }
    quant::DecodeBlock8(tables.map, dtype, codes + first + i, count - i, *absmax,
                        out + (first + i) * T::kBytes);
  }
}

HWY_ATTR void EncodeOnTarget(bool is_signed, wire::DType dtype, const void* in, std::uint64_t elements,
                             std::uint32_t blocksize, std::uint8_t* codes, float* absmax) {
  WithType(dtype, [&](auto t) HWY_ATTR {
    EncodeBlocks<decltype(t)>(is_signed, dtype, static_cast<const std::byte*>(in), elements, blocksize, codes,
                              absmax);
  });
}

HWY_ATTR void DecodeOnTarget(const quant::Map256& map, wire::DType dtype, const std::uint8_t* codes,
                             std::uint64_t elements, std::uint32_t blocksize, const float* absmax,
                             void* out) {
  const DecodeTables tables = MakeDecodeTables(map);
  WithType(dtype, [&](auto t) HWY_ATTR {
    DecodeBlocks<decltype(t)>(tables, dtype, codes, elements, blocksize, absmax,
                              static_cast<std::byte*>(out));
  });
}

#else

void EncodeOnTarget(bool is_signed, wire::DType dtype, const void* in, std::uint64_t elements,
                    std::uint32_t blocksize, std::uint8_t* codes, float* absmax) {
  const auto* bytes = static_cast<const std::byte*>(in);
  for (std::uint64_t first = 0; first < elements; first += blocksize) {
    const std::size_t count = std::min<std::uint64_t>(blocksize, elements - first);
    EncodeReference(is_signed, dtype, bytes + first * wire::DTypeBytes(dtype), count, codes + first,
                    absmax++);
  }
}

void DecodeOnTarget(const quant::Map256& map, wire::DType dtype, const std::uint8_t* codes,
                    std::uint64_t elements, std::uint32_t blocksize, const float* absmax, void* out) {
  auto* bytes = static_cast<std::byte*>(out);
  for (std::uint64_t first = 0; first < elements; first += blocksize) {
    const std::size_t count = std::min<std::uint64_t>(blocksize, elements - first);
    quant::DecodeBlock8(map, dtype, codes + first, count, *absmax++, bytes + first * wire::DTypeBytes(dtype));
  }
}

#endif

}  // namespace bitpager::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bitpager::kernels::simd {

HWY_EXPORT(EncodeOnTarget);
HWY_EXPORT(DecodeOnTarget);

void EncodeDynamic(bool is_signed, wire::DType dtype, const void* in, std::uint64_t elements,
                   std::uint32_t blocksize, std::uint8_t* codes, float* absmax) {
  HWY_DYNAMIC_DISPATCH(EncodeOnTarget)(is_signed, dtype, in, elements, blocksize, codes, absmax);
}

void Decode8(const quant::Map256& map, wire::DType dtype, const std::uint8_t* codes, std::uint64_t elements,
             std::uint32_t blocksize, const float* absmax, void* out) {
  HWY_DYNAMIC_DISPATCH(DecodeOnTarget)(map, dtype, codes, elements, blocksize, absmax, out);
}

}  // namespace bitpager::kernels::simd
#endif
