// The optimizers in float64, from the papers' formulas, apart from the implementation: no blocks, no codes.
#pragma once

#include <cmath>

namespace bitpager::oracle {

struct Settings {
  double lr, beta1, beta2, eps, weight_decay;
};

struct Element {
  double p, m, v;
};

// Adam with decoupled decay, bias-corrected (arXiv 1412.6980, 1711.05101); t counts from 1.
inline Element AdamStep(const Settings& s, Element e, double g, int t) {
  e.m += (1.0 - s.beta1) * (g - e.m);
  e.v += (1.0 - s.beta2) * (g * g - e.v);
  const double m_hat = e.m / (1.0 - std::pow(s.beta1, t));
  const double v_hat = e.v / (1.0 - std::pow(s.beta2, t));
  e.p = (e.p - s.lr * m_hat / (std::sqrt(v_hat) + s.eps)) * (1.0 - s.lr * s.weight_decay);
  return e;
}

// Lion (arXiv 2302.06675).
inline Element LionStep(const Settings& s, Element e, double g) {
  const double c = s.beta1 * e.m + (1.0 - s.beta1) * g;
  e.p = e.p * (1.0 - s.lr * s.weight_decay) - s.lr * (c > 0 ? 1.0 : (c < 0 ? -1.0 : 0.0));
  e.m = s.beta2 * e.m + (1.0 - s.beta2) * g;
  return e;
}

}  // namespace bitpager::oracle
