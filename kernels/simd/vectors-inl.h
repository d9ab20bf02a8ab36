// Vector building blocks shared by the kernels: loads and stores of every dtype, small table lookups, the
// dynamic map's decoder (its encoder: encode-inl.h). Included once per target by files that Highway compiles
// several times; empty on targets without fused multiply-add and cross-lane permutes, whose kernels are the
// scalar reference.
#if defined(BITPAGER_VECTORS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BITPAGER_VECTORS_INL_H_
#undef BITPAGER_VECTORS_INL_H_
#else
#define BITPAGER_VECTORS_INL_H_
#endif

#include <hwy/highway.h>

#include <bit>
#include <cstdint>

#include "client/wire/types.h"
#include "kernels/simd/dynamic_tables.h"
#include "quant/codebook.h"

// The reference fuses multiply-adds; only targets that do so too may replace it.
#undef BITPAGER_VECTORS
#if HWY_TARGET <= HWY_AVX2
#define BITPAGER_VECTORS 1
#else
#define BITPAGER_VECTORS 0
#endif

#if BITPAGER_VECTORS
#include <immintrin.h>
#endif

HWY_BEFORE_NAMESPACE();
namespace bitpager::kernels::simd::HWY_NAMESPACE {
#if BITPAGER_VECTORS

namespace hn = hwy::HWY_NAMESPACE;

using Df = hn::ScalableTag<float>;
using Di = hn::ScalableTag<std::int32_t>;
using Du = hn::ScalableTag<std::uint32_t>;
using Vf = hn::Vec<Df>;
using Vi = hn::Vec<Di>;
using Vu = hn::Vec<Du>;
inline constexpr std::size_t kLanes = HWY_TARGET == HWY_AVX2 ? 8 : 16;

// ---- element types ----
struct F32 {
  static constexpr std::size_t kBytes = 4;
  HWY_ATTR static HWY_INLINE Vf Load(const void* at) {
    return hn::LoadU(Df(), static_cast<const float*>(at));
  }
  HWY_ATTR static HWY_INLINE void Store(Vf v, void* at) { hn::StoreU(v, Df(), static_cast<float*>(at)); }
  HWY_ATTR static HWY_INLINE Vf Round(Vf v) { return v; }
  // Stores a value that is exact in this dtype; kStream: aligned, past the caches.
  template <bool kStream>
  HWY_ATTR static HWY_INLINE void StoreRounded(Vf v, void* at) {
    if constexpr (kStream) {
      hn::Stream(v, Df(), static_cast<float*>(at));
    } else {
      Store(v, at);
    }
  }
};
struct BF16 {
  static constexpr std::size_t kBytes = 2;
  using D16 = hn::Rebind<std::uint16_t, Df>;
  HWY_ATTR static HWY_INLINE Vf Load(const void* at) {
    const auto half = hn::LoadU(D16(), static_cast<const std::uint16_t*>(at));
    return hn::BitCast(Df(), hn::ShiftLeft<16>(hn::PromoteTo(Du(), half)));
  }
  // Nearest, ties to even; the upper 16 bits count. Inputs are no NaN with low payload bits (see Step).
  HWY_ATTR static HWY_INLINE Vu Rounded(Vf v) {
    const Vu bits = hn::BitCast(Du(), v);
    const Vu half = hn::Add(bits, hn::Set(Du(), 0x7FFF));
#if HWY_TARGET == HWY_AVX2
    return hn::Add(half, hn::And(hn::ShiftRight<16>(bits), hn::Set(Du(), 1)));
#else
    const __mmask16 odd = _mm512_test_epi32_mask(bits.raw, _mm512_set1_epi32(0x10000));
    return Vu{_mm512_mask_add_epi32(half.raw, odd, half.raw, _mm512_set1_epi32(1))};
#endif
  }
  HWY_ATTR static HWY_INLINE void Store(Vf v, void* at) {
    const Vi half = hn::BitCast(Di(), hn::ShiftRight<16>(Rounded(v)));
    hn::StoreU(hn::DemoteTo(D16(), half), D16(), static_cast<std::uint16_t*>(at));
  }
  HWY_ATTR static HWY_INLINE Vf Round(Vf v) {
    return hn::BitCast(Df(), hn::And(Rounded(v), hn::Set(Du(), 0xFFFF0000U)));
  }
  template <bool kStream>
  HWY_ATTR static HWY_INLINE void StoreRounded(Vf v, void* at) {
    const Vi half = hn::BitCast(Di(), hn::ShiftRight<16>(hn::BitCast(Du(), v)));
    const auto narrow = hn::DemoteTo(D16(), half);
    if constexpr (kStream) {
      hn::Stream(narrow, D16(), static_cast<std::uint16_t*>(at));
    } else {
      hn::StoreU(narrow, D16(), static_cast<std::uint16_t*>(at));
    }
  }
};
struct F16 {
  static constexpr std::size_t kBytes = 2;
#if HWY_TARGET == HWY_AVX2
  HWY_ATTR static HWY_INLINE Vf Load(const void* at) {
    return Vf{_mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(at)))};
  }
  HWY_ATTR static HWY_INLINE void Store(Vf v, void* at) {
    _mm_storeu_si128(static_cast<__m128i*>(at), _mm256_cvtps_ph(v.raw, _MM_FROUND_TO_NEAREST_INT));
  }
  HWY_ATTR static HWY_INLINE Vf Round(Vf v) {
    return Vf{_mm256_cvtph_ps(_mm256_cvtps_ph(v.raw, _MM_FROUND_TO_NEAREST_INT))};
  }
