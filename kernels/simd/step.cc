// The fast optimizer step. Per block of 256: gradients are checked (16-bit ones become fp32 in the
// first-level cache); then, four vectors at a time, states are decoded and updated with the parameters, and
// stay in the first-level cache until their absmax is known; then they are encoded. Every operation is the
// reference's, in its order, so results are equal bit for bit; blocks that hold something unusual go to the
// reference. Divisions and square roots are the processor's own: its divider works beside the decoding of
// other vectors, and correcting an estimate to the same bits takes the ports that decoding needs.
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
  std::byte param[4 * kBlock];  // of a short block, padded with zeros
  std::byte short_grad[4 * kBlock];
};

// True when all gradients of a full block are finite; `out`: where its floats are, `room` when they had to be
// converted.
template <typename G>
HWY_INLINE HWY_ATTR bool LoadGradients(const void* grad, float* room, const float** out) {
  constexpr bool kInPlace = G::kBytes == 4;
  Vi greatest[2] = {hn::Zero(Di()), hn::Zero(Di())};
  const auto* bytes = static_cast<const std::byte*>(grad);
  for (std::size_t i = 0; i < kBlock; i += 2 * kLanes) {
    for (std::size_t j = 0; j < 2; ++j) {
      const std::size_t at = i + j * kLanes;
      const Vf g = G::Load(bytes + at * G::kBytes);
      greatest[j] = hn::Max(greatest[j], MagnitudeBits(g));
      if constexpr (!kInPlace) hn::Store(g, Df(), room + at);
    }
  }
  *out = kInPlace ? static_cast<const float*>(grad) : room;
  return std::isfinite(ReduceAbsmax(hn::Max(greatest[0], greatest[1])));
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

// Without decay the factor is 1, which changes no bit.
struct Adam {
  static constexpr std::uint32_t kStates = 2;
  template <typename P>
  static HWY_INLINE HWY_ATTR void Update(const Scalars& h, void* param, Vf g, Vf& m, Vf& v) {
    m = hn::MulAdd(h.beta1, m, hn::Mul(h.rest1, g));
    v = hn::MulAdd(h.beta2, v, hn::Mul(hn::Mul(h.rest2, g), g));
    const Vf ratio = hn::Div(m, hn::Add(hn::Sqrt(v), h.eps));
    const Vf p = hn::MulAdd(h.minus_step, ratio, P::Load(param));
    P::Store(hn::Mul(P::Round(p), h.decay), param);
  }
};

struct Lion {
  static constexpr std::uint32_t kStates = 1;
  template <typename P>
  static HWY_INLINE HWY_ATTR void Update(const Scalars& h, void* param, Vf g, Vf& m, Vf& /*unused*/) {
    const Df d;
    const Vf direction = hn::MulAdd(h.beta1, m, hn::Mul(h.rest1, g));
    m = hn::MulAdd(h.beta2, m, hn::Mul(h.rest2, g));
    const Vf one = hn::CopySign(hn::Set(d, 1.0F), direction);
    const Vf sign = hn::IfThenElse(hn::Ne(direction, hn::Zero(d)), one, direction);
    const Vf p = P::Round(hn::Mul(P::Load(param), h.decay));
    P::Store(hn::MulAdd(h.minus_step, sign, p), param);
  }
};

// A later block's lines, asked for while this one is computed: the streams of a page lie planes apart and
// cross small pages, where the processor does not follow by itself.
struct Ahead {
  const std::byte* param;
  const std::byte* grad;
  const std::uint8_t* codes[2];
  std::size_t grad_bytes;  // of an element
};
inline constexpr std::size_t kAheadBlocks = 2;

template <typename Rule, typename P>
HWY_INLINE HWY_ATTR void Prefetch(const Ahead& ahead, std::size_t i) {
  constexpr std::size_t kGroup = 4 * kLanes;
  for (std::size_t at = 0; at < kGroup * P::kBytes; at += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(ahead.param + i * P::kBytes + at), _MM_HINT_T0);
  }
  for (std::size_t at = 0; at < kGroup * ahead.grad_bytes; at += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(ahead.grad + i * ahead.grad_bytes + at), _MM_HINT_T0);
  }
  for (std::uint32_t k = 0; k < Rule::kStates; ++k) {
    if (i % 64 == 0) _mm_prefetch(reinterpret_cast<const char*>(ahead.codes[k] + i), _MM_HINT_T0);
  }
}

// Updates parameters and fp32 states of a full block.
template <typename Rule, typename P>
HWY_INLINE HWY_ATTR void UpdatePlain(const Scalars& h, const float* grad, void* param, float* state0,
                                     float* state1) {
  const Df d;
  auto* bytes = static_cast<std::byte*>(param);
  for (std::size_t i = 0; i < kBlock; i += kLanes) {
    Vf m = hn::LoadU(d, state0 + i);
    Vf v = hn::Zero(d);
    if constexpr (Rule::kStates == 2) v = hn::LoadU(d, state1 + i);
    Rule::template Update<P>(h, bytes + i * P::kBytes, hn::LoadU(d, grad + i), m, v);
    hn::StoreU(m, d, state0 + i);
    if constexpr (Rule::kStates == 2) hn::StoreU(v, d, state1 + i);
  }
}

