// The dynamic map's vector encoder: see dynamic_tables.h for its arithmetic. Included once per target, behind
// vectors-inl.h; empty where that is.
#if defined(BITPAGER_ENCODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BITPAGER_ENCODE_INL_H_
#undef BITPAGER_ENCODE_INL_H_
#else
#define BITPAGER_ENCODE_INL_H_
#endif

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/simd/vectors-inl.h"
#include "quant/codebook.h"

HWY_BEFORE_NAMESPACE();
namespace bitpager::kernels::simd::HWY_NAMESPACE {
#if BITPAGER_VECTORS

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
inline constexpr int kFractionBits = kForm == Form::kUnsigned ? kUnsignedFractionBits : kSignedFractionBits;
template <Form kForm>
HWY_INLINE HWY_ATTR Vi Fraction(Vi fixed) {
  return hn::And(fixed, hn::Set(Di(), (1 << kFractionBits<kForm>)-1));
}
// Lowers `least` to the least fraction met; above the fraction its bits mean nothing.
template <Form kForm>
HWY_INLINE HWY_ATTR void Meet(Vi fixed, Vi& least) {
  if constexpr (kForm == Form::kUnsigned) {
    least = hn::Min(least, Fraction<kForm>(fixed));
  } else {  // the fraction is a whole word
    const hn::Repartition<std::uint16_t, Di> words;
    least = hn::BitCast(Di(), hn::Min(hn::BitCast(words, least), hn::BitCast(words, fixed)));
  }
}
HWY_INLINE HWY_ATTR Vi NothingMet() {
  return hn::Set(Di(), 0x7FFFFFFF);
}
template <Form kForm>
HWY_INLINE HWY_ATTR bool IsDoubtful(Vi least) {
  return hn::GetLane(hn::MinOfLanes(Di(), Fraction<kForm>(least))) <= static_cast<int>(kDoubtfulFraction);
}

// ---- 4 * kLanes bytes ----
#if HWY_TARGET == HWY_AVX2
using Bytes = __m256i;
HWY_INLINE HWY_ATTR void StoreBytes(Bytes bytes, std::uint8_t* at) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), bytes);
}
HWY_INLINE HWY_ATTR Bytes InOrder(Bytes packed) {
  return _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
// A byte of each lane, its top bit the lane's sign.
HWY_INLINE HWY_ATTR Bytes SignBytes(const Vf v[4]) {
  const auto bits = [&](int j) HWY_ATTR { return _mm256_castps_si256(v[j].raw); };
  return InOrder(
      _mm256_packs_epi16(_mm256_packs_epi32(bits(0), bits(1)), _mm256_packs_epi32(bits(2), bits(3))));
}
// The codes above the fractions.
template <int kBits>
HWY_INLINE HWY_ATTR Bytes CodeBytes(const Vi fixed[4]) {
  const auto code = [&](int j) HWY_ATTR { return _mm256_srli_epi32(fixed[j].raw, kBits); };
  const __m256i low = _mm256_set1_epi16(0xFF);
  const __m256i words01 = _mm256_and_si256(_mm256_packus_epi32(code(0), code(1)), low);
  const __m256i words23 = _mm256_and_si256(_mm256_packus_epi32(code(2), code(3)), low);
  return InOrder(_mm256_packus_epi16(words01, words23));
}
template <Form kForm>
HWY_INLINE HWY_ATTR Bytes Signed(Bytes distance, Bytes sign) {
  const __m256i zero = _mm256_set1_epi8(quant::kSignedZeroCode);
  if constexpr (kForm == Form::kSignedKeep) {  // a negative value never takes the code of 0
    const __m256i one = _mm256_and_si256(_mm256_srli_epi16(sign, 7), _mm256_set1_epi8(1));
    distance = _mm256_max_epu8(distance, one);
  }
  return _mm256_blendv_epi8(_mm256_add_epi8(zero, distance), _mm256_subs_epu8(zero, distance), sign);
}
#else
using Bytes = __m512i;
HWY_INLINE HWY_ATTR void StoreBytes(Bytes bytes, std::uint8_t* at) {
  _mm512_storeu_si512(at, bytes);
}
HWY_INLINE HWY_ATTR Bytes InOrder(Bytes packed) {
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
                                  packed);
}
HWY_INLINE HWY_ATTR Bytes SignBytes(const Vf v[4]) {
  const auto bits = [&](int j) HWY_ATTR { return _mm512_castps_si512(v[j].raw); };
  return InOrder(
      _mm512_packs_epi16(_mm512_packs_epi32(bits(0), bits(1)), _mm512_packs_epi32(bits(2), bits(3))));
}
#if HWY_TARGET == HWY_AVX3
template <int kBits>
HWY_INLINE HWY_ATTR Bytes CodeBytes(const Vi fixed[4]) {
  const auto code = [&](int j) HWY_ATTR { return _mm512_srli_epi32(fixed[j].raw, kBits); };
  const __m512i low = _mm512_set1_epi16(0xFF);
  const __m512i words01 = _mm512_and_si512(_mm512_packus_epi32(code(0), code(1)), low);
  const __m512i words23 = _mm512_and_si512(_mm512_packus_epi32(code(2), code(3)), low);
  return InOrder(_mm512_packus_epi16(words01, words23));
}
#else
// Shifts each code to a byte of its own within 64 bits, two of every vector; then one permute.
template <int kBits>
HWY_INLINE HWY_ATTR Bytes CodeBytes(const Vi fixed[4]) {
  const __m512i shifts = _mm512_set1_epi16(kBits + 256 * (kBits + 32));
  const __m512i order =
      _mm512_set_epi8(63, 62, 55, 54, 47, 46, 39, 38, 31, 30, 23, 22, 15, 14, 7, 6, 61, 60, 53, 52, 45, 44,
                      37, 36, 29, 28, 21, 20, 13, 12, 5, 4, 59, 58, 51, 50, 43, 42, 35, 34, 27, 26, 19, 18,
                      11, 10, 3, 2, 57, 56, 49, 48, 41, 40, 33, 32, 25, 24, 17, 16, 9, 8, 1, 0);
  __m512i b = _mm512_multishift_epi64_epi8(shifts, fixed[0].raw);
  b = _mm512_mask_multishift_epi64_epi8(b, 0x0C0C0C0C0C0C0C0C, shifts, fixed[1].raw);
  b = _mm512_mask_multishift_epi64_epi8(b, 0x3030303030303030, shifts, fixed[2].raw);
  b = _mm512_mask_multishift_epi64_epi8(b, 0xC0C0C0C0C0C0C0C0, shifts, fixed[3].raw);
  return _mm512_permutexvar_epi8(order, b);
}
#endif
template <Form kForm>
HWY_INLINE HWY_ATTR Bytes Signed(Bytes distance, Bytes sign) {
  const __m512i zero = _mm512_set1_epi8(quant::kSignedZeroCode);
  const __mmask64 negative = _mm512_movepi8_mask(sign);
  if constexpr (kForm == Form::kSignedKeep) {  // a negative value never takes the code of 0
    distance = _mm512_mask_max_epu8(distance, negative, distance, _mm512_set1_epi8(1));
  }
  return _mm512_mask_subs_epu8(_mm512_add_epi8(zero, distance), negative, zero, distance);
}
#endif

