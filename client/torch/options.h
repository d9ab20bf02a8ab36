// Options of the libtorch optimizers, and what they keep for each parameter. Plain values, any thread.
#pragma once

#include <torch/arg.h>
#include <torch/optim/optimizer.h>

#include <cstdint>
#include <memory>
#include <string>
#include <tuple>

#include "client/session.h"
#include "client/wire/records.h"
#include "client/wire/types.h"

namespace bitpager::optim {

// What a step does with blocks of 256 elements whose gradient holds NaN or inf.
enum class OnNonFinite : std::uint8_t {
  kThrow,      // leave them untouched, update all others, then throw Error with kNonFinite
  kWarn,       // the same with a warning
  kPropagate,  // let the values through
};

// Of the whole optimizer, beside the options of its groups. Not saved.
class PagingOptions {
  // Whose pages hold the states. Null: one for each device in use, shared by the process's optimizers and
  // connected at the first step (a private daemon starts where none serves).
  TORCH_ARG(std::shared_ptr<client::Session>, session);
  // Under which the daemon keeps the states; one optimizer of a job and rank has it at a time. Empty: the
  // class's name and a count.
  TORCH_ARG(std::string, name);
  TORCH_ARG(OnNonFinite, on_nonfinite) = OnNonFinite::kThrow;
  // false: pages stay on the device, or the first step is refused with the bytes missing.
  TORCH_ARG(bool, evictable) = true;
};

// Of one parameter group. optim_bits: 8 or 32, of the states; parameters with fewer than min_8bit_size
// elements have 32-bit states in any case. The rule is Adam's with decoupled decay: see PagedAdamW8bit.
template <typename Defaults>
struct PagedAdamOptions : public torch::optim::OptimizerCloneableOptions<PagedAdamOptions<Defaults>> {
  using betas_t = std::tuple<double, double>;
  PagedAdamOptions(double lr = 1e-3) : lr_(lr) {}  // NOLINT(google-explicit-constructor): as libtorch's
  TORCH_ARG(double, lr);
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.999);
  TORCH_ARG(double, eps) = 1e-8;
  TORCH_ARG(double, weight_decay) = Defaults::kWeightDecay;
  TORCH_ARG(std::int64_t, optim_bits) = 8;
  TORCH_ARG(std::int64_t, min_8bit_size) = 4096;

 public:
  // kInvalidArgument when the archive was written by another kind of optimizer.
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
  double get_lr() const override { return lr(); }
  void set_lr(const double value) override { lr(value); }
  friend bool operator==(const PagedAdamOptions& a, const PagedAdamOptions& b) {
    return std::tie(a.lr_, a.betas_, a.eps_, a.weight_decay_, a.optim_bits_, a.min_8bit_size_) ==
           std::tie(b.lr_, b.betas_, b.eps_, b.weight_decay_, b.optim_bits_, b.min_8bit_size_);
  }
};
struct AdamDefaults {
  static constexpr double kWeightDecay = 0.0;
};
struct AdamWDefaults {
  static constexpr double kWeightDecay = 1e-2;
};
using PagedAdam8bitOptions = PagedAdamOptions<AdamDefaults>;
using PagedAdamW8bitOptions = PagedAdamOptions<AdamWDefaults>;

// Of one parameter group; see PagedAdamOptions.
struct PagedLion8bitOptions : public torch::optim::OptimizerCloneableOptions<PagedLion8bitOptions> {
  using betas_t = std::tuple<double, double>;
  PagedLion8bitOptions(double lr = 1e-4) : lr_(lr) {}  // NOLINT(google-explicit-constructor): as libtorch's
  TORCH_ARG(double, lr);
  TORCH_ARG(betas_t, betas) = std::make_tuple(0.9, 0.99);
  TORCH_ARG(double, weight_decay) = 0.0;
  TORCH_ARG(std::int64_t, optim_bits) = 8;
  TORCH_ARG(std::int64_t, min_8bit_size) = 4096;

 public:
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
  double get_lr() const override { return lr(); }
  void set_lr(const double value) override { lr(value); }
  friend bool operator==(const PagedLion8bitOptions& a, const PagedLion8bitOptions& b) {
    return std::tie(a.lr_, a.betas_, a.weight_decay_, a.optim_bits_, a.min_8bit_size_) ==
           std::tie(b.lr_, b.betas_, b.weight_decay_, b.optim_bits_, b.min_8bit_size_);
  }
};

// Of one parameter. The tensors are undefined while the states are in pages: PagedOptimizer::states_of and
// save() read them out. Then they are on the CPU, with the parameter's shape and memory order. 8-bit: uint8
// codes into the dynamic map (signed for state1, unsigned for state2) and an fp32 absmax of every 256
// elements in memory order. 32-bit: fp32, without absmax. Lion has no state2. The names are bitsandbytes'.
struct PagedParamState : public torch::optim::OptimizerCloneableParamState<PagedParamState> {
  TORCH_ARG(std::int64_t, step) = 0;
  TORCH_ARG(torch::Tensor, state1);
  TORCH_ARG(torch::Tensor, state2);
  TORCH_ARG(torch::Tensor, absmax1);
  TORCH_ARG(torch::Tensor, absmax2);

 public:
  void serialize(torch::serialize::InputArchive& archive) override;
  void serialize(torch::serialize::OutputArchive& archive) const override;
};

// A group's options as a step takes them.
struct GroupSettings {
  wire::GroupRecord record;
  std::int64_t bits = 8;
  std::int64_t min_8bit_size = 4096;
};

// What tells the optimizers apart. All functions throw Error for options of another kind.
struct OptimizerKind {
  const char* name;
  wire::Rule rule;
  GroupSettings (*settings_of)(const torch::optim::OptimizerOptions& options);
  // `own` where it differs from what its type is made with, `defaults` elsewhere: how libtorch merges the
  // options of its own optimizers. Throws Error too for values outside their ranges.
  std::unique_ptr<torch::optim::OptimizerOptions> (*merge)(const torch::optim::OptimizerOptions& defaults,
                                                           const torch::optim::OptimizerOptions& own);
  void (*save)(torch::serialize::OutputArchive& archive, const torch::optim::Optimizer& optimizer);
  void (*load)(torch::serialize::InputArchive& archive, torch::optim::Optimizer& optimizer);
};
extern const OptimizerKind kPagedAdam8bit;
extern const OptimizerKind kPagedAdamW8bit;
extern const OptimizerKind kPagedLion8bit;

}  // namespace bitpager::optim
