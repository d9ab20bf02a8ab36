// The Adam and AdamW update of one element (one rule; the decay is decoupled in both). Kingma and Ba, arXiv
// 1412.6980; Loshchilov and Hutter, arXiv 1711.05101. Pure arithmetic in fp32; any thread.
#pragma once

#include <cmath>

#include "optim8bit/hyper.h"
#include "quant/portable.h"

namespace bitpager::optim8bit {

struct AdamRule {
  static constexpr int kStates = 2;  // m (signed map), v (unsigned map)

  // m and v are updated in place; returns the parameter before the decay and before rounding to its dtype.
  // The order of operations and the fused multiply-adds are part of the definition: every path does the
  // same, so that results do not depend on the instruction set.
  BITPAGER_HD static float Update(const Hyper& h, float p, float g, float* m, float* v) {
    *m = fmaf(h.beta1, *m, h.one_minus_beta1 * g);
    *v = fmaf(h.beta2, *v, h.one_minus_beta2 * g * g);
    return fmaf(-h.step_size, *m / (sqrtf(*v) + h.eps), p);
  }
  // Decay after the update; `p` is the rounded result of Update.
  BITPAGER_HD static float Decay(const Hyper& h, float p) { return p * h.decay; }
  static constexpr bool kDecayFirst = false;
};

}  // namespace bitpager::optim8bit
