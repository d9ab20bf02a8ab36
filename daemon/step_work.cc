// Optimizer steps and moves of optimizer states: admission, and launches over resident windows.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>

#include "daemon/admission.h"
#include "optim8bit/hyper.h"

namespace bitpager::daemon {
namespace {

using wire::Code;
using wire::Status;

// A tensor of a request with its units in the arena.
struct TensorRun {
  std::uint32_t tensor = 0;
  std::uint32_t hyper = 0;
  std::uint64_t first_unit = 0;
  std::uint64_t end_unit = 0;
  std::uint64_t elements = 0;
  std::byte* param = nullptr;
  const std::byte* grad = nullptr;
  wire::DType param_dtype = wire::DType::kF32;
  wire::DType grad_dtype = wire::DType::kF32;
};

// Page ranges that cover the units of ascending runs, each page once.
std::vector<paging::PageRange> Cover(wire::ExtentId extent, const std::vector<TensorRun>& runs,
                                     std::uint32_t units_per_page) {
  std::vector<paging::PageRange> ranges;
  for (const TensorRun& run : runs) {
    const std::uint64_t first = run.first_unit / units_per_page;
    const std::uint64_t end = (run.end_unit + units_per_page - 1) / units_per_page;
    if (!ranges.empty() && first <= ranges.back().first + ranges.back().count) {
      paging::PageRange& last = ranges.back();
      last.count = std::max(last.count, end - last.first);
    } else {
      ranges.push_back({extent, first, end - first});
    }
  }
  return ranges;
}

// Cuts ascending runs at page borders, page by page; pages come ascending too.
class SpanCursor {
 public:
  SpanCursor(const std::vector<TensorRun>& runs, std::uint32_t units_per_page)
      : runs_(runs), units_per_page_(units_per_page) {}

  void Append(const ResidentPage& page, std::vector<kernels::StepSpan>& out) {
    const std::uint64_t page_first = page.index * units_per_page_;
    const std::uint64_t page_end = page_first + units_per_page_;
    while (next_ < runs_.size() && runs_[next_].end_unit <= page_first) ++next_;
    for (std::size_t i = next_; i < runs_.size() && runs_[i].first_unit < page_end; ++i) {
      out.push_back(Cut(runs_[i], page, page_first, page_end));
    }
  }

 private:
  static kernels::StepSpan Cut(const TensorRun& run, const ResidentPage& page, std::uint64_t page_first,
                               std::uint64_t page_end) {
    const std::uint64_t first = std::max(run.first_unit, page_first);
    const std::uint64_t end = std::min(run.end_unit, page_end);
    const std::uint64_t element = (first - run.first_unit) * wire::kStateBlock;
    kernels::StepSpan span;
    span.page = page.at;
    span.first_unit = static_cast<std::uint32_t>(first - page_first);
    span.units = static_cast<std::uint32_t>(end - first);
    span.elements = std::min<std::uint64_t>((end - first) * wire::kStateBlock, run.elements - element);
    if (run.param != nullptr) span.param = run.param + element * wire::DTypeBytes(run.param_dtype);
    if (run.grad != nullptr) span.grad = run.grad + element * wire::DTypeBytes(run.grad_dtype);
    span.tensor = run.tensor;
    span.hyper = run.hyper;
    span.param_dtype = run.param_dtype;
    span.grad_dtype = run.grad_dtype;
    span.zero_page = page.zero;
    return span;
  }

  const std::vector<TensorRun>& runs_;
  std::uint32_t units_per_page_;
  std::size_t next_ = 0;
};

TensorRun RunOf(const Arena& arena, std::uint32_t tensor) {
  TensorRun run;
  run.tensor = tensor;
  run.first_unit = arena.first_unit[tensor];
  run.end_unit = arena.first_unit[tensor + 1];
  run.elements = arena.elements[tensor];
  return run;
}

class StepWork final : public Work {
 public:
  StepWork(Extent& extent, Scratch report, wire::OnNonFinite on_nonfinite, std::uint64_t step)
      : extent_(extent), report_(std::move(report)), on_nonfinite_(on_nonfinite), step_(step) {
    *report_at() = kernels::StepReport{};
  }

  void Reserve(std::size_t tensors) { runs_.reserve(tensors); }
  void Add(TensorRun run, BufferRef param, BufferRef grad) {
    runs_.push_back(run);
    Hold(std::move(param));
    Hold(std::move(grad));
  }
  void SetHypers(std::vector<optim8bit::Hyper> hypers) { hypers_ = std::move(hypers); }