#else
  HWY_ATTR static HWY_INLINE Vf Load(const void* at) {
    return Vf{_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(at)))};
  }
  HWY_ATTR static HWY_INLINE void Store(Vf v, void* at) {
    _mm256_storeu_si256(static_cast<__m256i*>(at), _mm512_cvtps_ph(v.raw, _MM_FROUND_TO_NEAREST_INT));
  }
  HWY_ATTR static HWY_INLINE Vf Round(Vf v) {
    return Vf{_mm512_cvtph_ps(_mm512_cvtps_ph(v.raw, _MM_FROUND_TO_NEAREST_INT))};
  }
#endif
  template <bool kStream>
  HWY_ATTR static HWY_INLINE void StoreRounded(Vf v, void* at) {
    if constexpr (kStream) {
#if HWY_TARGET == HWY_AVX2
      _mm_stream_si128(static_cast<__m128i*>(at), _mm256_cvtps_ph(v.raw, _MM_FROUND_TO_NEAREST_INT));
#else
      _mm256_stream_si256(static_cast<__m256i*>(at), _mm512_cvtps_ph(v.raw, _MM_FROUND_TO_NEAREST_INT));
#endif
    } else {
      Store(v, at);
    }
  }
};

// 4 * kLanes values at once.
template <typename T>
HWY_INLINE HWY_ATTR void Load4(const void* at, Vf out[4]) {
  const auto* bytes = static_cast<const std::byte*>(at);
  for (std::size_t j = 0; j < 4; ++j) out[j] = T::Load(bytes + j * kLanes * T::kBytes);
}
template <typename T>
HWY_INLINE HWY_ATTR void Store4(const Vf v[4], void* at) {
  auto* bytes = static_cast<std::byte*>(at);
  for (std::size_t j = 0; j < 4; ++j) T::Store(v[j], bytes + j * kLanes * T::kBytes);
}
#if HWY_TARGET < HWY_AVX3
// Byte permutes widen and narrow 32 values in fewer steps.
template <>
HWY_INLINE HWY_ATTR void Load4<BF16>(const void* at, Vf out[4]) {
  const __m512i step =
      _mm512_set_epi8(31, 30, 0, 0, 29, 28, 0, 0, 27, 26, 0, 0, 25, 24, 0, 0, 23, 22, 0, 0, 21, 20, 0, 0, 19,
                      18, 0, 0, 17, 16, 0, 0, 15, 14, 0, 0, 13, 12, 0, 0, 11, 10, 0, 0, 9, 8, 0, 0, 7, 6, 0,
                      0, 5, 4, 0, 0, 3, 2, 0, 0, 1, 0, 0, 0);
  const __m512i next = _mm512_add_epi8(step, _mm512_set1_epi8(32));
  constexpr __mmask64 kUpper = 0xCCCCCCCCCCCCCCCC;
  for (int j = 0; j < 2; ++j) {
    const __m512i halves = _mm512_loadu_si512(static_cast<const std::byte*>(at) + 64 * j);
    out[2 * j] = Vf{_mm512_castsi512_ps(_mm512_maskz_permutexvar_epi8(kUpper, step, halves))};
    out[2 * j + 1] = Vf{_mm512_castsi512_ps(_mm512_maskz_permutexvar_epi8(kUpper, next, halves))};
  }
}
template <>
HWY_INLINE HWY_ATTR void Store4<BF16>(const Vf v[4], void* at) {
  // Words of the even vector stand below those of the odd one.
  const __m512i order =
      _mm512_set_epi8(63, 62, 59, 58, 55, 54, 51, 50, 47, 46, 43, 42, 39, 38, 35, 34, 31, 30, 27, 26, 23, 22,
                      19, 18, 15, 14, 11, 10, 7, 6, 3, 2, 61, 60, 57, 56, 53, 52, 49, 48, 45, 44, 41, 40, 37,
                      36, 33, 32, 29, 28, 25, 24, 21, 20, 17, 16, 13, 12, 9, 8, 5, 4, 1, 0);
  for (int j = 0; j < 2; ++j) {
    const __m512i even = _mm512_srli_epi32(BF16::Rounded(v[2 * j]).raw, 16);
    const __m512i both = _mm512_mask_mov_epi16(even, 0xAAAAAAAA, BF16::Rounded(v[2 * j + 1]).raw);
    _mm512_storeu_si512(static_cast<std::byte*>(at) + 64 * j, _mm512_permutexvar_epi8(order, both));
  }
}
#endif

