// Optimizer step over a run of consecutive units, with the widest vectors this processor has. Synchronous,
// any thread; equal bit for bit to optim8bit::ReferenceStep8 and ReferenceStep32 on every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "client/wire/types.h"
#include "optim8bit/hyper.h"

namespace bitpager::kernels::simd {

// Consecutive units of one tensor. All pointers at the run's first unit or element.
struct StepRun {
  wire::Rule rule = wire::Rule::kAdam;
  wire::StateBits bits = wire::StateBits::k8;
  wire::DType param_dtype = wire::DType::kF32;
  wire::DType grad_dtype = wire::DType::kF32;
  bool skip_nonfinite = true;                 // leave a block with a NaN or inf gradient untouched
  std::byte* states[2] = {nullptr, nullptr};  // 256 codes or 256 floats a unit
  float* absmax[2] = {nullptr, nullptr};      // one a unit; 8-bit only
  void* param = nullptr;
  const void* grad = nullptr;
  std::uint64_t elements = 0;
  const optim8bit::Hyper* hyper = nullptr;
};

// Returns the number of blocks that hold a non-finite gradient (0 when they are not looked for).
[[nodiscard]] std::uint64_t Step(const StepRun& run);

}  // namespace bitpager::kernels::simd
