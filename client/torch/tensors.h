// What is asked of parameters and gradients before the daemon gets their addresses, and the tensors that
// states have outside of pages. Any thread. Errors name the tensor.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>

#include "client/torch/options.h"
#include "client/wire/types.h"

namespace bitpager::optim {

// How a parameter is called in messages.
using Describe = std::function<std::string(const at::Tensor&)>;

// Refuses parameters that a step cannot update in place: sparse, not fp32, fp16 or bf16, with gaps or
// overlaps between elements, on devices other than the CPU and CUDA's.
void RequireParameter(const at::Tensor& parameter, const Describe& describe);
// The parameter's gradient, dense and in the parameter's element order; a copy where it was not. Refuses
// sparse ones and those on another device.
[[nodiscard]] at::Tensor GradientOf(const at::Tensor& parameter, const Describe& describe);
// Of a dtype that passed.
[[nodiscard]] wire::DType DTypeOf(const at::Tensor& tensor);

// Equally shaped dense tensors keep their elements in the same order.
[[nodiscard]] bool SameOrder(const at::Tensor& a, const at::Tensor& b);

// State tensors on the CPU, not filled, for `bits` of 8 or 32: see PagedParamState.
[[nodiscard]] PagedParamState EmptyState(const at::Tensor& parameter, wire::Rule rule, std::int64_t bits);
// Of a state whose state1 is defined.
[[nodiscard]] inline std::int64_t BitsOf(const PagedParamState& state) {
  return state.state1().scalar_type() == at::kByte ? 8 : 32;
}
// A state that was loaded, as EmptyState lays it out. Refuses tensors that do not fit the parameter or the
// rule.
[[nodiscard]] PagedParamState CheckLoaded(const PagedParamState& loaded, const at::Tensor& parameter,
                                          wire::Rule rule, const std::string& name);

}  // namespace bitpager::optim
