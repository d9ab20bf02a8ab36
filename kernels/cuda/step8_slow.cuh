// A unit that the fast path does not take: short, misaligned, with a gradient that is not finite, or with
// states whose absmax is no ordinary number. One element a lane and step, twice over the unit: the absmaxes,
// then everything again with the codes. The same arithmetic as the fast path, so both give the same bits.
#pragma once

#include <cstdint>

#include "kernels/cuda/step_codec.cuh"
#include "kernels/cuda/step_launch.cuh"
#include "kernels/cuda/step_rules.cuh"

namespace bitpager::kernels::cuda {

// How values are scaled for the tables: by `up` first (a power of two), then by `inverse`, flushing to zero.
struct Scale {
  float up = 1.0F;
  float inverse = 0.0F;
};

inline constexpr std::uint32_t kLeastUsual = 27U << 23;      // 2^-100, as bits
inline constexpr std::uint32_t kGreatestUsual = 149U << 23;  // 2^22

// Absmaxes that the tables take without `up`.
__device__ __forceinline__ bool IsUsual(std::uint32_t absmax) {
  return absmax - kLeastUsual <= kGreatestUsual - kLeastUsual || absmax == 0;
}
// 2^-103 / absmax, the quotient rounded as IEEE division would: one Newton step from an estimate good to one
// unit of the last place (lab/bench_step.cu tries every mantissa). Under 2^-100: as for that.
__device__ __forceinline__ float ScaledInverse(float absmax) {
  const float a = fmaxf(absmax, __uint_as_float(kLeastUsual));
  const float estimate = FastReciprocal(a);
  return fmaf(estimate, fmaf(-a, estimate, 1.0F), estimate) * 0x1p-103F;
}

// Code of `x` in map k, for a block of absmax `absmax`: nearest entry, with the sign rule in map 0.
template <int k, bool kWide>
__device__ inline std::uint8_t EncodeOne(const Codec<kWide>& codec, float x, std::uint32_t absmax) {
  const float a = __uint_as_float(absmax);
  if (absmax <= kGreatestUsual) {
    const float up = IsUsual(absmax) ? 1.0F : 0x1p64F;
    const float scaled = FlushingProduct(x * up, ScaledInverse(a * up));
    if constexpr (k == 1) return static_cast<std::uint8_t>(codec.EncodeMagnitude(scaled) >> 24);
    const std::uint32_t code = codec.EncodeSigned(scaled) >> 24;
    return static_cast<std::uint8_t>(signbit(scaled) ? 255 - code : code);
  }
  const float value = x * __frcp_rn(a);
  const std::uint32_t code = EncodeByThresholds<k>(value);
  if (k == 1 || signbit(x) == signbit(kCodec.map[0][code])) return static_cast<std::uint8_t>(code);
  return static_cast<std::uint8_t>(x > 0.0F ? code + 1 : code - 1);
}

template <typename Rule, bool kWide>
class SlowUnit {
 public:
  __device__ SlowUnit(const StepLaunch& launch, const StepUnit& unit, const Hyper& hyper,
                      const Codec<kWide>& codec, std::uint32_t lane)
      : launch_(launch), unit_(unit), hyper_(hyper), codec_(codec), lane_(lane) {
    old_[0] = *unit.absmax;
    old_[1] = Rule::kStates == 2 ? unit.absmax[launch.absmax_stride] : 0.0F;
  }

  __device__ void Run() {
    if (launch_.skip_nonfinite && UnitHasNonFinite(unit_, lane_)) {
      ReportNonFinite(launch_, unit_, lane_);
      return;
    }
    std::uint32_t greatest[2] = {0, 0};
    for (std::uint32_t i = lane_; i < unit_.elements; i += kLanes) {
      const Updated now = Update(i);
      for (int k = 0; k < Rule::kStates; ++k) {
        greatest[k] = max(greatest[k], __float_as_uint(now.state[k]) & 0x7FFFFFFFU);
      }
    }
    for (int k = 0; k < Rule::kStates; ++k) greatest[k] = WarpMax(greatest[k]);
    for (std::uint32_t i = lane_; i < kBlock; i += kLanes) Store(i, greatest);
    if (lane_ != 0) return;
    for (int k = 0; k < Rule::kStates; ++k) {
      unit_.absmax[k * launch_.absmax_stride] = __uint_as_float(greatest[k]);
    }
  }

 private:
  struct Updated {
    float param;  // to be rounded
    float state[2];
  };

  __device__ std::uint8_t& CodeAt(int k, std::uint32_t i) const {
    return reinterpret_cast<std::uint8_t*>(unit_.states)[k * launch_.plane_bytes + i];
  }

  __device__ Updated Update(std::uint32_t i) const {
    const wire::DType dtype = StepMode::Param(unit_.mode);
    float p = LoadElement(dtype, unit_.param, i);
    const float g = LoadElement(StepMode::Grad(unit_.mode), unit_.grad, i);
    Updated out{};
    for (int k = 0; k < Rule::kStates; ++k) out.state[k] = kCodec.map[k][CodeAt(k, i)] * old_[k];
    const bool decays = hyper_.decay != 1.0F;
    if (Rule::kDecayFirst && decays) p = Rounded(dtype, p * hyper_.decay);
    p = Rule::NeedsCare(hyper_) ? Rule::template Update<true>(hyper_, p, g, &out.state[0], &out.state[1])
                                : Rule::template Update<false>(hyper_, p, g, &out.state[0], &out.state[1]);
    if (!Rule::kDecayFirst && decays) p = Rounded(dtype, p) * hyper_.decay;
    out.param = p;
    return out;
  }

  __device__ void Store(std::uint32_t i, const std::uint32_t (&greatest)[2]) const {
    if (i >= unit_.elements) {
      CodeAt(0, i) = quant::kSignedZeroCode;
      if (Rule::kStates == 2) CodeAt(1, i) = quant::kUnsignedZeroCode;
      return;
    }
    const Updated now = Update(i);
    StoreAt(StepMode::Param(unit_.mode), unit_.param, i, now.param);
    CodeAt(0, i) = EncodeOne<0>(codec_, now.state[0], greatest[0]);
    if constexpr (Rule::kStates == 2) CodeAt(1, i) = EncodeOne<1>(codec_, now.state[1], greatest[1]);
  }

  const StepLaunch& launch_;
  const StepUnit& unit_;
  const Hyper& hyper_;
  const Codec<kWide>& codec_;
  std::uint32_t lane_;
  float old_[2];  // absmaxes before the step; read by all lanes before lane 0 writes the new ones
};

// Unit `at` of a span. Arguments by value: the caller keeps its own in registers.
template <typename Rule, typename Types, bool kWide>
__device__ __noinline__ void StepSlowUnit(const StepLaunch& launch, std::uint32_t span, std::uint32_t at,
                                          Codec<kWide> codec, std::uint32_t lane) {
  const StepEntry& entry = launch.entries[span];
  const StepUnit unit = UnitOf<Types>(entry, at, kBlock);
  SlowUnit<Rule, kWide>(launch, unit, launch.hypers[entry.hyper], codec, lane).Run();
  __syncwarp();
}

}  // namespace bitpager::kernels::cuda