  [[nodiscard]] paging::RequestSpec Pages() const override {
    return {extent_.job, paging::Access::kUpdate,
            Cover(extent_.id, runs_, extent_.arena()->layout.units_per_page), false};
  }

  kernels::Event Launch(kernels::Device& device, std::span<const ResidentPage> window) override {
    kernels::StepArgs args;
    args.layout = extent_.arena()->layout;
    args.on_nonfinite = on_nonfinite_;
    args.hypers = hypers_;
    args.report = report_at();
    for (const ResidentPage& page : window) cursor_.Append(page, args.spans);
    return device.Step(std::move(args));
  }

  wire::Status Finish(wire::CompletionRecord& completion) override {
    extent_.arena()->applied_step = std::max(extent_.arena()->applied_step, step_);
    const kernels::StepReport& report = *report_at();
    completion.values[0] = report.nonfinite_blocks;
    completion.values[1] = report.first_tensor;
    if (report.nonfinite_blocks == 0) return {};
    return {Code::kNonFinite, std::to_string(report.nonfinite_blocks) +
                                  " blocks with NaN or inf in the gradient were left untouched, the first in "
                                  "tensor " +
                                  std::to_string(report.first_tensor) + "; all other blocks are updated."};
  }
  void Abandon() override { extent_.arena()->torn = true; }

 private:
  [[nodiscard]] kernels::StepReport* report_at() const {
    return reinterpret_cast<kernels::StepReport*>(report_.get());
  }

  Extent& extent_;
  Scratch report_;
  wire::OnNonFinite on_nonfinite_;
  std::uint64_t step_;
  std::vector<TensorRun> runs_;
  std::vector<optim8bit::Hyper> hypers_;
  SpanCursor cursor_{runs_, extent_.arena()->layout.units_per_page};
};

// The request's table, copied out of client memory.
struct StepTable {
  std::vector<wire::GroupRecord> groups;
  std::vector<wire::StepEntry> entries;
};

wire::Result<StepTable> CopyTable(const SessionScope& scope, const wire::StepBody& body,
                                  std::uint64_t tensors) {
  if (body.entries == 0 || body.entries > tensors) {
    return Status(Code::kInvalidArgument, "a step of " + std::to_string(body.entries) +
                                              " tensors in an arena of " + std::to_string(tensors) +
                                              ": give 1 to as many as the arena has.");
  }
  if (body.groups == 0 || body.groups > body.entries) {
    return Status(Code::kInvalidArgument, std::to_string(body.groups) + " parameter groups for " +
                                              std::to_string(body.entries) +
                                              " tensors: give 1 to as many groups as tensors.");
  }
  const std::uint64_t group_bytes = std::uint64_t{body.groups} * sizeof(wire::GroupRecord);
  const std::uint64_t entry_bytes = std::uint64_t{body.entries} * sizeof(wire::StepEntry);
  wire::Result<Place> place = Resolve(scope, body.table, group_bytes + entry_bytes, 8, false, "step table");
  if (!place.ok()) return place.status();
  StepTable table;
  table.groups.resize(body.groups);
  table.entries.resize(body.entries);
  std::memcpy(table.groups.data(), place->at, group_bytes);
  std::memcpy(static_cast<void*>(table.entries.data()), place->at + group_bytes, entry_bytes);
  return table;
}

Status CheckGroup(const wire::GroupRecord& g, std::size_t index) {
  const bool finite = std::isfinite(g.lr) && std::isfinite(g.beta1) && std::isfinite(g.beta2) &&
                      std::isfinite(g.eps) && std::isfinite(g.weight_decay);
  const bool ranges = g.beta1 >= 0 && g.beta1 < 1 && g.beta2 >= 0 && g.beta2 < 1 && g.eps >= 0;
  if (finite && ranges) return {};
  return {Code::kInvalidArgument,
          "parameter group " + std::to_string(index) +
              ": lr and weight_decay must be finite, betas in [0, 1), eps not negative."};
}

Status CheckEntry(const wire::StepEntry& e, const Arena& arena, std::uint32_t groups, std::int64_t previous) {
  if (e.tensor >= arena.elements.size() || std::int64_t{e.tensor} <= previous) {
    return {Code::kInvalidArgument, "tensor " + std::to_string(e.tensor) +
                                        " in a step: indices must ascend and stay below " +
                                        std::to_string(arena.elements.size()) + "."};
  }
  if (e.group >= groups || e.step == 0) {
    return {Code::kInvalidArgument, "tensor " + std::to_string(e.tensor) + " in a step: group " +
                                        std::to_string(e.group) + " of " + std::to_string(groups) +
                                        ", step " + std::to_string(e.step) + " (steps count from 1)."};
  }
  if (!IsFloat(e.param_dtype) || !IsFloat(e.grad_dtype)) {
    return {Code::kInvalidArgument, "tensor " + std::to_string(e.tensor) +
                                        " in a step: parameter and gradient must be fp32, fp16 or bf16."};
  }
  return {};
}

// Hyperparameters of each (group, step) pair that occurs, derived once.
class HyperTable {
 public:
  HyperTable(wire::Rule rule, const std::vector<wire::GroupRecord>& groups) : rule_(rule), groups_(groups) {}
  std::uint32_t IndexOf(std::uint32_t group, std::uint64_t step) {
    if (!hypers_.empty() && last_ == std::pair{group, step}) return last_index_;
    last_ = {group, step};
    const auto [it, fresh] = index_.try_emplace(last_, static_cast<std::uint32_t>(hypers_.size()));
    if (fresh) {
      const wire::GroupRecord& g = groups_[group];
      hypers_.push_back(optim8bit::DeriveHyper(rule_, {g.lr, g.beta1, g.beta2, g.eps, g.weight_decay}, step));
    }
    return last_index_ = it->second;
  }
  std::vector<optim8bit::Hyper> Take() { return std::move(hypers_); }

