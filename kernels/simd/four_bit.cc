#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/four_bit.cc"
#include <hwy/foreach_target.h>
// Highway needs the line above first.
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/simd/eight_bit.h"
#include "kernels/simd/four_bit.h"
#include "kernels/simd/four_bit_encode-inl.h"
#include "kernels/simd/vectors-inl.h"
#include "quant/block.h"
#include "quant/encode.h"
#include "quant/weight_layout.h"

HWY_BEFORE_NAMESPACE();
namespace bitpager::kernels::simd::HWY_NAMESPACE {

// One block at a time through the scalar reference.
inline void PackReference(wire::QuantType type, wire::DType dtype, const std::byte* in,
                          std::uint64_t elements, std::uint32_t blocksize, const float* absmax,
                          std::uint8_t* packed) {
  for (std::uint64_t first = 0; first < elements; first += blocksize) {
    const std::uint64_t count = std::min<std::uint64_t>(blocksize, elements - first);
    quant::PackBlock4(type, dtype, in + first * wire::DTypeBytes(dtype), count, *absmax++,
                      packed + first / 2);
  }
}

#if BITPAGER_VECTORS

// ---- absmax ----
template <typename T>
HWY_ATTR void AbsmaxBlocks(wire::DType dtype, const std::byte* in, std::uint64_t elements,
                           std::uint32_t blocksize, float* absmax) {
  for (std::uint64_t first = 0; first < elements; first += blocksize) {
    const std::uint64_t count = std::min<std::uint64_t>(blocksize, elements - first);
    const std::byte* block = in + first * T::kBytes;
    if (count % (2 * kLanes) != 0) {
      *absmax++ = quant::AbsmaxOf(dtype, block, count);
      continue;
    }
    Vi even = hn::Zero(Di());
    Vi odd = hn::Zero(Di());
    for (std::uint64_t i = 0; i < count; i += 2 * kLanes) {
      even = hn::Max(even, MagnitudeBits(T::Load(block + i * T::kBytes)));
      odd = hn::Max(odd, MagnitudeBits(T::Load(block + (i + kLanes) * T::kBytes)));
    }
    *absmax++ = ReduceAbsmax(hn::Max(even, odd));
  }
}

HWY_ATTR void AbsmaxOnTarget(wire::DType dtype, const void* in, std::uint64_t elements,
                             std::uint32_t blocksize, float* absmax) {
  WithType(dtype, [&](auto t) HWY_ATTR {
    AbsmaxBlocks<decltype(t)>(dtype, static_cast<const std::byte*>(in), elements, blocksize, absmax);
  });
}

// ---- pack ----
// 4 * kLanes codes to 2 * kLanes bytes, the even one in the high nibble.
HWY_INLINE HWY_ATTR void StoreNibbles(const Vi code[4], std::uint8_t* at) {
#if HWY_TARGET == HWY_AVX2
  const __m256i pairs01 = _mm256_packs_epi32(code[0].raw, code[1].raw);
  const __m256i pairs23 = _mm256_packs_epi32(code[2].raw, code[3].raw);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(pairs01, pairs23), order);
  const __m256i joined = _mm256_maddubs_epi16(bytes, _mm256_set1_epi16(0x0110));
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi16(joined, joined), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm256_castsi256_si128(packed));
#else
  const __m512i pairs01 = _mm512_packs_epi32(code[0].raw, code[1].raw);
  const __m512i pairs23 = _mm512_packs_epi32(code[2].raw, code[3].raw);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(pairs01, pairs23));
  const __m512i joined = _mm512_maddubs_epi16(bytes, _mm512_set1_epi16(0x0110));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm512_cvtepi16_epi8(joined));
#endif
}

inline constexpr std::uint64_t kPackBlocks = 128;  // packed at once
// Asked for while packing computes: in Quantize4 what the next window's search for absmaxes reads first.
inline constexpr std::uint64_t kAheadBytes = 16384;

// 1 / absmax of each block; false when one needs the reference.
inline bool Inverses(const float* absmax, std::uint64_t blocks, float* inverse) {
  bool usual = true;
  for (std::uint64_t b = 0; b < blocks; ++b) {
    const quant::Reciprocal r = quant::ReciprocalOf(absmax[b]);
    usual = usual && r.pre == 1.0F && std::isfinite(absmax[b]);
    inverse[b] = r.inverse;
  }
  return usual;
}

