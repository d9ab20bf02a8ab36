// Vector building blocks shared by the kernels: loads and stores of every dtype, small table lookups, the
// dynamic map's decoder and encoder. Included once per target by files that Highway compiles several times;
// empty on targets without fused multiply-add and cross-lane permutes, whose kernels are the scalar
// reference.
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
#include "quant/encode.h"

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
    const Vu odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(Du(), 1));
    return hn::Add(bits, hn::Add(odd, hn::Set(Du(), 0x7FFF)));
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

// Bytes 0..255 from four vectors of small integers, in order: clamps to the byte's range.
HWY_INLINE HWY_ATTR void StoreBytes4(Vi a, Vi b, Vi c, Vi d, std::uint8_t* at) {
#if HWY_TARGET == HWY_AVX2
  const __m256i packed =
      _mm256_packus_epi16(_mm256_packs_epi32(a.raw, b.raw), _mm256_packs_epi32(c.raw, d.raw));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm256_permutevar8x32_epi32(packed, order));
#else
  const __m512i packed =
      _mm512_packus_epi16(_mm512_packs_epi32(a.raw, b.raw), _mm512_packs_epi32(c.raw, d.raw));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(at, _mm512_permutexvar_epi32(order, packed));
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

// ---- dynamic map: encode ----
// The tables of one map, in registers.
struct Pieces {
  Vf upper, slope, intercept, last;
};
HWY_INLINE HWY_ATTR Pieces LoadPieces(const PieceTables& tables) {
  const Df d;
  return {hn::Load(d, tables.upper.data()), hn::Load(d, tables.slope.data()),
          hn::Load(d, tables.intercept.data()), hn::Load(d, tables.last.data())};
}

// Fixed-point code of magnitude x in [0, 1]: see dynamic_tables.h.
HWY_INLINE HWY_ATTR Vi FixedCode(const Pieces& p, Vf x) {
  const Df d;
  const Di di;
  const Vf floored = hn::Max(x, hn::Set(d, kLogFloor));
  const Vf log = hn::ConvertTo(d, hn::BitCast(di, floored));
  Vi piece = hn::BitCast(di, hn::MulAdd(log, hn::Set(d, kLogScale), hn::Set(d, kLogShift)));
  const auto above = hn::Gt(x, Lookup8(p.upper, piece));
#if HWY_TARGET == HWY_AVX2
  piece = hn::Sub(piece, hn::BitCast(di, hn::VecFromMask(d, above)));
#else
  piece = Vi{_mm512_mask_add_epi32(piece.raw, above.raw, piece.raw, _mm512_set1_epi32(1))};
#endif
  const Vf fixed = hn::MulAdd(Lookup8(p.slope, piece), x, Lookup8(p.intercept, piece));
  return hn::BitCast(di, hn::Min(fixed, Lookup8(p.last, piece)));
}

// How codes are formed: of magnitudes; of signed values; of signed values with the sign rule of state 1.
enum class Form { kUnsigned, kSigned, kSignedKeep };

template <Form kForm>
HWY_INLINE HWY_ATTR Vi CodeOf(Vf x, Vi fixed) {
  const Di di;
  const Vi code = hn::Sub(hn::ShiftRight<kFractionBits>(fixed), hn::Set(di, static_cast<int>(kCodeBase)));
  if constexpr (kForm == Form::kUnsigned) return code;
  const Vi bits = hn::BitCast(di, x);
  Vi distance = code;
  if constexpr (kForm == Form::kSignedKeep) {  // a negative value never takes the code of 0
    distance = hn::Max(code, hn::BitCast(di, hn::ShiftRight<31>(hn::BitCast(Du(), bits))));
  }
  // Code -1, for values at -1.0, clamps to 0 when packed.
#if HWY_TARGET == HWY_AVX2
  return hn::Add(Vi{_mm256_sign_epi32(distance.raw, bits.raw)}, hn::Set(di, quant::kSignedZeroCode));
#else
  const __m512i zero_code = _mm512_set1_epi32(quant::kSignedZeroCode);
  const __m512i up = _mm512_add_epi32(zero_code, distance.raw);
  return Vi{_mm512_mask_sub_epi32(up, _mm512_movepi32_mask(bits.raw), zero_code, distance.raw)};
#endif
}

// Codes of `count` values (a multiple of 4 * kLanes) times `scale`; returns the least fraction met.
template <Form kForm>
HWY_INLINE HWY_ATTR std::uint32_t EncodeRun(const Pieces& p, const float* values, std::size_t count, Vf scale,
                                            std::uint8_t* codes) {
  const Df d;
  const Di di;
  Vi least = hn::Set(di, static_cast<int>(kFractionMask));
  for (std::size_t i = 0; i < count; i += 4 * kLanes) {
    Vi code[4];
    for (std::size_t j = 0; j < 4; ++j) {
      const Vf x = hn::Mul(hn::LoadU(d, values + i + j * kLanes), scale);
      const Vi fixed = FixedCode(p, kForm == Form::kUnsigned ? x : hn::Abs(x));
      least = hn::Min(least, hn::And(fixed, hn::Set(di, static_cast<int>(kFractionMask))));
      code[j] = CodeOf<kForm>(x, fixed);
    }
    StoreBytes4(code[0], code[1], code[2], code[3], codes + i);
  }
  return static_cast<std::uint32_t>(hn::GetLane(hn::MinOfLanes(di, least)));
}

// Encodes the lanes near a midpoint again, by the exact thresholds. `codes` were written by EncodeRun.
template <Form kForm>
HWY_NOINLINE HWY_ATTR void FixDoubtful(const Pieces& p, const float* values, std::size_t count, float scale,
                                       std::uint8_t* codes) {
  const Df d;
  const Di di;
  const auto& thresholds =
      kForm == Form::kUnsigned ? quant::kUnsignedDynamicThresholds : quant::kSignedDynamicThresholds;
  HWY_ALIGN std::int32_t fraction[kLanes];
  for (std::size_t i = 0; i < count; i += kLanes) {
    const Vf x = hn::Mul(hn::LoadU(d, values + i), hn::Set(d, scale));
    const Vi fixed = FixedCode(p, kForm == Form::kUnsigned ? x : hn::Abs(x));
    hn::Store(hn::And(fixed, hn::Set(di, static_cast<int>(kFractionMask))), di, fraction);
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      if (static_cast<std::uint32_t>(fraction[lane]) > kDoubtfulFraction) continue;
      const float value = values[i + lane] * scale;
      std::uint8_t code = quant::EncodeNearest(thresholds.data(), value);
      if (kForm == Form::kSignedKeep && code == quant::kSignedZeroCode && std::signbit(value)) --code;
      codes[i + lane] = code;
    }
  }
}

// Codes of `count` values (a multiple of 4 * kLanes) by their finite, not tiny absmax: nearest entries.
template <Form kForm>
HWY_INLINE HWY_ATTR void EncodeValues(const PieceTables& tables, const float* values, std::size_t count,
                                      float absmax, std::uint8_t* codes) {
  const Pieces pieces = LoadPieces(tables);
  const float scale = absmax == 0.0F ? 0.0F : 1.0F / absmax;
  const std::uint32_t least = EncodeRun<kForm>(pieces, values, count, hn::Set(Df(), scale), codes);
  if (least <= kDoubtfulFraction) FixDoubtful<kForm>(pieces, values, count, scale, codes);
}

#endif  // BITPAGER_VECTORS
}  // namespace bitpager::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard per target
