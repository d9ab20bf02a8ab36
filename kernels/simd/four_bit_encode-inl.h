// Vector encoders of single values by the 4-bit maps: the code whose cell holds x, by the exact pivots.
// Included once per target, behind vectors-inl.h; empty where that is.
#if defined(BITPAGER_FOUR_BIT_ENCODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BITPAGER_FOUR_BIT_ENCODE_INL_H_
#undef BITPAGER_FOUR_BIT_ENCODE_INL_H_
#else
#define BITPAGER_FOUR_BIT_ENCODE_INL_H_
#endif

#include <array>
#include <cstdint>

#include "kernels/simd/vectors-inl.h"
#include "quant/codebook.h"

HWY_BEFORE_NAMESPACE();
namespace bitpager::kernels::simd::HWY_NAMESPACE {
#if BITPAGER_VECTORS

// Pivots of a binary search, by level: entry i of a level is the pivot under prefix i. 8 entries, twice.
struct alignas(64) Levels {
  std::array<float, 16> second{}, third{}, fourth{}, code{};
};
constexpr Levels MakeNf4Levels() {
  Levels out;
  for (std::size_t i = 0; i < 16; ++i) {
    out.second[i] = quant::kNf4Pivots[i % 2 * 8 + 3];
    out.third[i] = quant::kNf4Pivots[i % 4 * 4 + 1];
    out.fourth[i] = quant::kNf4Pivots[i % 8 * 2];
  }
  return out;
}
constexpr Levels MakeFp4Levels() {
  Levels out;
  for (std::size_t i = 0; i < 16; ++i) {
    out.second[i] = quant::kFp4Pivots[i % 2 * 4 + 1];
    out.third[i] = quant::kFp4Pivots[i % 4 * 2];
    out.code[i] = __builtin_bit_cast(float, std::uint32_t{quant::kFp4RankCode[i % 8]});
  }
  return out;
}
inline constexpr Levels kNf4Levels = MakeNf4Levels();
inline constexpr Levels kFp4Levels = MakeFp4Levels();

// 2 * prefix + (x > pivot).
HWY_INLINE HWY_ATTR Vi Descend(Vi prefix, Vf x, Vf pivot) {
  const Di di;
  const Vi twice = hn::Add(prefix, prefix);
  const auto above = hn::Gt(x, pivot);
#if HWY_TARGET == HWY_AVX2
  return hn::Sub(twice, hn::BitCast(di, hn::VecFromMask(Df(), above)));
#else
  return Vi{_mm512_mask_add_epi32(twice.raw, above.raw, twice.raw, hn::Set(di, 1).raw)};
#endif
}

#if HWY_TARGET == HWY_AVX2
struct Nf4Encoder {
  Vf first, second, third, fourth;
  HWY_ATTR Nf4Encoder()
      : first(hn::Set(Df(), quant::kNf4Pivots[7])),
        second(hn::Load(Df(), kNf4Levels.second.data())),
        third(hn::Load(Df(), kNf4Levels.third.data())),
        fourth(hn::Load(Df(), kNf4Levels.fourth.data())) {}
  HWY_INLINE HWY_ATTR Vi operator()(Vf x) const {
    Vi code = Descend(hn::Zero(Di()), x, first);
    code = Descend(code, x, Lookup8(second, code));
    code = Descend(code, x, Lookup8(third, code));
    return Descend(code, x, Lookup8(fourth, code));
  }
};
#else
// 31 bins of width 1/15 over [-1, 1], by rounding 15 x: narrower than any two pivots lie apart, so that one
// compare is left. Entry b mod 32: the pivot inside bin b (+inf: none) and the code below it.
struct alignas(64) Bins {
  std::array<float, 32> pivot{};
  std::array<std::int32_t, 32> code{};
};
inline constexpr float kBinsPerUnit = 15.0F;
constexpr Bins MakeNf4Bins() {
  Bins out;
  for (int bin = -16; bin < 16; ++bin) {
    const double low = (bin - 0.5) / double{kBinsPerUnit};
    const double high = (bin + 0.5) / double{kBinsPerUnit};
    std::int32_t code = 0;
    while (code < 15 && double{quant::kNf4Pivots[static_cast<std::size_t>(code)]} < low) ++code;
    const bool inside = code < 15 && double{quant::kNf4Pivots[static_cast<std::size_t>(code)]} < high;
    const auto entry = static_cast<std::size_t>((bin + 32) % 32);
    out.code[entry] = code;
    out.pivot[entry] = inside ? quant::kNf4Pivots[static_cast<std::size_t>(code)] : __builtin_inff();
  }
  return out;
}
inline constexpr Bins kNf4Bins = MakeNf4Bins();
constexpr bool PivotsLieApart() {
  for (std::size_t i = 0; i + 2 < 16; ++i) {
    if (quant::kNf4Pivots[i + 1] - quant::kNf4Pivots[i] <= 1.0F / kBinsPerUnit) return false;
  }
  return true;
}
static_assert(PivotsLieApart());

struct Nf4Encoder {
  __m512 pivot_low, pivot_high;
  __m512i code_low, code_high;
  HWY_ATTR Nf4Encoder()
      : pivot_low(_mm512_load_ps(kNf4Bins.pivot.data())),
        pivot_high(_mm512_load_ps(kNf4Bins.pivot.data() + 16)),
        code_low(_mm512_load_si512(kNf4Bins.code.data())),
        code_high(_mm512_load_si512(kNf4Bins.code.data() + 16)) {}
  HWY_INLINE HWY_ATTR Vi operator()(Vf x) const {
    const Df d;
    // At 1.5 * 2^23 a float's low bits are the integer.
    const Vf rounded = hn::MulAdd(x, hn::Set(d, kBinsPerUnit), hn::Set(d, 12582912.0F));
    const __m512i bin = _mm512_castps_si512(rounded.raw);
    const __m512 pivot = _mm512_permutex2var_ps(pivot_low, bin, pivot_high);
    const __m512i code = _mm512_permutex2var_epi32(code_low, bin, code_high);
    const __mmask16 above = _mm512_cmp_ps_mask(x.raw, pivot, _CMP_GT_OQ);
    return Vi{_mm512_mask_add_epi32(code, above, code, _mm512_set1_epi32(1))};
  }
};
#endif

struct Fp4Encoder {
  Vf first, second, third, code_of;
  HWY_ATTR Fp4Encoder()
      : first(hn::Set(Df(), quant::kFp4Pivots[3])),
        second(hn::Load(Df(), kFp4Levels.second.data())),
        third(hn::Load(Df(), kFp4Levels.third.data())),
        code_of(hn::Load(Df(), kFp4Levels.code.data())) {}
  HWY_INLINE HWY_ATTR Vi operator()(Vf x) const {
    const Di di;
    const Vf magnitude = hn::Abs(x);
    Vi rank = Descend(hn::Zero(di), magnitude, first);
    rank = Descend(rank, magnitude, Lookup8(second, rank));
    rank = Descend(rank, magnitude, Lookup8(third, rank));
    const Vi code = hn::BitCast(di, Lookup8(code_of, rank));
    const Vi sign =
        hn::BitCast(di, hn::IfThenElseZero(hn::Lt(x, hn::Zero(Df())), hn::BitCast(Df(), hn::Set(di, 8))));
    return hn::Or(code, sign);
  }
};

#endif  // BITPAGER_VECTORS
}  // namespace bitpager::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard per target