template <typename T, typename Encoder>
HWY_ATTR void PackBlocks(wire::QuantType type, wire::DType dtype, const std::byte* in, std::uint64_t elements,
                         std::uint32_t blocksize, const float* absmax, std::uint8_t* packed) {
  const Df d;
  const Encoder encode;
  const int shift = std::countr_zero(blocksize);
  float inverse[kPackBlocks];
  const std::uint64_t window = kPackBlocks * blocksize;
  for (std::uint64_t first = 0; first < elements; first += window) {
    const std::uint64_t count = std::min(window, elements - first);
    const float* block_absmax = absmax + (first >> shift);
    const std::byte* from = in + first * T::kBytes;
    std::uint64_t whole = count & ~std::uint64_t{blocksize - 1} & ~std::uint64_t{4 * kLanes - 1};
    whole &= ~std::uint64_t{blocksize - 1};
    if (!Inverses(block_absmax, quant::BlocksOf(count, blocksize), inverse)) whole = 0;
    for (std::uint64_t i = 0; i < whole; i += 4 * kLanes) {
      Vi code[4];
      for (std::uint64_t j = 0; j < 4; ++j) {
        const std::uint64_t at = i + j * kLanes;
        _mm_prefetch(reinterpret_cast<const char*>(from + at * T::kBytes + kAheadBytes), _MM_HINT_T0);
        code[j] = encode(hn::Mul(T::Load(from + at * T::kBytes), hn::Set(d, inverse[at >> shift])));
      }
      StoreNibbles(code, packed + (first + i) / 2);
    }
    PackReference(type, dtype, from + whole * T::kBytes, count - whole, blocksize,
                  block_absmax + (whole >> shift), packed + (first + whole) / 2);
  }
}

HWY_ATTR void PackOnTarget(wire::QuantType type, wire::DType dtype, const void* in, std::uint64_t elements,
                           std::uint32_t blocksize, const float* absmax, std::uint8_t* packed) {
  const auto* bytes = static_cast<const std::byte*>(in);
  WithType(dtype, [&](auto t) HWY_ATTR {
    if (type == wire::QuantType::kNF4) {
      PackBlocks<decltype(t), Nf4Encoder>(type, dtype, bytes, elements, blocksize, absmax, packed);
    } else {
      PackBlocks<decltype(t), Fp4Encoder>(type, dtype, bytes, elements, blocksize, absmax, packed);
    }
  });
}

// ---- unpack ----
// The 16 values of one block: table * absmax, rounded to the output's dtype.
struct Values16 {
#if HWY_TARGET == HWY_AVX2
  Vf low, high;
#else
  Vf all;
#endif
};

template <typename T>
HWY_INLINE HWY_ATTR Values16 ScaledValues(const float* table, float absmax) {
  const Df d;
  const Vf scale = hn::Set(d, absmax);
#if HWY_TARGET == HWY_AVX2
  return {T::Round(hn::Mul(hn::LoadU(d, table), scale)), T::Round(hn::Mul(hn::LoadU(d, table + 8), scale))};
#else
  return {T::Round(hn::Mul(hn::LoadU(d, table), scale))};
#endif
}

// kLanes values from kLanes / 2 packed bytes.
HWY_INLINE HWY_ATTR Vf Unpack(const Values16& values, const std::uint8_t* packed) {
#if HWY_TARGET == HWY_AVX2
  std::int32_t word = 0;
  __builtin_memcpy(&word, packed, 4);
  const __m256i index =
      _mm256_srlv_epi32(_mm256_set1_epi32(word), _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24));
  const __m256 low = _mm256_permutevar8x32_ps(values.low.raw, index);
  const __m256 high = _mm256_permutevar8x32_ps(values.high.raw, index);
  return Vf{_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)))};
#else
  const __m512i halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  const __m512i shifts = _mm512_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24);
  const __m128i words = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed));
  const __m512i spread = _mm512_permutexvar_epi32(halves, _mm512_castsi128_si512(words));
  return Vf{_mm512_permutexvar_ps(_mm512_srlv_epi32(spread, shifts), values.all.raw)};
#endif
}

template <typename T, bool kStream>
HWY_ATTR void UnpackBlocks(wire::QuantType type, wire::DType dtype, const std::uint8_t* packed,
                           std::uint64_t elements, std::uint32_t blocksize, const float* absmax,
                           std::byte* out) {
  alignas(64) float table[16];
  std::copy_n(quant::Table4(type), 16, table);
  for (std::uint64_t first = 0; first < elements; first += blocksize, ++absmax) {
    const std::uint64_t count = std::min<std::uint64_t>(blocksize, elements - first);
    const std::uint64_t whole = std::isfinite(*absmax) ? count / kLanes * kLanes : 0;
    const Values16 values = ScaledValues<T>(table, *absmax);
    std::byte* const block = out + first * T::kBytes;
    const std::uint8_t* const codes = packed + first / 2;
    for (std::uint64_t i = 0; i < whole; i += kLanes) {
      T::template StoreRounded<kStream>(Unpack(values, codes + i / 2), block + i * T::kBytes);
    }
    if (whole != count) {
      quant::UnpackBlock4(type, dtype, codes + whole / 2, count - whole, *absmax, block + whole * T::kBytes);
    }
  }
}