// Calls body(type tag) with the tag of `dtype`.
template <typename Body>
HWY_INLINE HWY_ATTR void WithType(wire::DType dtype, const Body& body) {
  if (dtype == wire::DType::kF32) return body(F32());
  if (dtype == wire::DType::kBF16) return body(BF16());
  body(F16());
}

// ---- lookups ----
// Entry (index mod 8) of a table of 8 floats that stands twice in `table`.
HWY_INLINE HWY_ATTR Vf Lookup8(Vf table, Vi index) {
#if HWY_TARGET == HWY_AVX2
  return Vf{_mm256_permutevar8x32_ps(table.raw, index.raw)};
#else
  return Vf{_mm512_permutexvar_ps(index.raw, table.raw)};
#endif
}

// Greatest lane of the magnitudes' bits, as a float: NaN above inf above the rest.
HWY_INLINE HWY_ATTR float ReduceAbsmax(Vi magnitude_bits) {
  const Vi greatest = hn::MaxOfLanes(Di(), magnitude_bits);
  return std::bit_cast<float>(hn::GetLane(greatest));
}
HWY_INLINE HWY_ATTR Vi MagnitudeBits(Vf v) {
  return hn::And(hn::BitCast(Di(), v), hn::Set(Di(), 0x7FFFFFFF));
}

