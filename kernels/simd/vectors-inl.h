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

// ---- dynamic map: decode ----
// out[i] = map[codes[i]] * scale for 4 * kLanes codes.
HWY_INLINE HWY_ATTR void Decode4(const DecodeTables& tables, const std::uint8_t* codes, Vf scale, Vf out[4]) {
#if HWY_TARGET == HWY_AVX2
  for (int j = 0; j < 4; ++j) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + 8 * j));
    const __m256i index = _mm256_cvtepu8_epi32(bytes);
    out[j] = hn::Mul(Vf{_mm256_i32gather_ps(tables.map.data(), index, 4)}, scale);
  }
#elif HWY_TARGET == HWY_AVX3
  const float* map = tables.map.data();
  for (int j = 0; j < 4; ++j) {
    const __m512i index =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + 16 * j)));
    __m512 part[8];
    for (int k = 0; k < 8; ++k) {
      part[k] =
          _mm512_permutex2var_ps(_mm512_load_ps(map + 32 * k), index, _mm512_load_ps(map + 32 * k + 16));
    }
    const __mmask16 bit5 = _mm512_test_epi32_mask(index, _mm512_set1_epi32(32));
    const __mmask16 bit6 = _mm512_test_epi32_mask(index, _mm512_set1_epi32(64));
    const __mmask16 bit7 = _mm512_test_epi32_mask(index, _mm512_set1_epi32(128));
    for (int k = 0; k < 4; ++k) part[k] = _mm512_mask_blend_ps(bit5, part[2 * k], part[2 * k + 1]);
    for (int k = 0; k < 2; ++k) part[k] = _mm512_mask_blend_ps(bit6, part[2 * k], part[2 * k + 1]);
    out[j] = hn::Mul(Vf{_mm512_mask_blend_ps(bit7, part[0], part[1])}, scale);
  }
#else
  // Dword 4L + j takes dword 4j + L, so that the unpacks below give elements in order.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i index = _mm512_permutexvar_epi32(order, _mm512_loadu_si512(codes));
  const __mmask64 upper = _mm512_movepi8_mask(index);
  __m512i byte[4];
  for (int k = 0; k < 4; ++k) {
    const std::uint8_t* plane = tables.planes.plane[static_cast<std::size_t>(k)].data();
    const __m512i low =
        _mm512_permutex2var_epi8(_mm512_load_si512(plane), index, _mm512_load_si512(plane + 64));
    const __m512i high =
        _mm512_permutex2var_epi8(_mm512_load_si512(plane + 128), index, _mm512_load_si512(plane + 192));
    byte[k] = _mm512_mask_blend_epi8(upper, low, high);
  }
  const __m512i low0 = _mm512_unpacklo_epi8(byte[0], byte[1]);
  const __m512i low1 = _mm512_unpackhi_epi8(byte[0], byte[1]);
  const __m512i high0 = _mm512_unpacklo_epi8(byte[2], byte[3]);
  const __m512i high1 = _mm512_unpackhi_epi8(byte[2], byte[3]);
  out[0] = hn::Mul(Vf{_mm512_castsi512_ps(_mm512_unpacklo_epi16(low0, high0))}, scale);
  out[1] = hn::Mul(Vf{_mm512_castsi512_ps(_mm512_unpackhi_epi16(low0, high0))}, scale);
  out[2] = hn::Mul(Vf{_mm512_castsi512_ps(_mm512_unpacklo_epi16(low1, high1))}, scale);
  out[3] = hn::Mul(Vf{_mm512_castsi512_ps(_mm512_unpackhi_epi16(low1, high1))}, scale);
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
