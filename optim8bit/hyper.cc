#include "optim8bit/hyper.h"

#include <cmath>

namespace bitpager::optim8bit {

Hyper DeriveHyper(wire::Rule rule, const HyperInput& in, std::uint64_t step) {
  Hyper out;
  out.beta1 = static_cast<float>(in.beta1);
  out.beta2 = static_cast<float>(in.beta2);
  out.one_minus_beta1 = static_cast<float>(1.0 - in.beta1);
  out.one_minus_beta2 = static_cast<float>(1.0 - in.beta2);
  out.decay = static_cast<float>(1.0 - in.lr * in.weight_decay);
  if (rule == wire::Rule::kLion) {
    out.step_size = static_cast<float>(in.lr);
    out.eps = 0.0F;
    return out;
  }
  const double t = static_cast<double>(step);
  const double correction1 = 1.0 - std::pow(in.beta1, t);
  const double correction2 = std::sqrt(1.0 - std::pow(in.beta2, t));
  out.step_size = static_cast<float>(in.lr * correction2 / correction1);
  out.eps = static_cast<float>(in.eps * correction2);
  return out;
}

}  // namespace bitpager::optim8bit
