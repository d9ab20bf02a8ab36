// Which arena holds the states of which parameter. One caller at a time.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "client/arena.h"
#include "client/torch/options.h"
#include "client/torch/shared_storage.h"
#include "client/torch/tensors.h"

namespace bitpager::optim {

// One arena, and whose states are in it, in its order.
struct Home {
  std::shared_ptr<client::Session> session;
  SharedStorages* storages = nullptr;  // null on a GPU
  std::unique_ptr<client::Arena> arena;
  std::int64_t bits = 8;
  std::vector<at::Tensor> parameters;
  std::vector<std::uint64_t> elements;
};

struct Slot {
  Home* home = nullptr;
  std::uint32_t tensor = 0;  // its index there
};

class StateArenas {
 public:
  // `name`: of the arenas; those made by later admissions get "+1", "+2" ..., those of further devices "@1".
  StateArenas(wire::Rule rule, std::string name, bool evictable, std::shared_ptr<client::Session> session)
      : rule_(rule), name_(std::move(name)), evictable_(evictable), session_(std::move(session)) {}
  ~StateArenas() { Drop(); }
  StateArenas(const StateArenas&) = delete;
  StateArenas& operator=(const StateArenas&) = delete;

  struct Wanted {
    at::Tensor parameter;
    std::int64_t bits;
  };
  // Makes arenas for parameters that have none, one for each device and width. All or nothing. Error: what
  // the daemon says (quota, budget), a parameter that cannot be stepped, two over the same memory.
  void Admit(const std::vector<Wanted>& wanted, const Describe& describe);
  // Null: it has no states here.
  [[nodiscard]] const Slot* Find(const at::Tensor& parameter) const;
  // Gives all pages back and forgets every slot. What a lost daemon or a forked child cannot give back is
  // forgotten too.
  void Drop();

  // Fills the parameter's part of a step: where its memory is now.
  void Place(const Slot& slot, const at::Tensor& parameter, const Describe& describe,
             client::StepTensor& into);
  // Copies a parameter's states out of its pages; `step` is not set.
  [[nodiscard]] PagedParamState Read(const Slot& slot) const;
  // Copies them in; the arena is at `step` of the optimizer then.
  void Write(const Slot& slot, const PagedParamState& state, std::uint64_t step);

  [[nodiscard]] wire::Rule rule() const { return rule_; }
  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] const std::vector<std::unique_ptr<Home>>& homes() const { return homes_; }
  // The sessions of those homes, each once.
  [[nodiscard]] std::vector<std::shared_ptr<client::Session>> Sessions() const;

 private:
  std::unique_ptr<Home> MakeHome(std::shared_ptr<client::Session> session, const std::string& name,
                                 std::int64_t bits, std::vector<at::Tensor> parameters);
  void RequireApart(const std::vector<at::Tensor>& fresh, const Describe& describe) const;

  const wire::Rule rule_;
  const std::string name_;
  const bool evictable_;
  const std::shared_ptr<client::Session> session_;  // null: the default ones
  std::vector<std::unique_ptr<Home>> homes_;
  std::unordered_map<const c10::TensorImpl*, Slot> slots_;
  std::map<const client::Session*, std::unique_ptr<SharedStorages>> storages_;
  std::uint64_t generation_ = 0;
  bool warned_ = false;
};

}  // namespace bitpager::optim
