#include "client/torch/step_request.h"

#include <ATen/ops/isfinite.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>

#include "client/torch/sessions.h"
#include "client/torch/tensors.h"

namespace bitpager::optim {

namespace {
constexpr std::uint32_t kUnused = ~0U;
}  // namespace

using wire::Code;

void StepRequest::Add(client::StepTensor placed, const at::Tensor& parameter, at::Tensor gradient,
                      std::uint32_t group, PagedParamState& state) {
  placed.grad_dtype = DTypeOf(gradient);
  parts_.push_back({placed, parameter, std::move(gradient), group, &state});
}

wire::Status StepRequest::Submit(std::span<const wire::GroupRecord> groups, std::uint64_t step,
                                 OnNonFinite on_nonfinite, bool continues, std::uint64_t& blocks) {
  // Groups may have been reordered since the arena was made.
  std::sort(parts_.begin(), parts_.end(),
            [](const Part& a, const Part& b) { return a.placed.tensor < b.placed.tensor; });
  client::StepOptions options;
  options.step = step;
  options.continues = continues;
  if (on_nonfinite == OnNonFinite::kPropagate) options.on_nonfinite = wire::OnNonFinite::kPropagate;
  Count(1);
  // The groups that have a tensor here, in the order of their first one.
  std::vector<wire::GroupRecord> used;
  std::vector<std::uint32_t> places(groups.size(), kUnused);
  std::vector<client::StepTensor> tensors;
  tensors.reserve(parts_.size());
  for (Part& part : parts_) {
    std::uint32_t& place = places[part.group];
    if (place == kUnused) {
      place = static_cast<std::uint32_t>(used.size());
      used.push_back(groups[part.group]);
    }
    part.placed.group = place;
    part.placed.step = static_cast<std::uint64_t>(part.state->step());
    part.placed.grad = part.gradient.data_ptr();  // not before: a storage that is shared moves
    tensors.push_back(part.placed);
  }
  wire::Status outcome =
      on_gpu() ? SubmitOnGpu(tensors, used, options) : SubmitOnCpu(tensors, used, options, blocks);
  const Code code = outcome.code();
  const bool counts = outcome.ok() || code == Code::kNonFinite || code == Code::kInterrupted;
  if (!counts && code != Code::kDaemonLost) Count(-1);
  return outcome;
}

wire::Status StepRequest::SubmitOnCpu(std::span<const client::StepTensor> tensors,
                                      std::span<const wire::GroupRecord> groups,
                                      const client::StepOptions& options, std::uint64_t& blocks) {
  if (wire::Status settled = Settle(*home_.session); !settled.ok()) return settled;
  client::StepResult result;
  wire::Status outcome = home_.arena->Step(tensors, groups, options, &result);
  if (outcome.code() == Code::kNonFinite) blocks += result.nonfinite_blocks;
  if (outcome.code() == Code::kInterrupted) {
    if (wire::Status settled = Settle(*home_.session); !settled.ok()) return settled;
  }
  return outcome;
}

wire::Status StepRequest::SubmitOnGpu(std::span<const client::StepTensor> tensors,
                                      std::span<const wire::GroupRecord> groups,
                                      const client::StepOptions& options) {
  const c10::Device device = parts_.front().parameter.device();
  const c10::DeviceGuard guard(device);
  const CurrentStream current = CurrentStreamOf(device);
  client::StreamStepOptions on_stream;
  on_stream.on_nonfinite = options.on_nonfinite;
  on_stream.step = options.step;
  on_stream.follows = options.continues;  // all gradients were there before the first part
  for (;;) {
    const auto ticket = home_.arena->StepOnStream(tensors, groups, on_stream, current.handle);
    if (ticket.ok()) break;
    if (ticket.status().code() != Code::kInterrupted) return ticket.status();  // else nothing was submitted
  }
  // The daemon reads after this returns: memory of other streams must not be used again before.
  for (const Part& part : parts_) {
    part.gradient.record_stream(current.stream);
    part.parameter.record_stream(current.stream);
  }
  return {};
}

void StepRequest::Count(std::int64_t change) {
  for (const Part& part : parts_) part.state->step(part.state->step() + change);
}

std::vector<at::Tensor> StepRequest::NonFinite() const {
  std::vector<at::Tensor> found;
  for (const Part& part : parts_) {
    if (!at::isfinite(part.gradient).all().item<bool>()) found.push_back(part.parameter);
  }
  return found;
}

}  // namespace bitpager::optim
