// The update rules of one element on the device: the states as optim8bit/adam_rule.h and lion_rule.h define
// them, bit for bit; Adam's ratio by the hardware's approximate square root and reciprocal (each within two
// units of the last place; the parameter stays within one rounding of its dtype). Pure device code.
#pragma once

#include <cstdint>

#include "optim8bit/hyper.h"

namespace bitpager::kernels::cuda {

using optim8bit::Hyper;

__device__ __forceinline__ float FastReciprocal(float x) {
  float out;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}
// Subnormal arguments count as 0 unless kCareful.
template <bool kCareful>
__device__ __forceinline__ float FastRoot(float x) {
  float out;
  if constexpr (kCareful) {
    asm("sqrt.approx.f32 %0, %1;" : "=f"(out) : "f"(x));
  } else {
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  }
  return out;
}
// Results under 2^-126 become zeros of their sign.
__device__ __forceinline__ float FlushingProduct(float a, float b) {
  float out;
  asm("mul.ftz.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
  return out;
}

struct AdamStep {
  static constexpr int kStates = 2;
  static constexpr bool kDecayFirst = false;
  // The root of a subnormal is under 2^-63: it matters only beside so small an epsilon.
  __device__ static bool NeedsCare(const Hyper& h) { return h.eps < 1e-12F; }

  template <bool kCareful>
  __device__ static __forceinline__ float Update(const Hyper& h, float p, float g, float* m, float* v) {
    *m = fmaf(h.beta1, *m, h.one_minus_beta1 * g);
    *v = fmaf(h.beta2, *v, h.one_minus_beta2 * g * g);
    return fmaf(-h.step_size, *m * FastReciprocal(FastRoot<kCareful>(*v) + h.eps), p);
  }
};

struct LionStep {
  static constexpr int kStates = 1;
  static constexpr bool kDecayFirst = true;
  __device__ static bool NeedsCare(const Hyper&) { return false; }

  template <bool kCareful>
  __device__ static __forceinline__ float Update(const Hyper& h, float p, float g, float* m, float*) {
    const float direction = fmaf(h.beta1, *m, h.one_minus_beta1 * g);
    *m = fmaf(h.beta2, *m, h.one_minus_beta2 * g);
    const float sign = direction != 0.0F && !isnan(direction) ? copysignf(1.0F, direction) : direction;
    return fmaf(-h.step_size, sign, p);
  }
};

}  // namespace bitpager::kernels::cuda
