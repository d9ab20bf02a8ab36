// The Lion update of one element (Chen et al., arXiv 2302.06675). Pure arithmetic in fp32; any thread.
#pragma once

#include <cmath>

#include "optim8bit/hyper.h"
#include "quant/portable.h"

namespace bitpager::optim8bit {

struct LionRule {
  static constexpr int kStates = 1;  // m (signed map)

  // `p` was decayed and rounded before. m is updated in place; returns the parameter before rounding.
  BITPAGER_HD static float Update(const Hyper& h, float p, float g, float* m, float* /*unused*/) {
    const float direction = fmaf(h.beta1, *m, h.one_minus_beta1 * g);
    const float sign = direction > 0.0F ? 1.0F : (direction < 0.0F ? -1.0F : direction);
    *m = fmaf(h.beta2, *m, h.one_minus_beta2 * g);
    return fmaf(-h.step_size, sign, p);
  }
  BITPAGER_HD static float Decay(const Hyper& h, float p) { return p * h.decay; }
  static constexpr bool kDecayFirst = true;
};

}  // namespace bitpager::optim8bit