// Codes of 4 * kLanes magnitudes `x` up to 1; their signs are those of `values` unless the form is unsigned.
// Lowers `least` to the least fraction met. (Distance 128 below zero, at -1.0, saturates at code 0.)
template <Form kForm>
HWY_INLINE HWY_ATTR Bytes EncodeGroup(const Pieces& p, const Vf x[4], const Vf values[4], Vi& least) {
  Vi fixed[4];
  for (std::size_t j = 0; j < 4; ++j) {
    fixed[j] = FixedCode(p, x[j]);
    Meet<kForm>(fixed[j], least);
  }
  const Bytes codes = CodeBytes<kFractionBits<kForm>>(fixed);
  if constexpr (kForm == Form::kUnsigned) return codes;
  return Signed<kForm>(codes, SignBytes(values));
}
// Encodes the lanes near a midpoint again, by the exact thresholds. `codes` were written before and are at
// most one off.
template <Form kForm>
HWY_NOINLINE HWY_ATTR void FixDoubtful(const PieceTables& tables, const float* values, std::size_t count,
                                       float scale, std::uint8_t* codes) {
  const Df d;
  const Di di;
  const Pieces p = LoadPieces(tables);
  const auto& thresholds =
      kForm == Form::kUnsigned ? quant::kUnsignedDynamicThresholds : quant::kSignedDynamicThresholds;
  for (std::size_t i = 0; i < count; i += kLanes) {
    const Vf x = hn::Mul(hn::LoadU(d, values + i), hn::Set(d, scale));
    const Vi fraction = Fraction<kForm>(FixedCode(p, kForm == Form::kUnsigned ? x : hn::Abs(x)));
    std::uint8_t flags[8] = {};
    hn::StoreMaskBits(di, hn::Lt(fraction, hn::Set(di, static_cast<int>(kDoubtfulFraction) + 1)), flags);
    auto doubtful = static_cast<unsigned>(flags[0] | flags[1] << 8);
    for (; doubtful != 0; doubtful &= doubtful - 1) {
      const std::size_t at = i + static_cast<std::size_t>(std::countr_zero(doubtful));
      const float value = values[at] * scale;
      std::uint8_t code = codes[at];
      if (value > thresholds[code]) {
        ++code;
      } else if (code > 0 && !(value > thresholds[code - 1])) {
        --code;
      }
      if (kForm == Form::kSignedKeep && code == quant::kSignedZeroCode && std::signbit(value)) --code;
      codes[at] = code;
    }
  }
}

// Codes of `count` values (a multiple of 4 * kLanes) by their finite, not tiny absmax: nearest entries.
template <Form kForm>
HWY_INLINE HWY_ATTR void EncodeValues(const PieceTables& tables, const float* values, std::size_t count,
                                      float absmax, std::uint8_t* codes) {
  const Df d;
  const Pieces pieces = LoadPieces(tables);
  const float scale = absmax == 0.0F ? 0.0F : 1.0F / absmax;
  Vi least = NothingMet();
  for (std::size_t i = 0; i < count; i += 4 * kLanes) {
    Vf x[4];
    Vf magnitude[4];
    for (std::size_t j = 0; j < 4; ++j) {
      x[j] = hn::Mul(hn::LoadU(d, values + i + j * kLanes), hn::Set(d, scale));
      magnitude[j] = kForm == Form::kUnsigned ? x[j] : hn::Abs(x[j]);
    }
    StoreBytes(EncodeGroup<kForm>(pieces, magnitude, x, least), codes + i);
  }
  if (IsDoubtful<kForm>(least)) FixDoubtful<kForm>(tables, values, count, scale, codes);
}

#endif  // BITPAGER_VECTORS
}  // namespace bitpager::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard per target
