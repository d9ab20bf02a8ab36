// The fast optimizer step. Per block of 256: gradients to fp32 (and checked), states decoded into the
// first-level cache, updated with the parameters, and encoded again. Every operation is the reference's, in
// its order, so results are equal bit for bit; blocks that hold something unusual go to the reference.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/step.cc"
#include <hwy/foreach_target.h>
// Highway needs the line above first.
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/simd/step.h"
#include "kernels/simd/vectors-inl.h"
#include "optim8bit/reference_step.h"

HWY_BEFORE_NAMESPACE();
namespace bitpager::kernels::simd::HWY_NAMESPACE {

using optim8bit::Hyper;

inline constexpr std::size_t kBlock = wire::kStateBlock;

// One block of a run, as the reference takes it.
struct Block {
  optim8bit::BlockTensor tensor;
  optim8bit::BlockStates8 coded;
  optim8bit::BlockStates32 plain;
};

inline Block BlockAt(const StepRun& run, std::uint64_t unit) {
  const std::uint64_t first = unit * kBlock;
  Block block;
  block.tensor.param = static_cast<std::byte*>(run.param) + first * wire::DTypeBytes(run.param_dtype);
  block.tensor.grad = static_cast<const std::byte*>(run.grad) + first * wire::DTypeBytes(run.grad_dtype);
  block.tensor.elements = std::min<std::uint64_t>(kBlock, run.elements - first);
  block.tensor.param_dtype = run.param_dtype;
  block.tensor.grad_dtype = run.grad_dtype;
  for (std::uint32_t k = 0; k < wire::StatesOf(run.rule); ++k) {
    block.coded.codes[k] = reinterpret_cast<std::uint8_t*>(run.states[k]) + kBlock * unit;
    block.coded.absmax[k] = run.absmax[k] + unit;
    block.plain.values[k] = reinterpret_cast<float*>(run.states[k]) + kBlock * unit;
  }
  return block;
}

inline void ReferenceBlock(const StepRun& run, const Block& block) {
  if (run.bits == wire::StateBits::k8) {
    optim8bit::ReferenceStep8(run.rule, *run.hyper, block.tensor, block.coded);
  } else {
    optim8bit::ReferenceStep32(run.rule, *run.hyper, block.tensor, block.plain);
  }
}

#if BITPAGER_VECTORS

struct alignas(64) Buffers {
  float grad[kBlock];
  float state[2][kBlock];
  std::byte param[4 * kBlock];  // of a short block
};

// Gradients of a full block as floats; true when all are finite.
template <typename G>
HWY_INLINE HWY_ATTR bool LoadGradients(const void* grad, float* out) {
  const Df d;
  Vi greatest = hn::Zero(Di());
  const auto* bytes = static_cast<const std::byte*>(grad);
  for (std::size_t i = 0; i < kBlock; i += kLanes) {
    const Vf g = G::Load(bytes + i * G::kBytes);
    greatest = hn::Max(greatest, MagnitudeBits(g));
    hn::Store(g, d, out + i);
  }
  return std::isfinite(ReduceAbsmax(greatest));
}

struct Absmaxes {
  float state[2];
};

// Hyperparameters in registers.
struct Scalars {
  HWY_ATTR explicit Scalars(const Hyper& h)
      : beta1(hn::Set(Df(), h.beta1)),
        beta2(hn::Set(Df(), h.beta2)),
        rest1(hn::Set(Df(), h.one_minus_beta1)),
        rest2(hn::Set(Df(), h.one_minus_beta2)),
        minus_step(hn::Set(Df(), -h.step_size)),
        eps(hn::Set(Df(), h.eps)),
        decay(hn::Set(Df(), h.decay)) {}
  Vf beta1, beta2, rest1, rest2, minus_step, eps, decay;
};

struct Adam {
  static constexpr std::uint32_t kStates = 2;
  template <typename P, bool kDecays>
  static HWY_INLINE HWY_ATTR void Update(const Scalars& h, void* param, Vf g, Vf& m, Vf& v) {
    m = hn::MulAdd(h.beta1, m, hn::Mul(h.rest1, g));
    v = hn::MulAdd(h.beta2, v, hn::Mul(hn::Mul(h.rest2, g), g));
    const Vf ratio = hn::Div(m, hn::Add(hn::Sqrt(v), h.eps));
    Vf p = hn::MulAdd(h.minus_step, ratio, P::Load(param));
    if constexpr (kDecays) p = hn::Mul(P::Round(p), h.decay);
    P::Store(p, param);
  }
};

struct Lion {
  static constexpr std::uint32_t kStates = 1;
  template <typename P, bool kDecays>
  static HWY_INLINE HWY_ATTR void Update(const Scalars& h, void* param, Vf g, Vf& m, Vf& /*unused*/) {
    const Df d;
    const Vf direction = hn::MulAdd(h.beta1, m, hn::Mul(h.rest1, g));
    m = hn::MulAdd(h.beta2, m, hn::Mul(h.rest2, g));
    const Vf one = hn::CopySign(hn::Set(d, 1.0F), direction);
    const Vf sign = hn::IfThenElse(hn::Ne(direction, hn::Zero(d)), one, direction);
    Vf p = P::Load(param);
    if constexpr (kDecays) p = P::Round(hn::Mul(p, h.decay));
    P::Store(hn::MulAdd(h.minus_step, sign, p), param);
  }
};

// Updates parameters and fp32 states of a full block; returns the states' absmaxes.
template <typename Rule, typename P, bool kDecays>
HWY_INLINE HWY_ATTR Absmaxes UpdateBlock(const Scalars& h, const float* grad, void* param, float* state0,
                                         float* state1) {
  const Df d;
  Vi greatest0 = hn::Zero(Di());
  Vi greatest1 = hn::Zero(Di());
  auto* bytes = static_cast<std::byte*>(param);
  for (std::size_t i = 0; i < kBlock; i += kLanes) {
    Vf m = hn::LoadU(d, state0 + i);
    Vf v = hn::Zero(d);
    if constexpr (Rule::kStates == 2) v = hn::LoadU(d, state1 + i);
    Rule::template Update<P, kDecays>(h, bytes + i * P::kBytes, hn::Load(d, grad + i), m, v);
    hn::StoreU(m, d, state0 + i);
    greatest0 = hn::Max(greatest0, MagnitudeBits(m));
    if constexpr (Rule::kStates == 2) {
      hn::StoreU(v, d, state1 + i);
      greatest1 = hn::Max(greatest1, MagnitudeBits(v));
    }
  }
  return {{ReduceAbsmax(greatest0), Rule::kStates == 2 ? ReduceAbsmax(greatest1) : 0.0F}};
}

HWY_INLINE HWY_ATTR void DecodeState(const DecodeTables& tables, const std::uint8_t* codes, float absmax,
                                     float* out) {
  const Df d;
  const Vf scale = hn::Set(d, absmax);
  for (std::size_t i = 0; i < kBlock; i += 4 * kLanes) {
    Vf values[4];
    Decode4(tables, codes + i, scale, values);
    for (std::size_t j = 0; j < 4; ++j) hn::Store(values[j], d, out + i + j * kLanes);
  }
}

template <std::uint32_t k>
HWY_INLINE HWY_ATTR void EncodeState(const float* values, float absmax, std::size_t elements,
                                     const optim8bit::BlockStates8& s) {
  // Below this, 1 / absmax might overflow.
  const bool usual = std::isfinite(absmax) && (absmax >= 0x1p-120F || absmax == 0.0F);
  if (!usual || elements != kBlock) {
    optim8bit::ReferenceEncode(k, values, elements, s.codes[k], s.absmax[k]);
    return;
  }
  *s.absmax[k] = absmax;
  if constexpr (k == 0) {
    EncodeValues<Form::kSignedKeep>(kSignedPieces, values, kBlock, absmax, s.codes[0]);
  } else {
    EncodeValues<Form::kUnsigned>(kUnsignedPieces, values, kBlock, absmax, s.codes[1]);
  }
}

// True when a state's absmax is no finite number: such a block is the reference's.
template <typename Rule>
bool UnusualStates(const optim8bit::BlockStates8& s) {
  bool finite = true;
  for (std::uint32_t k = 0; k < Rule::kStates; ++k) finite = finite && std::isfinite(*s.absmax[k]);
  return !finite;
}

template <typename Rule, typename P, bool kDecays>
HWY_INLINE HWY_ATTR void StepBlock8(const Scalars& h, const Block& block, void* param, Buffers& b) {
  DecodeState(kSignedDecode, block.coded.codes[0], *block.coded.absmax[0], b.state[0]);
  if constexpr (Rule::kStates == 2) {
    DecodeState(kUnsignedDecode, block.coded.codes[1], *block.coded.absmax[1], b.state[1]);
  }
  const Absmaxes absmax = UpdateBlock<Rule, P, kDecays>(h, b.grad, param, b.state[0], b.state[1]);
  EncodeState<0>(b.state[0], absmax.state[0], block.tensor.elements, block.coded);
  if constexpr (Rule::kStates == 2)
    EncodeState<1>(b.state[1], absmax.state[1], block.tensor.elements, block.coded);
}

// States past a short block's end become zero, so that they do not count.
template <typename Rule>
void ClearTail(const StepRun& run, const Block& block) {
  const std::size_t from = block.tensor.elements;
  for (std::uint32_t k = 0; k < Rule::kStates; ++k) {
    if (run.bits == wire::StateBits::k8) {
      const int zero = k == 0 ? quant::kSignedZeroCode : quant::kUnsignedZeroCode;
      std::memset(block.coded.codes[k] + from, zero, kBlock - from);
    } else {
      std::memset(block.plain.values[k] + from, 0, 4 * (kBlock - from));
    }
  }
}

template <typename Rule, typename P, typename G, bool kDecays>
HWY_ATTR std::uint64_t RunBlocks(const StepRun& run) {
  const Scalars h(*run.hyper);
  HWY_ALIGN Buffers b;
  std::uint64_t skipped = 0;
  for (std::uint64_t unit = 0; unit * kBlock < run.elements; ++unit) {
    const Block block = BlockAt(run, unit);
    const std::size_t n = block.tensor.elements;
    const void* grad = block.tensor.grad;
    void* param = block.tensor.param;
    if (n != kBlock) {
      std::memset(b.state[0], 0, sizeof(b.state[0]));  // lent to the padded gradient
      std::memcpy(b.state[0], grad, n * G::kBytes);
      grad = b.state[0];
      std::memset(b.param, 0, sizeof(b.param));
      std::memcpy(b.param, param, n * P::kBytes);
      param = b.param;
    }
    const bool finite = LoadGradients<G>(grad, b.grad);
    if (!finite && run.skip_nonfinite) {
      ++skipped;
      continue;
    }
    const bool coded = run.bits == wire::StateBits::k8;
    if (!finite || (coded && UnusualStates<Rule>(block.coded))) {
      ReferenceBlock(run, block);
      continue;
    }
    if (n != kBlock) ClearTail<Rule>(run, block);
    if (coded) {
      StepBlock8<Rule, P, kDecays>(h, block, param, b);
    } else {
      (void)UpdateBlock<Rule, P, kDecays>(h, b.grad, param, block.plain.values[0], block.plain.values[1]);
    }
    if (n != kBlock) std::memcpy(block.tensor.param, b.param, n * P::kBytes);
  }
  return skipped;
}

template <typename Rule>
HWY_ATTR std::uint64_t RunRule(const StepRun& run) {
  std::uint64_t skipped = 0;
  WithType(run.param_dtype, [&](auto p) HWY_ATTR {
    WithType(run.grad_dtype, [&](auto g) HWY_ATTR {
      skipped = run.hyper->decay != 1.0F ? RunBlocks<Rule, decltype(p), decltype(g), true>(run)
                                         : RunBlocks<Rule, decltype(p), decltype(g), false>(run);
    });
  });
  return skipped;
}

HWY_ATTR std::uint64_t StepOnTarget(const StepRun& run) {
  return run.rule == wire::Rule::kAdam ? RunRule<Adam>(run) : RunRule<Lion>(run);
}

#else

std::uint64_t StepOnTarget(const StepRun& run) {
  std::uint64_t skipped = 0;
  for (std::uint64_t unit = 0; unit * kBlock < run.elements; ++unit) {
    const Block block = BlockAt(run, unit);
    if (run.skip_nonfinite && optim8bit::HasNonFinite(block.tensor)) {
      ++skipped;
    } else {
      ReferenceBlock(run, block);
    }
  }
  return skipped;
}

#endif

}  // namespace bitpager::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bitpager::kernels::simd {

HWY_EXPORT(StepOnTarget);

std::uint64_t Step(const StepRun& run) {
  return HWY_DYNAMIC_DISPATCH(StepOnTarget)(run);
}

}  // namespace bitpager::kernels::simd
#endif
