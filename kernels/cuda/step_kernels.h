// The step kernels, as the launching code sees them. The device thread.
#pragma once

#include "client/wire/status.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/ops.h"

namespace bitpager::kernels::cuda {

struct StepLaunch;

// The pairs of dtypes that have a kernel of their own; all others share one.
enum class StepTypes : std::uint8_t { kF32 = 0, kBF16 = 1, kAny = 2 };
inline constexpr int kStepTypes = 3;

// Enqueues one launch. Its tables are in device memory; `run_shift` is set here.
[[nodiscard]] wire::Status LaunchStep8(LaunchContext& context, wire::Rule rule, StepTypes types,
                                       StepLaunch launch);
[[nodiscard]] wire::Status LaunchStep32(LaunchContext& context, wire::Rule rule, StepLaunch launch);

// Every state of the distinct pages of `spans` that were never written becomes zero, codes and absmaxes.
[[nodiscard]] wire::Status ZeroFreshPages(LaunchContext& context, const optim8bit::StateLayout& layout,
                                          const std::vector<StepSpan>& spans);

inline constexpr std::uint32_t kMostRunShift = 5;

// Units a warp takes in a row, as a power of two: more, the longer the launch. It then searches its span
// seldom and moves whole sectors of absmaxes.
[[nodiscard]] constexpr std::uint32_t RunShift(std::uint64_t units, std::uint64_t warps) {
  std::uint32_t shift = 0;
  while (shift < kMostRunShift && units >= (std::uint64_t{8} << shift) * warps) ++shift;
  return shift;
}

}  // namespace bitpager::kernels::cuda