// ---- 8-bit maps: decode ----
#if HWY_TARGET == HWY_AVX2
// Loads and inserts: faster than a gather on most processors with this instruction set, and never slow.
HWY_INLINE HWY_ATTR Vf Lookup256(const float* map, const std::uint8_t* codes) {
  std::uint64_t c = 0;
  __builtin_memcpy(&c, codes, 8);
  const auto entry = [&](int lane) { return map[(c >> (8 * lane)) & 0xFF]; };
  return Vf{_mm256_setr_ps(entry(0), entry(1), entry(2), entry(3), entry(4), entry(5), entry(6), entry(7))};
}
#elif HWY_TARGET == HWY_AVX3
HWY_INLINE HWY_ATTR __m512i Codes16(const std::uint8_t* codes) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
}
// Entry `index` mod 32 of 32 floats.
HWY_INLINE HWY_ATTR __m512 Lookup32(const float* table, __m512i index) {
  return _mm512_permutex2var_ps(_mm512_load_ps(table), index, _mm512_load_ps(table + 16));
}
// Entry `index` mod 128 of 128 floats.
HWY_INLINE HWY_ATTR __m512 Lookup128(const float* table, __m512i index) {
  const __mmask16 bit5 = _mm512_test_epi32_mask(index, _mm512_set1_epi32(32));
  const __mmask16 bit6 = _mm512_test_epi32_mask(index, _mm512_set1_epi32(64));
  const __m512 low = _mm512_mask_blend_ps(bit5, Lookup32(table, index), Lookup32(table + 32, index));
  const __m512 high = _mm512_mask_blend_ps(bit5, Lookup32(table + 64, index), Lookup32(table + 96, index));
  return _mm512_mask_blend_ps(bit6, low, high);
}
#else
// 64 codes, dword 4L + j from dword 4j + L, so that JoinPlanes gives elements in order.
HWY_INLINE HWY_ATTR __m512i Codes64(const std::uint8_t* codes) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, _mm512_loadu_si512(codes));
}
// 64 floats times `scale` from the four bytes of each.
HWY_INLINE HWY_ATTR void JoinPlanes(const __m512i byte[4], Vf scale, Vf out[4]) {
  const __m512i low0 = _mm512_unpacklo_epi8(byte[0], byte[1]);
  const __m512i low1 = _mm512_unpackhi_epi8(byte[0], byte[1]);
  const __m512i high0 = _mm512_unpacklo_epi8(byte[2], byte[3]);
  const __m512i high1 = _mm512_unpackhi_epi8(byte[2], byte[3]);
  out[0] = hn::Mul(Vf{_mm512_castsi512_ps(_mm512_unpacklo_epi16(low0, high0))}, scale);
  out[1] = hn::Mul(Vf{_mm512_castsi512_ps(_mm512_unpackhi_epi16(low0, high0))}, scale);
  out[2] = hn::Mul(Vf{_mm512_castsi512_ps(_mm512_unpacklo_epi16(low1, high1))}, scale);
  out[3] = hn::Mul(Vf{_mm512_castsi512_ps(_mm512_unpackhi_epi16(low1, high1))}, scale);
}
#endif