// Decodes and updates a full block; leaves the new states in `b` and returns their absmaxes.
template <typename Rule, typename P>
HWY_INLINE HWY_ATTR Absmaxes UpdateCoded(const Scalars& h, const float* grad, void* param,
                                         const optim8bit::BlockStates8& s, const Ahead& ahead, Buffers& b) {
  const Df d;
  const Vf scale0 = hn::Set(d, *s.absmax[0]);
  const Vf scale1 = Rule::kStates == 2 ? hn::Set(d, *s.absmax[1]) : scale0;
  Vi greatest0 = hn::Zero(Di());
  Vi greatest1 = hn::Zero(Di());
  auto* bytes = static_cast<std::byte*>(param);
  for (std::size_t i = 0; i < kBlock; i += 4 * kLanes) {
    Prefetch<Rule, P>(ahead, i);
    Vf m[4];
    Vf v[4];
    DecodeSigned4(s.codes[0] + i, scale0, m);
    if constexpr (Rule::kStates == 2) Decode4(kUnsignedDecode, s.codes[1] + i, scale1, v);
    for (std::size_t j = 0; j < 4; ++j) {
      const std::size_t at = i + j * kLanes;
      Rule::template Update<P>(h, bytes + at * P::kBytes, hn::LoadU(d, grad + at), m[j], v[j]);
      hn::Store(m[j], d, b.state[0] + at);
      greatest0 = hn::Max(greatest0, MagnitudeBits(m[j]));
      if constexpr (Rule::kStates == 2) {
        hn::Store(v[j], d, b.state[1] + at);
        greatest1 = hn::Max(greatest1, MagnitudeBits(v[j]));
      }
    }
  }
  return {{ReduceAbsmax(greatest0), Rule::kStates == 2 ? ReduceAbsmax(greatest1) : 0.0F}};
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

template <typename Rule, typename P>
HWY_INLINE HWY_ATTR void StepBlock8(const Scalars& h, const Block& block, const float* grad, void* param,
                                    const Ahead& ahead, Buffers& b) {
  const Absmaxes absmax = UpdateCoded<Rule, P>(h, grad, param, block.coded, ahead, b);
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

HWY_ATTR bool GradientsAreFinite(wire::DType dtype, const void* grad, float* room, const float** out) {
  bool finite = false;
  WithType(dtype, [&](auto g) HWY_ATTR { finite = LoadGradients<decltype(g)>(grad, room, out); });
  return finite;
}

inline Ahead AheadOf(const StepRun& run, std::uint64_t unit) {
  const Block later = BlockAt(run, unit);
  return {static_cast<const std::byte*>(later.tensor.param),
          static_cast<const std::byte*>(later.tensor.grad),
          {later.coded.codes[0], later.coded.codes[1]},
          wire::DTypeBytes(run.grad_dtype)};
}

template <typename Rule, typename P>
HWY_ATTR std::uint64_t RunBlocks(const StepRun& run) {
  const Scalars h(*run.hyper);
  const bool coded = run.bits == wire::StateBits::k8;
  const std::uint64_t units = (run.elements + kBlock - 1) / kBlock;
  HWY_ALIGN Buffers b;
  std::uint64_t skipped = 0;
  for (std::uint64_t unit = 0; unit < units; ++unit) {
    const Block block = BlockAt(run, unit);
    const std::size_t n = block.tensor.elements;
    const void* grad = block.tensor.grad;
    void* param = block.tensor.param;
    if (n != kBlock) {
      std::memset(b.short_grad, 0, sizeof(b.short_grad));
      std::memcpy(b.short_grad, grad, n * wire::DTypeBytes(run.grad_dtype));
      grad = b.short_grad;
      std::memset(b.param, 0, sizeof(b.param));
      std::memcpy(b.param, param, n * P::kBytes);
      param = b.param;
    }
    const float* floats = nullptr;
    const bool finite = GradientsAreFinite(run.grad_dtype, grad, b.grad, &floats);
    if (!finite && run.skip_nonfinite) {
      ++skipped;
      continue;
    }
    if (!finite || (coded && UnusualStates<Rule>(block.coded))) {
      ReferenceBlock(run, block);
      continue;
    }
    if (n != kBlock) ClearTail<Rule>(run, block);
    if (coded) {
      StepBlock8<Rule, P>(h, block, floats, param, AheadOf(run, std::min(unit + kAheadBlocks, units - 1)), b);
    } else {
      UpdatePlain<Rule, P>(h, floats, param, block.plain.values[0], block.plain.values[1]);
    }
    if (n != kBlock) std::memcpy(block.tensor.param, b.param, n * P::kBytes);
  }
  return skipped;
}

template <typename Rule>
HWY_ATTR std::uint64_t RunRule(const StepRun& run) {
  std::uint64_t skipped = 0;
  WithType(run.param_dtype, [&](auto p) HWY_ATTR { skipped = RunBlocks<Rule, decltype(p)>(run); });
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
