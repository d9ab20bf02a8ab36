// The fast optimizer step, on the caller's thread. A block of 256 with 8-bit states is done in two passes
// over the first-level cache. The first decodes the states, moves them on by the gradients and finds their
// greatest magnitudes; it writes nothing but its buffers, so a block that turns out to hold something unusual
// (NaN, inf) is still as it was and goes to the reference. The second updates the parameters and encodes the
// states: encoding fills the processor's ports while its divider works on the parameters. Every operation is
// the reference's, in its order, so results are equal bit for bit. Divisions and square roots are the
// processor's own: correcting an estimate to the same bits takes the ports that encoding needs.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/step.cc"
#include <hwy/foreach_target.h>
// Highway needs the line above first.
#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/simd/encode-inl.h"
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

// What the first pass leaves to the second, and the padded copies of a short block.
struct alignas(64) Buffers {
  float state[2][kBlock];
  float magnitude[kBlock];  // of the first state
  float course[kBlock];     // what else the second pass needs: see the rules
  std::byte param[4 * kBlock];
  std::byte grad[4 * kBlock];
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

// A rule in two parts: Move takes the states on and may leave a course; Update returns the parameter, to
// be rounded to its dtype. Without decay the factor is 1, which changes no bit.
struct Adam {
  static constexpr std::uint32_t kStates = 2;
  static HWY_INLINE HWY_ATTR void Move(const Scalars& h, Vf g, Vf& m, Vf& v, Vf& course) {
    m = hn::MulAdd(h.beta1, m, hn::Mul(h.rest1, g));
    v = hn::MulAdd(h.beta2, v, hn::Mul(hn::Mul(h.rest2, g), g));
    course = hn::Add(hn::Sqrt(v), h.eps);
  }
  template <typename P>
  static HWY_INLINE HWY_ATTR Vf Update(const Scalars& h, Vf p, Vf m, Vf root) {
    const Vf ratio = hn::Div(m, root);
    return hn::Mul(P::Round(hn::MulAdd(h.minus_step, ratio, p)), h.decay);
  }
};

struct Lion {
  static constexpr std::uint32_t kStates = 1;
  static HWY_INLINE HWY_ATTR void Move(const Scalars& h, Vf g, Vf& m, Vf& /*v*/, Vf& course) {
    course = hn::MulAdd(h.beta1, m, hn::Mul(h.rest1, g));
    m = hn::MulAdd(h.beta2, m, hn::Mul(h.rest2, g));
  }
  template <typename P>
  static HWY_INLINE HWY_ATTR Vf Update(const Scalars& h, Vf p, Vf /*m*/, Vf course) {
    const Df d;
    const Vf one = hn::CopySign(hn::Set(d, 1.0F), course);
    const Vf sign = hn::IfThenElse(hn::Ne(course, hn::Zero(d)), one, course);
    return hn::MulAdd(h.minus_step, sign, P::Round(hn::Mul(p, h.decay)));
  }
};

// A later block's lines, asked for while this one is computed: the streams of a page lie planes apart and
// cross small pages, where the processor does not follow by itself.
inline constexpr std::uint64_t kAheadBlocks = 2;

template <std::size_t kBytes>
HWY_INLINE void PrefetchGroup(const void* at) {
  for (std::size_t byte = 0; byte < 4 * kLanes * kBytes; byte += 64) {
    _mm_prefetch(static_cast<const char*>(at) + byte, _MM_HINT_T0);
  }
}
template <typename Rule>
HWY_INLINE void PrefetchCodes(const Block& later, std::size_t i) {
  for (std::uint32_t k = 0; k < Rule::kStates; ++k) {
    if (i % 64 == 0) _mm_prefetch(reinterpret_cast<const char*>(later.coded.codes[k] + i), _MM_HINT_T0);
  }
}

// ---- 32-bit states ----
// True when all gradients of a full block are finite.
template <typename G>
HWY_NOINLINE HWY_ATTR bool AreFinite(const void* grad) {
  const auto* bytes = static_cast<const std::byte*>(grad);
  Vi greatest[2] = {hn::Zero(Di()), hn::Zero(Di())};
  for (std::size_t i = 0; i < kBlock; i += 2 * kLanes) {
    for (std::size_t j = 0; j < 2; ++j) {
      greatest[j] = hn::Max(greatest[j], MagnitudeBits(G::Load(bytes + (i + j * kLanes) * G::kBytes)));
    }
  }
  return std::isfinite(ReduceAbsmax(hn::Max(greatest[0], greatest[1])));
}

template <typename Rule, typename P, typename G>
HWY_NOINLINE HWY_ATTR void StepPlain(const Hyper& hyper, const void* grad, void* param,
                                     const optim8bit::BlockStates32& s) {
  const Df d;
  const Scalars h(hyper);
  const auto* grads = static_cast<const std::byte*>(grad);
  auto* params = static_cast<std::byte*>(param);
  for (std::size_t i = 0; i < kBlock; i += kLanes) {
    Vf m = hn::LoadU(d, s.values[0] + i);
    Vf v = hn::Zero(d);
    Vf course = v;
    if constexpr (Rule::kStates == 2) v = hn::LoadU(d, s.values[1] + i);
    Rule::Move(h, G::Load(grads + i * G::kBytes), m, v, course);
    hn::StoreU(m, d, s.values[0] + i);
    if constexpr (Rule::kStates == 2) hn::StoreU(v, d, s.values[1] + i);
    const Vf p = P::Load(params + i * P::kBytes);
    P::Store(Rule::template Update<P>(h, p, m, course), params + i * P::kBytes);
  }
}

// ---- 8-bit states ----
// Bits of the greatest magnitude of each state. (The second state is never negative: a sign bit there is
// something unusual, and makes it the greatest.)
struct Greatest {
  std::uint32_t bits[2] = {0, 0};
  [[nodiscard]] bool Usual() const { return std::max(bits[0], bits[1]) < 0x7F800000U; }
};

// The first pass over a full block.
template <typename Rule, typename G>
HWY_NOINLINE HWY_ATTR Greatest MoveStates(const Hyper& hyper, const void* grad,
                                          const optim8bit::BlockStates8& s, const Block& later, Buffers& b) {
  const Df d;
  const Du du;
  const Scalars h(hyper);
  const Vf scale0 = hn::Set(d, *s.absmax[0]);
  const Vf scale1 = Rule::kStates == 2 ? hn::Set(d, *s.absmax[1]) : scale0;
  Vu greatest0 = hn::Zero(du);
  Vu greatest1 = hn::Zero(du);
  for (std::size_t i = 0; i < kBlock; i += 4 * kLanes) {
    PrefetchCodes<Rule>(later, i);
    PrefetchGroup<G::kBytes>(static_cast<const std::byte*>(later.tensor.grad) + i * G::kBytes);
    Vf m[4];
    Vf v[4];
    Vf g[4];
    Load4<G>(static_cast<const std::byte*>(grad) + i * G::kBytes, g);
    DecodeSigned4(s.codes[0] + i, scale0, m);
    if constexpr (Rule::kStates == 2) Decode4(kUnsignedDecode, s.codes[1] + i, scale1, v);
    for (std::size_t j = 0; j < 4; ++j) {
      const std::size_t at = i + j * kLanes;
      Vf course;
      Rule::Move(h, g[j], m[j], v[j], course);
      const Vf magnitude = hn::Abs(m[j]);
      hn::Store(m[j], d, b.state[0] + at);
      hn::Store(magnitude, d, b.magnitude + at);
      greatest0 = hn::Max(greatest0, hn::BitCast(du, magnitude));
      hn::Store(course, d, b.course + at);
      if constexpr (Rule::kStates == 2) {
        hn::Store(v[j], d, b.state[1] + at);
        greatest1 = hn::Max(greatest1, hn::BitCast(du, v[j]));
      }
    }
  }
  Greatest out;
  out.bits[0] = hn::GetLane(hn::MaxOfLanes(du, greatest0));
  if constexpr (Rule::kStates == 2) out.bits[1] = hn::GetLane(hn::MaxOfLanes(du, greatest1));
  return out;
}

// 1 / absmax, or 0 where it is nothing or might overflow.
inline constexpr float kLeastAbsmax = 0x1p-120F;
inline float InverseOf(float absmax) {
  return absmax < kLeastAbsmax ? 0.0F : 1.0F / absmax;
}

// What vectors do not encode: values so small that the inverse of their absmax overflows, and values near to
// a midpoint.
template <std::uint32_t k>
HWY_INLINE void FinishState(const float* values, float absmax, bool doubtful,
                            const optim8bit::BlockStates8& s) {
  constexpr Form kForm = k == 0 ? Form::kSignedKeep : Form::kUnsigned;
  *s.absmax[k] = absmax;
  if (absmax != 0.0F && absmax < kLeastAbsmax) {
    optim8bit::ReferenceEncode(k, values, kBlock, s.codes[k], s.absmax[k]);
  } else if (doubtful) {
    FixDoubtful<kForm>(k == 0 ? kSignedPieces : kUnsignedPieces, values, kBlock, InverseOf(absmax),
                       s.codes[k]);
  }
}

// The second pass over a full block.
template <typename Rule, typename P>
HWY_NOINLINE HWY_ATTR void UpdateAndEncode(const Hyper& hyper, void* param, const Greatest& greatest,
                                           const optim8bit::BlockStates8& s, const Block& later,
                                           const Buffers& b) {
  const Df d;
  const Scalars h(hyper);
  const float absmax0 = std::bit_cast<float>(greatest.bits[0]);
  const float absmax1 = std::bit_cast<float>(greatest.bits[1]);
  const Vf scale0 = hn::Set(d, InverseOf(absmax0));
  const Vf scale1 = hn::Set(d, InverseOf(absmax1));
  const Pieces pieces0 = LoadPieces(kSignedPieces);
  const Pieces pieces1 = LoadPieces(kUnsignedPieces);
  Vi least0 = NothingMet();
  Vi least1 = NothingMet();
  for (std::size_t i = 0; i < kBlock; i += 4 * kLanes) {
    std::byte* const at = static_cast<std::byte*>(param) + i * P::kBytes;
    PrefetchGroup<P::kBytes>(static_cast<const std::byte*>(later.tensor.param) + i * P::kBytes);
    Vf p[4];
    Vf m[4];
    Vf v[4];
    Vf x[4];
    Load4<P>(at, p);
    for (std::size_t j = 0; j < 4; ++j) {
      const std::size_t lane = i + j * kLanes;
      m[j] = hn::Load(d, b.state[0] + lane);
      v[j] = Rule::kStates == 2 ? hn::Load(d, b.state[1] + lane) : hn::Zero(d);
      x[j] = hn::Mul(hn::Load(d, b.magnitude + lane), scale0);
      p[j] = Rule::template Update<P>(h, p[j], m[j], hn::Load(d, b.course + lane));
    }
    Store4<P>(p, at);
    StoreBytes(EncodeGroup<Form::kSignedKeep>(pieces0, x, m, least0), s.codes[0] + i);
    if constexpr (Rule::kStates == 2) {
      for (std::size_t j = 0; j < 4; ++j) x[j] = hn::Mul(v[j], scale1);
      StoreBytes(EncodeGroup<Form::kUnsigned>(pieces1, x, x, least1), s.codes[1] + i);
    }
  }
  FinishState<0>(b.state[0], absmax0, IsDoubtful<Form::kSignedKeep>(least0), s);
  if constexpr (Rule::kStates == 2)
    FinishState<1>(b.state[1], absmax1, IsDoubtful<Form::kUnsigned>(least1), s);
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

// Pads a short block into `b`; returns it with pointers there.
template <typename Rule>
Block Padded(const StepRun& run, const Block& block, Buffers& b) {
  const std::size_t n = block.tensor.elements;
  std::memset(b.grad, 0, sizeof(b.grad));
  std::memcpy(b.grad, block.tensor.grad, n * wire::DTypeBytes(run.grad_dtype));
  std::memset(b.param, 0, sizeof(b.param));
  std::memcpy(b.param, block.tensor.param, n * wire::DTypeBytes(run.param_dtype));
  ClearTail<Rule>(run, block);
  Block padded = block;
  padded.tensor.grad = b.grad;
  padded.tensor.param = b.param;
  return padded;
}

// Steps a full block; false, with nothing changed, when it is one for the reference.
template <typename Rule, typename P>
HWY_ATTR bool StepFull(const StepRun& run, const Block& block, const Block& later, Buffers& b) {
  bool done = false;
  WithType(run.grad_dtype, [&](auto g) HWY_ATTR {
    using G = decltype(g);
    if (run.bits == wire::StateBits::k32) {
      done = AreFinite<G>(block.tensor.grad);
      if (done) StepPlain<Rule, P, G>(*run.hyper, block.tensor.grad, block.tensor.param, block.plain);
      return;
    }
    const Greatest greatest = MoveStates<Rule, G>(*run.hyper, block.tensor.grad, block.coded, later, b);
    done = greatest.Usual();
    if (done) {
      UpdateAndEncode<Rule, P>(*run.hyper, block.tensor.param, greatest, block.coded, later, b);
    }
  });
  return done;
}

template <typename Rule, typename P>
HWY_ATTR std::uint64_t RunBlocks(const StepRun& run) {
  const std::uint64_t units = (run.elements + kBlock - 1) / kBlock;
  HWY_ALIGN Buffers b;
  std::uint64_t skipped = 0;
  for (std::uint64_t unit = 0; unit < units; ++unit) {
    const Block block = BlockAt(run, unit);
    const Block later = BlockAt(run, std::min(unit + kAheadBlocks, units - 1));
    const bool is_short = block.tensor.elements != kBlock;
    if (StepFull<Rule, P>(run, is_short ? Padded<Rule>(run, block, b) : block, later, b)) {
      if (is_short) std::memcpy(block.tensor.param, b.param, block.tensor.elements * P::kBytes);
    } else if (run.skip_nonfinite && optim8bit::HasNonFinite(block.tensor)) {
      ++skipped;
    } else {
      ReferenceBlock(run, block);
    }
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
