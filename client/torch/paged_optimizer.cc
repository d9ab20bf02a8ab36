#include "client/torch/paged_optimizer.h"

#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <sstream>
#include <unordered_set>
#include <utility>

#include "client/torch/arenas.h"
#include "client/torch/sessions.h"
#include "client/torch/step_request.h"
#include "client/torch/tensors.h"

namespace bitpager::optim {
namespace {

using torch::optim::OptimizerParamGroup;
using wire::Code;

constexpr std::size_t kNamesShown = 8;

// Counted in the process, so that optimizers made in the same order have the same names in every run.
std::string NameFor(const OptimizerKind& kind, const std::string& wanted) {
  static std::atomic<std::uint64_t> count{0};
  if (!wanted.empty()) return wanted;
  return std::string("cxx-") + kind.name + "-" + std::to_string(count++);
}

// Loading is undone by this unless it is told to keep: states and options as they were.
class Rollback {
 public:
  using States = decltype(std::declval<torch::optim::Optimizer&>().state());

  explicit Rollback(torch::optim::Optimizer& optimizer)
      : optimizer_(optimizer), states_(std::exchange(optimizer.state(), {})) {
    for (const OptimizerParamGroup& group : optimizer.param_groups()) {
      options_.push_back(group.options().clone());
    }
  }
  ~Rollback() {
    if (kept_) return;
    optimizer_.state() = std::move(states_);
    for (std::size_t i = 0; i < options_.size(); ++i) {
      optimizer_.param_groups()[i].set_options(std::move(options_[i]));
    }
  }
  Rollback(const Rollback&) = delete;
  Rollback& operator=(const Rollback&) = delete;
  void Keep() { kept_ = true; }

 private:
  torch::optim::Optimizer& optimizer_;
  std::remove_reference_t<States> states_;
  std::vector<std::unique_ptr<torch::optim::OptimizerOptions>> options_;
  bool kept_ = false;
};

void Forget(PagedParamState& state) {
  state.state1(torch::Tensor()).state2(torch::Tensor()).absmax1(torch::Tensor()).absmax2(torch::Tensor());
}

}  // namespace

// A state whose tensors are defined waits for its arena: loaded, and not yet in pages.
struct PagedOptimizer::Core {
  Core(const OptimizerKind& of, const PagingOptions& paging)
      : kind(of),
        on_nonfinite(paging.on_nonfinite()),
        arenas(of.rule, NameFor(of, paging.name()), paging.evictable(), paging.session()) {}