 private:
  wire::Rule rule_;
  const std::vector<wire::GroupRecord>& groups_;
  std::map<std::pair<std::uint32_t, std::uint64_t>, std::uint32_t> index_;
  std::pair<std::uint32_t, std::uint64_t> last_{0, 0};
  std::uint32_t last_index_ = 0;
  std::vector<optim8bit::Hyper> hypers_;
};

Status AddEntries(const SessionScope& scope, const StepTable& table, const Arena& arena, StepWork& work) {
  HyperTable hypers(arena.layout.rule, table.groups);
  work.Reserve(table.entries.size());
  std::int64_t previous = -1;
  for (const wire::StepEntry& e : table.entries) {
    Status fine = CheckEntry(e, arena, static_cast<std::uint32_t>(table.groups.size()), previous);
    if (!fine.ok()) return fine;
    previous = e.tensor;
    TensorRun run = RunOf(arena, e.tensor);
    const std::uint64_t param_size = wire::DTypeBytes(e.param_dtype);
    const std::uint64_t grad_size = wire::DTypeBytes(e.grad_dtype);
    wire::Result<Place> param =
        Resolve(scope, e.param, run.elements * param_size, param_size, true, "parameter of a step");
    if (!param.ok()) return param.status();
    wire::Result<Place> grad =
        Resolve(scope, e.grad, run.elements * grad_size, grad_size, false, "gradient of a step");
    if (!grad.ok()) return grad.status();
    run.param = param->at;
    run.grad = grad->at;
    run.param_dtype = e.param_dtype;
    run.grad_dtype = e.grad_dtype;
    run.hyper = hypers.IndexOf(e.group, e.step);
    work.Add(run, std::move(param->buffer), std::move(grad->buffer));
  }
  work.SetHypers(hypers.Take());
  return {};
}

}  // namespace

AdmitResult AdmitStep(const SessionScope& scope, const wire::StepBody& body, kernels::Device& device) {
  wire::Result<Extent*> extent = FindArena(scope, body.extent);
  if (!extent.ok()) return extent.status();
  const Arena& arena = *(*extent)->arena();
  if (body.on_nonfinite > wire::OnNonFinite::kPropagate) {
    return Status(Code::kInvalidArgument, "on_nonfinite is neither skip nor propagate.");
  }
  if (arena.torn) {
    return Status(Code::kDeviceFault,
                  "the states of this arena were left half written by a device fault. "
                  "Hint: load a checkpoint.");
  }
  wire::Result<StepTable> table = CopyTable(scope, body, arena.elements.size());
  if (!table.ok()) return table.status();
  for (std::size_t i = 0; i < table->groups.size(); ++i) {
    Status fine = CheckGroup(table->groups[i], i);
    if (!fine.ok()) return fine;
  }
  Scratch report(device, sizeof(kernels::StepReport));
  if (!report) return Status(Code::kOutOfMemory, "no memory for the report of a step.");
  auto work = std::make_unique<StepWork>(**extent, std::move(report), body.on_nonfinite, body.step);
  Status fine = AddEntries(scope, *table, arena, *work);
  if (!fine.ok()) return fine;
  return std::unique_ptr<Work>(std::move(work));
}

namespace {

class StatesWork final : public Work {
 public:
  StatesWork(Extent& extent, std::uint32_t tensor, bool into_pages, std::uint64_t step)
      : extent_(extent), runs_{RunOf(*extent.arena(), tensor)}, into_pages_(into_pages), step_(step) {}

