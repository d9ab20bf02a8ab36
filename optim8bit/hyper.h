// Hyperparameters of one parameter group at one step, as kernels take them.
// Owns nothing; pure values, any thread.
#pragma once

#include <cstdint>

#include "client/wire/types.h"

namespace bitpager::optim8bit {

// Scalars of one (parameter group, step) pair. Derived once per request in double, used as float by the
// kernels. Formulas: Adam (Kingma and Ba, arXiv 1412.6980) with decoupled decay (arXiv 1711.05101);
// Lion (arXiv 2302.06675).
struct Hyper {
  float beta1 = 0.9F;
  float beta2 = 0.999F;
  float one_minus_beta1 = 0.1F;  // rounded from the double difference
  float one_minus_beta2 = 0.001F;
  float step_size = 0.0F;  // Adam: lr * sqrt(1 - beta2^t) / (1 - beta1^t). Lion: lr
  float eps = 1e-8F;       // Adam: eps * sqrt(1 - beta2^t)
  float decay = 1.0F;      // 1 - lr * weight_decay
};

// The user's settings, as they come in a request.
struct HyperInput {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.0;
};

// `step` counts from 1.
[[nodiscard]] Hyper DeriveHyper(wire::Rule rule, const HyperInput& in, std::uint64_t step);

}  // namespace bitpager::optim8bit
