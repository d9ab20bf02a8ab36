// What the libtorch optimizers share: a torch::optim::Optimizer whose states live in the daemon's pages and
// whose step is one request for each width of state. As any torch::optim::Optimizer, for one thread at a
// time.
#pragma once

#include <torch/optim/optimizer.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "client/torch/error.h"
#include "client/torch/options.h"

namespace bitpager::optim {

class StepRequest;

class PagedOptimizer : public torch::optim::Optimizer {
 public:
  // Gives the pages back.
  ~PagedOptimizer() override;
  PagedOptimizer(PagedOptimizer&&) noexcept;
  PagedOptimizer& operator=(PagedOptimizer&&) = delete;
  PagedOptimizer(const PagedOptimizer&) = delete;
  PagedOptimizer& operator=(const PagedOptimizer&) = delete;

  // One step over all parameters that have a gradient; returns the closure's loss. Parameters on the CPU are
  // moved into shared memory at their first step: addresses taken before (data_ptr, accessors) end then.
  // Parameters on a GPU are stepped on its current stream without waiting, and the first later call that sees
  // an error of that step throws it.
  // Error: kNonFinite (all finite blocks are updated then), kDaemonLost, what the daemon refused at the first
  // step, gradients that cannot be stepped (nothing is stepped then).
  torch::Tensor step(LossClosure closure = nullptr) override;

  // Adds a group; its options inherit what they leave at its type's own value from the optimizer's, as
  // libtorch does for its own optimizers. Call it on this type: libtorch's own, reached through a reference
  // to torch::optim::Optimizer, leaves the group with the optimizer's options.
  void add_param_group(const torch::optim::OptimizerParamGroup& group);

  // torch::save and torch::load. Saved are the groups' options, and each parameter's step and states, copied
  // out of the pages; a run that loads them goes on bit for bit. load() keeps the width of each loaded state
  // and drops the earlier ones; when it throws because the archive does not fit, nothing has changed.
  void save(torch::serialize::OutputArchive& archive) const override;
  void load(torch::serialize::InputArchive& archive) override;

  // A parameter's step and states, copied out of its pages. step 0 and undefined tensors: it has none yet.
  [[nodiscard]] PagedParamState states_of(const torch::Tensor& parameter) const;

  // Makes the arenas now, so that a refusal (quota, budget) comes before the first step.
  void prepare();
  // Waits until the steps on GPUs are done and throws what they found.
  void synchronize();
  // Gives the pages back. The next step starts from fresh states.
  void drop();
  // The sessions that hold the states, once they are made: for usage, hints of phase, prefetch.
  [[nodiscard]] std::vector<std::shared_ptr<client::Session>> sessions() const;
  // Of the arenas, for Session::Prefetch.
  [[nodiscard]] std::vector<std::uint64_t> extents() const;
  // Under which the daemon keeps the states.
  [[nodiscard]] const std::string& name() const;

 protected:
  PagedOptimizer(const OptimizerKind& kind, const std::vector<torch::optim::OptimizerParamGroup>& groups,
                 std::unique_ptr<torch::optim::OptimizerOptions> defaults, const PagingOptions& paging);

 private:
  struct Core;

  [[nodiscard]] std::string DescribeParameter(const torch::Tensor& parameter) const;
  // Of a parameter; null when it has none.
  [[nodiscard]] PagedParamState* FindState(const torch::Tensor& parameter) const;
  PagedParamState& StateOf(const torch::Tensor& parameter);
  // Makes arenas for parameters that have none and may get a gradient.
  void Admit();
  // Uploads loaded states.
  void Flush();
  // The requests of this step, one for each arena.
  std::vector<StepRequest> Gather();
  void Submit(std::vector<StepRequest>& requests);
  // Throws what steps on GPUs found since the last look.
  void RaiseFailures(bool wait) const;
  void ReportNonFinite(const std::string& what) const;

  std::unique_ptr<Core> core_;
};

}  // namespace bitpager::optim
