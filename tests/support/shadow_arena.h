// What an optimizer arena must hold: parameters and states in plain memory, stepped by the scalar reference.
// A daemon that pages must give the same bytes. One thread.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "client/wire/types.h"
#include "optim8bit/hyper.h"
#include "optim8bit/layout.h"
#include "optim8bit/reference_step.h"
#include "quant/codebook.h"

namespace bitpager::testing {

// Gradient element `i` of tensor `tensor` at `step`: the same for everybody, of mixed sizes.
[[nodiscard]] inline float GradientAt(std::uint64_t tensor, std::uint64_t i, std::uint64_t step) {
  std::uint64_t x = (tensor << 40) ^ (i << 8) ^ step;
  x = (x + 0x9E3779B97F4A7C15ULL) * 0xBF58476D1CE4E5B9ULL;
  x ^= x >> 29;
  x *= 0x94D049BB133111EBULL;
  return (static_cast<float>(x >> 40) / 8388608.0F - 1.0F) * 0.01F;
}
inline void FillGradient(float* out, std::uint64_t n, std::uint64_t tensor, std::uint64_t step) {
  for (std::uint64_t i = 0; i < n; ++i) out[i] = GradientAt(tensor, i, step);
}
inline void FillParameter(float* out, std::uint64_t n, std::uint64_t tensor) {
  for (std::uint64_t i = 0; i < n; ++i) out[i] = GradientAt(tensor + 1000, i, 0) * 10.0F;
}

// fp32 tensors, 8-bit states.
class ShadowArena {
 public:
  ShadowArena(wire::Rule rule, const std::vector<std::uint64_t>& elements, const optim8bit::HyperInput& hyper)
      : rule_(rule), hyper_(hyper) {
    for (std::size_t t = 0; t < elements.size(); ++t) {
      Tensor tensor;
      const std::uint64_t units = optim8bit::UnitsOf(elements[t]);
      tensor.params.resize(elements[t]);
      FillParameter(tensor.params.data(), elements[t], t);
      for (std::uint32_t k = 0; k < wire::StatesOf(rule); ++k) {
        tensor.codes[k].assign(units * wire::kStateBlock, k == 0 ? 127 : 0);
        tensor.absmax[k].assign(units, 0.0F);
      }
      tensors_.push_back(std::move(tensor));
    }
  }

  void Step(std::uint64_t step) {
    const optim8bit::Hyper hyper = optim8bit::DeriveHyper(rule_, hyper_, step);
    for (std::size_t t = 0; t < tensors_.size(); ++t) StepTensor(t, hyper, step);
  }
  [[nodiscard]] const std::vector<float>& params(std::size_t tensor) const { return tensors_[tensor].params; }
  [[nodiscard]] const std::vector<std::uint8_t>& codes(std::size_t tensor, std::size_t k) const {
    return tensors_[tensor].codes[k];
  }
  [[nodiscard]] const std::vector<float>& absmax(std::size_t tensor, std::size_t k) const {
    return tensors_[tensor].absmax[k];
  }

 private:
  struct Tensor {
    std::vector<float> params;
    std::vector<std::uint8_t> codes[2];
    std::vector<float> absmax[2];
  };

  void StepTensor(std::size_t t, const optim8bit::Hyper& hyper, std::uint64_t step) {
    Tensor& tensor = tensors_[t];
    const std::uint64_t n = tensor.params.size();
    std::vector<float> grad(n);
    FillGradient(grad.data(), n, t, step);
    for (std::uint64_t first = 0; first < n; first += wire::kStateBlock) {
      const std::size_t unit = first / wire::kStateBlock;
      optim8bit::BlockTensor block;
      block.param = tensor.params.data() + first;
      block.grad = grad.data() + first;
      block.elements = std::min<std::uint64_t>(wire::kStateBlock, n - first);
      optim8bit::BlockStates8 states;
      for (std::uint32_t k = 0; k < wire::StatesOf(rule_); ++k) {
        states.codes[k] = tensor.codes[k].data() + first;
        states.absmax[k] = tensor.absmax[k].data() + unit;
      }
      optim8bit::ReferenceStep8(rule_, hyper, block, states);
    }
  }

  wire::Rule rule_;
  optim8bit::HyperInput hyper_;
  std::vector<Tensor> tensors_;
};

}  // namespace bitpager::testing