HWY_ATTR void UnpackOnTarget(wire::QuantType type, wire::DType dtype, const std::uint8_t* packed,
                             std::uint64_t elements, std::uint32_t blocksize, const float* absmax, void* out,
                             bool stream) {
  auto* bytes = static_cast<std::byte*>(out);
  WithType(dtype, [&](auto t) HWY_ATTR {
    using T = decltype(t);
    const bool aligned = reinterpret_cast<std::uintptr_t>(out) % (kLanes * T::kBytes) == 0;
    if (stream && aligned) {
      UnpackBlocks<T, true>(type, dtype, packed, elements, blocksize, absmax, bytes);
      _mm_sfence();  // the op's event must cover these stores
    } else {
      UnpackBlocks<T, false>(type, dtype, packed, elements, blocksize, absmax, bytes);
    }
  });
}

#else

void AbsmaxOnTarget(wire::DType dtype, const void* in, std::uint64_t elements, std::uint32_t blocksize,
                    float* absmax) {
  const auto* bytes = static_cast<const std::byte*>(in);
  for (std::uint64_t first = 0; first < elements; first += blocksize) {
    const std::uint64_t count = std::min<std::uint64_t>(blocksize, elements - first);
    *absmax++ = quant::AbsmaxOf(dtype, bytes + first * wire::DTypeBytes(dtype), count);
  }
}

void PackOnTarget(wire::QuantType type, wire::DType dtype, const void* in, std::uint64_t elements,
                  std::uint32_t blocksize, const float* absmax, std::uint8_t* packed) {
  PackReference(type, dtype, static_cast<const std::byte*>(in), elements, blocksize, absmax, packed);
}

void UnpackOnTarget(wire::QuantType type, wire::DType dtype, const std::uint8_t* packed,
                    std::uint64_t elements, std::uint32_t blocksize, const float* absmax, void* out,
                    bool /*stream*/) {
  auto* bytes = static_cast<std::byte*>(out);
  for (std::uint64_t first = 0; first < elements; first += blocksize) {
    const std::uint64_t count = std::min<std::uint64_t>(blocksize, elements - first);
    quant::UnpackBlock4(type, dtype, packed + first / 2, count, *absmax++,
                        bytes + first * wire::DTypeBytes(dtype));
  }
}

#endif

}  // namespace bitpager::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bitpager::kernels::simd {

HWY_EXPORT(AbsmaxOnTarget);
HWY_EXPORT(PackOnTarget);
HWY_EXPORT(UnpackOnTarget);

void BlockAbsmax(wire::DType dtype, const void* in, std::uint64_t elements, std::uint32_t blocksize,
                 float* absmax) {
  HWY_DYNAMIC_DISPATCH(AbsmaxOnTarget)(dtype, in, elements, blocksize, absmax);
}

void Pack4(wire::QuantType type, wire::DType dtype, const void* in, std::uint64_t elements,
           std::uint32_t blocksize, const float* absmax, std::uint8_t* packed) {
  HWY_DYNAMIC_DISPATCH(PackOnTarget)(type, dtype, in, elements, blocksize, absmax, packed);
}

void Quantize4(wire::QuantType type, wire::DType dtype, const void* in, std::uint64_t elements,
               std::uint32_t blocksize, float* absmax, std::uint8_t* packed) {
  // So little at a time that packing finds its input in the first-level cache.
  const std::uint64_t window = std::max<std::uint64_t>(4096, blocksize);
  for (std::uint64_t at = 0; at < elements; at += window) {
    const std::uint64_t count = std::min(window, elements - at);
    const std::byte* from = static_cast<const std::byte*>(in) + at * wire::DTypeBytes(dtype);
    BlockAbsmax(dtype, from, count, blocksize, absmax + at / blocksize);
    Pack4(type, dtype, from, count, blocksize, absmax + at / blocksize, packed + at / 2);
  }
}

void Unpack4(wire::QuantType type, wire::DType dtype, const std::uint8_t* packed, std::uint64_t elements,
             std::uint32_t blocksize, const float* absmax, void* out, bool stream) {
  HWY_DYNAMIC_DISPATCH(UnpackOnTarget)(type, dtype, packed, elements, blocksize, absmax, out, stream);
}

void UnnestRun(const std::uint8_t* codes, std::uint64_t first_block, std::uint64_t blocks,
               const float* absmax2, float offset, float* absmax) {
  const std::uint64_t first_group = first_block / quant::kNestedBlock;
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const std::uint64_t group = (first_block + i) / quant::kNestedBlock - first_group;
    absmax[i] = quant::UnnestAbsmax(codes[i], absmax2[group], offset);
  }
}

float NestMean(const float* absmax, std::uint64_t blocks) {
  return quant::MeanAbsmax({absmax, blocks});
}

void NestRun(const float* absmax, std::uint64_t blocks, float mean, std::uint8_t* codes, float* absmax2) {
  std::array<float, quant::kNestedBlock> centred{};
  for (std::uint64_t first = 0; first < blocks; first += quant::kNestedBlock) {
    const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(quant::kNestedBlock, blocks - first));
    for (std::size_t i = 0; i < count; ++i) centred[i] = absmax[first + i] - mean;
    EncodeDynamic(true, wire::DType::kF32, centred.data(), count, quant::kNestedBlock, codes + first,
                  absmax2 + first / quant::kNestedBlock);
  }
}

}  // namespace bitpager::kernels::simd
#endif