// out[i] = map[codes[i]] * scale for 4 * kLanes codes, any map.
HWY_INLINE HWY_ATTR void Decode4(const DecodeTables& tables, const std::uint8_t* codes, Vf scale, Vf out[4]) {
#if HWY_TARGET == HWY_AVX2
  for (int j = 0; j < 4; ++j) out[j] = hn::Mul(Lookup256(tables.map.data(), codes + 8 * j), scale);
#elif HWY_TARGET == HWY_AVX3
  for (int j = 0; j < 4; ++j) {
    const __m512i index = Codes16(codes + 16 * j);
    const __mmask16 upper = _mm512_test_epi32_mask(index, _mm512_set1_epi32(128));
    const __m512 low = Lookup128(tables.map.data(), index);
    const __m512 high = Lookup128(tables.map.data() + 128, index);
    out[j] = hn::Mul(Vf{_mm512_mask_blend_ps(upper, low, high)}, scale);
  }
#else
  const __m512i index = Codes64(codes);
  const __mmask64 bit6 = _mm512_test_epi8_mask(index, _mm512_set1_epi8(0x40));
  const __mmask64 bit7 = _mm512_movepi8_mask(index);
  const __mmask64 second = bit6 & ~bit7;
  const __mmask64 third = bit7 & ~bit6;
  const __mmask64 fourth = bit7 & bit6;
  __m512i byte[4];
  for (int k = 0; k < 4; ++k) {
    // One single-table permute for each quarter: merging is free, where a two-table permute is three uops.
    const std::uint8_t* plane = tables.planes.plane[static_cast<std::size_t>(k)].data();
    __m512i b = _mm512_permutexvar_epi8(index, _mm512_load_si512(plane));
    b = _mm512_mask_permutexvar_epi8(b, second, index, _mm512_load_si512(plane + 64));
    b = _mm512_mask_permutexvar_epi8(b, third, index, _mm512_load_si512(plane + 128));
    byte[k] = _mm512_mask_permutexvar_epi8(b, fourth, index, _mm512_load_si512(plane + 192));
  }
  JoinPlanes(byte, scale, out);
#endif
}

// The same for the signed dynamic map, by its symmetry: half the lookups.
HWY_INLINE HWY_ATTR void DecodeSigned4(const std::uint8_t* codes, Vf scale, Vf out[4]) {
#if HWY_TARGET == HWY_AVX2
  Decode4(kSignedDecode, codes, scale, out);
#elif HWY_TARGET == HWY_AVX3
  for (int j = 0; j < 4; ++j) {
    const __m512i signed_distance =
        _mm512_sub_epi32(Codes16(codes + 16 * j), _mm512_set1_epi32(quant::kSignedZeroCode));
    const __m512i distance = _mm512_abs_epi32(signed_distance);
    const __mmask16 one = _mm512_cmpeq_epi32_mask(distance, _mm512_set1_epi32(128));
    const __m512 value =
        _mm512_mask_mov_ps(Lookup128(kSignedMagnitudes.value.data(), distance), one, _mm512_set1_ps(1.0F));
    const __m512 sign = _mm512_and_ps(_mm512_castsi512_ps(signed_distance), _mm512_set1_ps(-0.0F));
    out[j] = hn::Mul(Vf{_mm512_or_ps(value, sign)}, scale);
  }
#else
  const __m512i index = Codes64(codes);
  const __mmask64 negative = _mm512_cmplt_epu8_mask(index, _mm512_set1_epi8(quant::kSignedZeroCode));
  // 0 to 127, and 0x80 for the entry 1.0, whose lookups give entry 0: all bits zero.
  const __m512i distance = _mm512_abs_epi8(_mm512_sub_epi8(index, _mm512_set1_epi8(quant::kSignedZeroCode)));
  const __mmask64 one = _mm512_movepi8_mask(distance);
  const __mmask64 upper = _mm512_test_epi8_mask(distance, _mm512_set1_epi8(0x40));
  __m512i byte[4];
  for (int k = 0; k < 4; ++k) {
    const std::uint8_t* plane = kSignedMagnitudes.plane[static_cast<std::size_t>(k)].data();
    const __m512i low = _mm512_permutexvar_epi8(distance, _mm512_load_si512(plane));
    byte[k] = _mm512_mask_permutexvar_epi8(low, upper, distance, _mm512_load_si512(plane + 64));
  }
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
  byte[2] = _mm512_mask_mov_epi8(byte[2], one, sign);  // 1.0F is 0x3F800000
  byte[3] = _mm512_mask_mov_epi8(byte[3], one, _mm512_set1_epi8(0x3F));
  byte[3] = _mm512_mask_add_epi8(byte[3], negative, byte[3], sign);
  JoinPlanes(byte, scale, out);
#endif
}

#endif  // BITPAGER_VECTORS
}  // namespace bitpager::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard per target
