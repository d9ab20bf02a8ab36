#include "optim8bit/reference_step.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "optim8bit/adam_rule.h"
#include "optim8bit/lion_rule.h"
#include "quant/block.h"
#include "quant/codebook.h"
#include "quant/encode.h"

namespace bitpager::optim8bit {
namespace {

using quant::LoadAs;
using quant::StoreAs;

// Rounds to the dtype and back.
float Rounded(wire::DType dtype, float x) {
  float slot = 0.0F;
  StoreAs(dtype, &slot, 0, x);
  return LoadAs(dtype, &slot, 0);
}

template <typename Rule>
void UpdateElement(const Hyper& h, const BlockTensor& t, std::size_t i, float* m, float* v) {
  float p = LoadAs(t.param_dtype, t.param, i);
  const float g = LoadAs(t.grad_dtype, t.grad, i);
  const bool decays = h.decay != 1.0F;
  if (Rule::kDecayFirst && decays) p = Rounded(t.param_dtype, Rule::Decay(h, p));
  p = Rounded(t.param_dtype, Rule::Update(h, p, g, m, v));
  if (!Rule::kDecayFirst && decays) p = Rule::Decay(h, p);
  StoreAs(t.param_dtype, t.param, i, p);
}

template <typename Rule>
void Step8(const Hyper& h, const BlockTensor& t, const BlockStates8& s) {
  std::array<std::array<float, wire::kStateBlock>, 2> values{};
  for (std::size_t i = 0; i < t.elements; ++i) {
    values[0][i] = quant::kSignedDynamicMap[s.codes[0][i]] * *s.absmax[0];
    if (Rule::kStates == 2) values[1][i] = quant::kUnsignedDynamicMap[s.codes[1][i]] * *s.absmax[1];
    UpdateElement<Rule>(h, t, i, &values[0][i], &values[1][i]);
  }
  for (std::uint32_t k = 0; k < Rule::kStates; ++k)
    ReferenceEncode(k, values[k].data(), t.elements, s.codes[k], s.absmax[k]);
}

template <typename Rule>
void Step32(const Hyper& h, const BlockTensor& t, const BlockStates32& s) {
  float unused = 0.0F;
  for (std::size_t i = 0; i < t.elements; ++i) {
    UpdateElement<Rule>(h, t, i, s.values[0] + i, Rule::kStates == 2 ? s.values[1] + i : &unused);
  }
  for (int k = 0; k < Rule::kStates; ++k) {
    std::fill(s.values[k] + t.elements, s.values[k] + wire::kStateBlock, 0.0F);
  }
}

}  // namespace

bool HasNonFinite(const BlockTensor& tensor) {
  for (std::size_t i = 0; i < tensor.elements; ++i) {
    if (!std::isfinite(LoadAs(tensor.grad_dtype, tensor.grad, i))) return true;
  }
  return false;
}

void ReferenceEncode(std::uint32_t k, const float* values, std::size_t elements, std::uint8_t* codes,
                     float* absmax) {
  const auto& thresholds = k == 0 ? quant::kSignedDynamicThresholds : quant::kUnsignedDynamicThresholds;
  const auto& map = k == 0 ? quant::kSignedDynamicMap : quant::kUnsignedDynamicMap;
  *absmax = quant::EncodeBlock8(thresholds, wire::DType::kF32, values, elements, codes);
  for (std::size_t i = 0; k == 0 && i < elements; ++i) {
    codes[i] = KeepSign(codes[i], std::signbit(values[i]), std::signbit(map[codes[i]]), values[i] > 0.0F);
  }
  const std::uint8_t zero = k == 0 ? quant::kSignedZeroCode : quant::kUnsignedZeroCode;
  std::fill(codes + elements, codes + wire::kStateBlock, zero);
}

void ReferenceStep8(wire::Rule rule, const Hyper& hyper, const BlockTensor& tensor,
                    const BlockStates8& states) {
  rule == wire::Rule::kAdam ? Step8<AdamRule>(hyper, tensor, states) : Step8<LionRule>(hyper, tensor, states);
}

void ReferenceStep32(wire::Rule rule, const Hyper& hyper, const BlockTensor& tensor,
                     const BlockStates32& states) {
  rule == wire::Rule::kAdam ? Step32<AdamRule>(hyper, tensor, states)
                            : Step32<LionRule>(hyper, tensor, states);
}

}  // namespace bitpager::optim8bit