  void SetPlane(int k, Place plane) {
    planes_[k] = plane.at;
    Hold(std::move(plane.buffer));
  }
  void SetAbsmax(int k, Place absmax) {
    absmax_[k] = reinterpret_cast<float*>(absmax.at);
    Hold(std::move(absmax.buffer));
  }

  [[nodiscard]] paging::RequestSpec Pages() const override {
    return {extent_.job, into_pages_ ? paging::Access::kUpdate : paging::Access::kRead,
            Cover(extent_.id, runs_, extent_.arena()->layout.units_per_page), false};
  }

  kernels::Event Launch(kernels::Device& device, std::span<const ResidentPage> window) override {
    kernels::StatePlanesArgs args;
    args.layout = extent_.arena()->layout;
    args.into_pages = into_pages_;
    for (const ResidentPage& page : window) cursor_.Append(page, args.spans);
    // Planes are of the whole tensor; the op takes the part that belongs to its spans.
    const std::uint64_t element = done_elements_;
    const std::uint64_t size = args.layout.bits == wire::StateBits::k8 ? 1 : sizeof(float);
    for (int k = 0; k < 2; ++k) {
      if (planes_[k] != nullptr) args.planes[k] = planes_[k] + element * size;
      if (absmax_[k] != nullptr) args.absmax[k] = absmax_[k] + element / wire::kStateBlock;
    }
    for (const kernels::StepSpan& span : args.spans) done_elements_ += span.elements;
    return device.MoveStates(std::move(args));
  }

  wire::Status Finish(wire::CompletionRecord&) override {
    if (into_pages_) {
      extent_.arena()->applied_step = step_;
      extent_.arena()->torn = false;
    }
    return {};
  }
  void Abandon() override {
    if (into_pages_) extent_.arena()->torn = true;
  }

 private:
  Extent& extent_;
  std::vector<TensorRun> runs_;
  bool into_pages_;
  std::uint64_t step_;
  std::byte* planes_[2] = {nullptr, nullptr};
  float* absmax_[2] = {nullptr, nullptr};
  std::uint64_t done_elements_ = 0;
  SpanCursor cursor_{runs_, extent_.arena()->layout.units_per_page};
};

}  // namespace

AdmitResult AdmitMoveStates(const SessionScope& scope, const wire::StatesBody& body) {
  wire::Result<Extent*> extent = FindArena(scope, body.extent);
  if (!extent.ok()) return extent.status();
  const Arena& arena = *(*extent)->arena();
  if (body.tensor >= arena.elements.size() || body.into_pages > 1) {
    return Status(Code::kInvalidArgument, "tensor " + std::to_string(body.tensor) + " of an arena of " +
                                              std::to_string(arena.elements.size()) + " tensors.");
  }
  const bool eight = arena.layout.bits == wire::StateBits::k8;
  const std::uint64_t n = arena.elements[body.tensor];
  const bool into = body.into_pages == 1;
  auto work = std::make_unique<StatesWork>(**extent, body.tensor, into, body.step);
  for (std::uint32_t k = 0; k < arena.layout.states; ++k) {
    wire::Result<Place> plane =
        Resolve(scope, body.planes[k], eight ? n : n * 4, eight ? 1 : 4, !into, "state plane");
    if (!plane.ok()) return plane.status();
    work->SetPlane(static_cast<int>(k), std::move(*plane));
    if (!eight) continue;
    wire::Result<Place> absmax =
        Resolve(scope, body.absmax[k], optim8bit::UnitsOf(n) * 4, 4, !into, "absmax plane");
    if (!absmax.ok()) return absmax.status();
    work->SetAbsmax(static_cast<int>(k), std::move(*absmax));
  }
  return std::unique_ptr<Work>(std::move(work));
}

}  // namespace bitpager::daemon
