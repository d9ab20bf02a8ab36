// What one step asks of one arena. Made for one step, by one caller. Holds the gradients, which must live
// until the step has been submitted.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "client/arena.h"
#include "client/torch/arenas.h"
#include "client/torch/options.h"
#include "client/wire/records.h"

namespace bitpager::optim {

class StepRequest {
 public:
  explicit StepRequest(const Home& home) : home_(home) {}

  // One parameter, which `placed` says the place of. `state` counts its steps and outlives this.
  void Add(client::StepTensor placed, const at::Tensor& parameter, at::Tensor gradient, std::uint32_t group,
           PagedParamState& state);

  // `groups`: the settings that Add's `group` points into.
  // Counts the step with every parameter and submits it: on the CPU it is applied when this returns, on a
  // GPU it goes behind the current stream's work. Ok; kNonFinite: blocks were left out (CPU; `blocks` says
  // how many); kInterrupted: applied, but a signal kept what it found from us. Any other outcome: nothing was
  // applied and nothing counted, save after kDaemonLost, when nobody knows.
  // `continues`: a further part of what was submitted last to the same session.
  wire::Status Submit(std::span<const wire::GroupRecord> groups, std::uint64_t step, OnNonFinite on_nonfinite,
                      bool continues, std::uint64_t& blocks);

  [[nodiscard]] const Home& home() const { return home_; }
  [[nodiscard]] bool empty() const { return parts_.empty(); }
  [[nodiscard]] bool on_gpu() const { return home_.storages == nullptr; }
  // Of the parameters whose gradients hold NaN or inf.
  [[nodiscard]] std::vector<at::Tensor> NonFinite() const;

 private:
  struct Part {
    client::StepTensor placed;
    at::Tensor parameter;
    at::Tensor gradient;
    std::uint32_t group;
    PagedParamState* state;
  };

  wire::Status SubmitOnCpu(std::span<const client::StepTensor> tensors,
                           std::span<const wire::GroupRecord> groups, const client::StepOptions& options,
                           std::uint64_t& blocks);
  wire::Status SubmitOnGpu(std::span<const client::StepTensor> tensors,
                           std::span<const wire::GroupRecord> groups, const client::StepOptions& options);
  void Count(std::int64_t change);

  const Home& home_;
  std::vector<Part> parts_;
};

}  // namespace bitpager::optim
