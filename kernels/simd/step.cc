#include "kernels/simd/step.h"

#include <algorithm>

#include "optim8bit/reference_step.h"

namespace bitpager::kernels::simd {

std::uint64_t Step(const StepRun& run) {
  std::uint64_t skipped = 0;
  for (std::uint64_t first = 0, unit = 0; first < run.elements; first += wire::kStateBlock, ++unit) {
    optim8bit::BlockTensor t;
    t.param = static_cast<std::byte*>(run.param) + first * wire::DTypeBytes(run.param_dtype);
    t.grad = static_cast<const std::byte*>(run.grad) + first * wire::DTypeBytes(run.grad_dtype);
    t.elements = std::min<std::uint64_t>(wire::kStateBlock, run.elements - first);
    t.param_dtype = run.param_dtype;
    t.grad_dtype = run.grad_dtype;
    if (run.skip_nonfinite && optim8bit::HasNonFinite(t)) {
      ++skipped;
      continue;
    }
    if (run.bits == wire::StateBits::k8) {
      optim8bit::BlockStates8 s;
      for (std::uint32_t k = 0; k < wire::StatesOf(run.rule); ++k) {
        s.codes[k] = reinterpret_cast<std::uint8_t*>(run.states[k]) + 256 * unit;
        s.absmax[k] = run.absmax[k] + unit;
      }
      optim8bit::ReferenceStep8(run.rule, *run.hyper, t, s);
    } else {
      optim8bit::BlockStates32 s;
      for (std::uint32_t k = 0; k < wire::StatesOf(run.rule); ++k) {
        s.values[k] = reinterpret_cast<float*>(run.states[k]) + 256 * unit;
      }
      optim8bit::ReferenceStep32(run.rule, *run.hyper, t, s);
    }
  }
  return skipped;
}

}  // namespace bitpager::kernels::simd
