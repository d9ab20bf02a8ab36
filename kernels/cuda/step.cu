// LaunchStep: pages that were never written are zeroed, spans are grouped by the kernel that takes their
// dtypes, and each group goes out as one launch with one uploaded table. The device thread.
#include <cstring>
#include <vector>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/step_kernels.h"
#include "kernels/cuda/step_launch.cuh"

namespace bitpager::kernels::cuda {
namespace {

using wire::StateBits;

StepTypes TypesOf(const StepSpan& span) {
  if (span.param_dtype != span.grad_dtype) return StepTypes::kAny;
  if (span.param_dtype == wire::DType::kF32) return StepTypes::kF32;
  return span.param_dtype == wire::DType::kBF16 ? StepTypes::kBF16 : StepTypes::kAny;
}

struct Group {
  std::vector<StepEntry> entries;
  std::vector<std::uint32_t> firsts;
  std::uint32_t units = 0;
};

// Entries, hypers and firsts, in this order, as one table in device memory.
wire::Status UploadGroup(LaunchContext& context, const Group& group,
                         const std::vector<optim8bit::Hyper>& hypers, StepLaunch& launch) {
  const std::size_t entry_bytes = group.entries.size() * sizeof(StepEntry);
  const std::size_t hyper_bytes = hypers.size() * sizeof(optim8bit::Hyper);
  const std::size_t first_bytes = group.firsts.size() * sizeof(std::uint32_t);
  std::vector<std::byte> table(entry_bytes + hyper_bytes + first_bytes);
  std::memcpy(table.data(), group.entries.data(), entry_bytes);
  std::memcpy(table.data() + entry_bytes, hypers.data(), hyper_bytes);
  std::memcpy(table.data() + entry_bytes + hyper_bytes, group.firsts.data(), first_bytes);
  auto at = context.Upload(table.data(), table.size(), alignof(StepEntry));
  if (!at.ok()) return at.status();
  const auto* const bytes = static_cast<const std::byte*>(at.value());
  launch.entries = reinterpret_cast<const StepEntry*>(bytes);
  launch.hypers = reinterpret_cast<const optim8bit::Hyper*>(bytes + entry_bytes);
  launch.firsts = reinterpret_cast<const std::uint32_t*>(bytes + entry_bytes + hyper_bytes);
  launch.spans = static_cast<std::uint32_t>(group.entries.size());
  launch.units = group.units;
  return {};
}

wire::Status LaunchGroup(LaunchContext& context, const StepArgs& args, StepTypes types, const Group& group) {
  StepLaunch launch{};
  launch.report = args.report;
  launch.plane_bytes = args.layout.plane_bytes;
  launch.absmax_stride = args.layout.absmax_stride / sizeof(float);
  launch.skip_nonfinite = args.on_nonfinite == wire::OnNonFinite::kSkip;
  if (wire::Status status = UploadGroup(context, group, args.hypers, launch); !status.ok()) return status;
  return args.layout.bits == StateBits::k8 ? LaunchStep8(context, args.layout.rule, types, launch)
                                           : LaunchStep32(context, args.layout.rule, launch);
}

}  // namespace

wire::Status LaunchStep(LaunchContext& context, const StepArgs& args) {
  if (wire::Status status = ZeroFreshPages(context, args.layout, args.spans); !status.ok()) return status;
  Group groups[kStepTypes];
  for (const StepSpan& span : args.spans) {
    if (span.units == 0) continue;
    const StepTypes types = args.layout.bits == StateBits::k8 ? TypesOf(span) : StepTypes::kAny;
    Group& group = groups[static_cast<int>(types)];
    group.entries.push_back(EntryOf(args.layout, span, group.units));
    group.firsts.push_back(group.units);
    group.units += span.units;
  }
  for (int types = 0; types < kStepTypes; ++types) {
    if (groups[types].units == 0) continue;
    wire::Status status = LaunchGroup(context, args, static_cast<StepTypes>(types), groups[types]);
    if (!status.ok()) return status;
  }
  return {};
}

}  // namespace bitpager::kernels::cuda