  const OptimizerKind& kind;
  const OnNonFinite on_nonfinite;
  StateArenas arenas;
  std::uint64_t steps = 0;  // of the optimizer
  bool pending = false;     // there are states that wait
};

PagedOptimizer::PagedOptimizer(const OptimizerKind& kind, const std::vector<OptimizerParamGroup>& groups,
                               std::unique_ptr<torch::optim::OptimizerOptions> defaults,
                               const PagingOptions& paging)
    : Optimizer(std::vector<OptimizerParamGroup>{}, std::move(defaults)),
      core_(std::make_unique<Core>(kind, paging)) {
  (void)kind.merge(*defaults_, *defaults_);  // checks them
  for (const OptimizerParamGroup& group : groups) add_param_group(group);
}

PagedOptimizer::~PagedOptimizer() = default;
PagedOptimizer::PagedOptimizer(PagedOptimizer&&) noexcept = default;

void PagedOptimizer::add_param_group(const OptimizerParamGroup& group) {
  std::unique_ptr<torch::optim::OptimizerOptions> options =
      group.has_options() ? core_->kind.merge(*defaults_, group.options()) : defaults_->clone();
  std::unordered_set<const c10::TensorImpl*> known;
  for (const OptimizerParamGroup& other : param_groups_) {
    for (const torch::Tensor& parameter : other.params()) known.insert(parameter.unsafeGetTensorImpl());
  }
  for (std::size_t i = 0; i < group.params().size(); ++i) {
    const torch::Tensor& parameter = group.params()[i];
    if (!parameter.defined()) Refuse("parameter " + std::to_string(i) + " of an added group is undefined");
    if (known.insert(parameter.unsafeGetTensorImpl()).second) continue;
    Refuse("parameter " + std::to_string(i) +
           " of an added group is in the optimizer already. Hint: name each parameter in one group, once");
  }
  Optimizer::add_param_group(OptimizerParamGroup(group.params()));
  param_groups_.back().set_options(std::move(options));
}

torch::Tensor PagedOptimizer::step(LossClosure closure) {
  const c10::AutoGradMode no_grad(false);
  torch::Tensor loss;
  if (closure != nullptr) {
    const c10::AutoGradMode grad(true);
    loss = closure();
  }
  RaiseFailures(false);
  Flush();
  std::vector<StepRequest> requests = Gather();
  Submit(requests);
  return loss;
}

std::vector<StepRequest> PagedOptimizer::Gather() {
  StateArenas& arenas = core_->arenas;
  const Describe describe = [this](const torch::Tensor& p) { return DescribeParameter(p); };
  struct Stepped {
    torch::Tensor parameter;
    torch::Tensor gradient;
    std::uint32_t group;
  };
  std::vector<Stepped> stepped;
  bool all_known = true;
  for (std::uint32_t group = 0; group < param_groups_.size(); ++group) {
    for (const torch::Tensor& parameter : param_groups_[group].params()) {
      if (!parameter.grad().defined()) continue;
      stepped.push_back({parameter, GradientOf(parameter, describe), group});
      all_known = all_known && (parameter.numel() == 0 || arenas.Find(parameter) != nullptr);
    }
  }
  if (!all_known) Admit();
  std::vector<StepRequest> requests;
  for (const auto& home : arenas.homes()) requests.emplace_back(*home);
  for (Stepped& one : stepped) {
    const Slot* const slot = arenas.Find(one.parameter);
    PagedParamState& state = StateOf(one.parameter);
    if (slot == nullptr) {  // without elements
      state.step(state.step() + 1);
      continue;
    }
    client::StepTensor placed;
    arenas.Place(*slot, one.parameter, describe, placed);
    const auto request = std::find_if(requests.begin(), requests.end(),
                                      [&](const StepRequest& r) { return &r.home() == slot->home; });
    request->Add(placed, one.parameter, std::move(one.gradient), one.group, state);
  }
  return requests;
}

void PagedOptimizer::Submit(std::vector<StepRequest>& requests) {
  const auto is_asked = [](const StepRequest& request) { return !request.empty(); };
  if (std::none_of(requests.begin(), requests.end(), is_asked)) return;
  Core& core = *core_;
  std::vector<wire::GroupRecord> groups;
  groups.reserve(param_groups_.size());
  for (const OptimizerParamGroup& group : param_groups_) {
    groups.push_back(core.kind.settings_of(group.options()).record);
  }
  ++core.steps;
  std::uint64_t blocks = 0;
  bool is_applied = false;  // some of it
  bool is_unknown = false;  // what it found
  const client::Session* last = nullptr;
  for (StepRequest& request : requests) {
    if (request.empty()) continue;
    const client::Session* const session = &*request.home().session;
    const bool continues = std::exchange(last, session) == session;
    const wire::Status outcome = request.Submit(groups, core.steps, core.on_nonfinite, continues, blocks);
    const Code code = outcome.code();
    if (!outcome.ok() && code != Code::kNonFinite && code != Code::kInterrupted) {
      if (!is_applied && code != Code::kDaemonLost) --core.steps;
      throw Error(outcome);
    }
    is_applied = true;
    is_unknown = is_unknown || code == Code::kInterrupted;
  }
  if (blocks == 0 && (!is_unknown || core.on_nonfinite == OnNonFinite::kPropagate)) return;
  std::vector<std::string> names;
  for (const StepRequest& request : requests) {
    for (const torch::Tensor& parameter : request.NonFinite()) names.push_back(DescribeParameter(parameter));
  }
  if (blocks == 0 && names.empty()) return;
  std::ostringstream what;
  what << "step " << core.steps << ": " << (blocks == 0 ? "some" : std::to_string(blocks))
       << " blocks hold NaN or inf gradients, in ";
  for (std::size_t i = 0; i < names.size() && i < kNamesShown; ++i) what << (i == 0 ? "" : "; ") << names[i];
  if (names.size() > kNamesShown) what << " and " << names.size() - kNamesShown << " more";
  ReportNonFinite(what.str());
}

void PagedOptimizer::ReportNonFinite(const std::string& what) const {
  const std::string message =
      what +
      ". These blocks were left untouched; all other blocks are updated. Hint: check the loss, lower the "
      "learning rate or clip gradients; OnNonFinite::kWarn goes on, kPropagate lets the values through";
  if (core_->on_nonfinite != OnNonFinite::kWarn) throw Error(Code::kNonFinite, message);
  TORCH_WARN(message);
}

void PagedOptimizer::RaiseFailures(bool wait) const {
  for (const auto& session : core_->arenas.Sessions()) {
    if (!IsOnGpu(*session)) continue;
    wire::Status waited = wait ? session->Synchronize() : wire::Status();
    while (waited.code() == Code::kInterrupted) waited = session->Synchronize();
    Check(waited);
    for (;;) {
      const client::Finished finished = Take(session->TakeFinished());
      const wire::Status outcome = client::StatusOf(finished.record);
      if (outcome.ok()) break;
      const std::string step = "step " + std::to_string(finished.note.step);
      if (outcome.code() == Code::kNonFinite) {
        ReportNonFinite(step + ": " + std::to_string(finished.record.values[0]) +
                        " blocks hold NaN or inf gradients");
        continue;
      }
      throw Error(outcome.code(), step + ", submitted earlier, failed: " + outcome.message());
    }
  }
}

void PagedOptimizer::Admit() {
  Core& core = *core_;
  std::vector<StateArenas::Wanted> wanted;
  for (const OptimizerParamGroup& group : param_groups_) {
    const GroupSettings settings = core.kind.settings_of(group.options());
    for (const torch::Tensor& parameter : group.params()) {
      const PagedParamState* const state = FindState(parameter);
      const bool is_loaded = state != nullptr && state->state1().defined();
      if (!is_loaded && !parameter.requires_grad() && !parameter.grad().defined()) continue;
      const std::int64_t chosen = parameter.numel() < settings.min_8bit_size ? 32 : settings.bits;
      wanted.push_back({parameter, is_loaded ? BitsOf(*state) : chosen});
    }
  }
  core.arenas.Admit(wanted, [this](const torch::Tensor& p) { return DescribeParameter(p); });
}

void PagedOptimizer::Flush() {
  Core& core = *core_;
  if (!core.pending) return;
  Admit();
  for (const OptimizerParamGroup& group : param_groups_) {
    for (const torch::Tensor& parameter : group.params()) {
      PagedParamState* const state = FindState(parameter);
      if (state == nullptr || !state->state1().defined()) continue;
      if (const Slot* const slot = core.arenas.Find(parameter); slot != nullptr) {
        core.arenas.Write(*slot, *state, core.steps);
      }
      Forget(*state);
    }
  }
  core.pending = false;
}

void PagedOptimizer::save(torch::serialize::OutputArchive& archive) const {
  RaiseFailures(true);
  // The states are in state() for as long as they are written.
  struct Shown {
    std::vector<PagedParamState*> states;
    ~Shown() {
      for (PagedParamState* const state : states) Forget(*state);
    }
  } shown;
  for (const OptimizerParamGroup& group : param_groups_) {
    for (const torch::Tensor& parameter : group.params()) {
      PagedParamState* const state = FindState(parameter);
      const Slot* const slot = core_->arenas.Find(parameter);
      if (state == nullptr || slot == nullptr || state->state1().defined()) continue;
      const std::int64_t step = state->step();
      shown.states.push_back(state);
      *state = core_->arenas.Read(*slot);
      state->step(step);
    }
  }
  core_->kind.save(archive, *this);
}

void PagedOptimizer::load(torch::serialize::InputArchive& archive) {
  Core& core = *core_;
  Rollback rollback(*this);
  core.kind.load(archive, *this);
  std::uint64_t steps = 0;
  for (OptimizerParamGroup& group : param_groups_) {
    (void)core.kind.merge(group.options(), group.options());  // checks them
    for (const torch::Tensor& parameter : group.params()) {
      PagedParamState* const state = FindState(parameter);
      if (state == nullptr) continue;
      if (state->state1().defined()) {
        *state = CheckLoaded(*state, parameter, core.kind.rule, DescribeParameter(parameter));
      }
      if (state->step() < 0)
        Refuse("the loaded state of " + DescribeParameter(parameter) + " has a negative step");
      steps = std::max(steps, static_cast<std::uint64_t>(state->step()));
    }
  }
  rollback.Keep();
  core.arenas.Drop();
  core.steps = steps;
  core.pending = true;
  Flush();
}

PagedParamState PagedOptimizer::states_of(const torch::Tensor& parameter) const {
  RaiseFailures(true);
  const PagedParamState* const state = FindState(parameter);
  if (state == nullptr) return {};
  const Slot* const slot = core_->arenas.Find(parameter);
  if (slot == nullptr || state->state1().defined()) return *state;
  PagedParamState read = core_->arenas.Read(*slot);
  read.step(state->step());
  return read;
}

void PagedOptimizer::prepare() {
  Admit();
  Flush();
}

void PagedOptimizer::synchronize() {
  RaiseFailures(true);
}

void PagedOptimizer::drop() {
  core_->arenas.Drop();
  state_.clear();
  core_->steps = 0;
  core_->pending = false;
}

std::vector<std::shared_ptr<client::Session>> PagedOptimizer::sessions() const {
  return core_->arenas.Sessions();
}

std::vector<std::uint64_t> PagedOptimizer::extents() const {
  std::vector<std::uint64_t> ids;
  for (const auto& home : core_->arenas.homes()) ids.push_back(home->arena->id());
  return ids;
}

const std::string& PagedOptimizer::name() const {
  return core_->arenas.name();
}

std::string PagedOptimizer::DescribeParameter(const torch::Tensor& parameter) const {
  std::ostringstream text;
  for (std::size_t group = 0; group < param_groups_.size(); ++group) {
    const std::vector<torch::Tensor>& members = param_groups_[group].params();
    const auto found = std::find_if(members.begin(), members.end(),
                                    [&](const torch::Tensor& member) { return member.is_same(parameter); });
    if (found == members.end()) continue;
    text << "parameter " << found - members.begin() << " of group " << group << ", of shape ";
    break;
  }
  if (text.tellp() == 0) text << "a parameter of shape ";
  text << parameter.sizes();
  return text.str();
}

PagedParamState* PagedOptimizer::FindState(const torch::Tensor& parameter) const {
  const auto found = state_.find(parameter.unsafeGetTensorImpl());
  return found == state_.end() ? nullptr : static_cast<PagedParamState*>(found->second.get());
}

PagedParamState& PagedOptimizer::StateOf(const torch::Tensor& parameter) {
  auto& place = state_[parameter.unsafeGetTensorImpl()];
  if (place == nullptr) place = std::make_unique<PagedParamState>();
  return static_cast<PagedParamState&>(*place);
}

}  // namespace bitpager::optim
