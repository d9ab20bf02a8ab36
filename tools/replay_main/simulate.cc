#include "tools/replay_main/simulate.h"

#include <algorithm>
#include <deque>
#include <unordered_map>

namespace bitpager::replay {
namespace {

using paging::Actions;
using wire::Code;
using wire::Status;

class Simulator {
 public:
  Simulator(const Trace& trace, const SimulatorConfig& config)
      : trace_(trace), config_(config), pager_(ConfigOf(trace, config)) {}

  Status Admit();
  Status Run();
  [[nodiscard]] Outcome Result() const;

 private:
  static paging::PagerConfig ConfigOf(const Trace& trace, const SimulatorConfig& config) {
    paging::PagerConfig c;
    c.page_bytes = trace.page_bytes;
    c.device_frames = config.frames;
    c.host_frames = trace.pages();
    c.window_pages = config.window_pages;
    c.windows_in_flight = config.windows_in_flight;
    c.policy = config.policy;
    return c;
  }
  static wire::JobId IdOf(std::size_t job) { return {job + 1}; }
  [[nodiscard]] Status SubmitNext(std::uint32_t job);
  [[nodiscard]] Status Pump();
  void Tick();
  void TickCompute();

  const Trace& trace_;
  SimulatorConfig config_;
  paging::Pager pager_;
  std::vector<wire::ExtentId> extents_;                           // by trace index
  std::unordered_map<std::uint64_t, std::uint32_t> base_;         // extent -> number of its first page
  std::vector<std::uint32_t> job_of_page_;                        // by page number
  std::vector<std::deque<const TraceRequest*>> waiting_;          // by job
  std::unordered_map<std::uint64_t, const TraceRequest*> asked_;  // by request
  std::deque<paging::LoadAction> loads_;
  std::deque<paging::StoreAction> stores_;
  std::deque<paging::RunAction> runs_;
  std::size_t computed_ = 0;  // pages of runs_.front()
  std::vector<Visit> visits_;
  std::vector<std::uint64_t> loaded_at_;  // pages loaded before each visit
  Moves moved_;
};

Status Simulator::Admit() {
  waiting_.resize(trace_.jobs.size());
  for (std::size_t job = 0; job < trace_.jobs.size(); ++job) {
    if (Status s = pager_.AddJob(IdOf(job), {trace_.jobs[job]}); !s.ok()) return s;
  }
  std::uint64_t pages = 0;
  for (const TraceExtent& extent : trace_.extents) {
    auto id = pager_.AddExtent({IdOf(extent.job), wire::ExtentKind::kOptimizerState, extent.pages, true, 0});
    if (!id.ok()) return id.status();
    extents_.push_back(*id);
    base_[id->value] = static_cast<std::uint32_t>(pages);
    pages += extent.pages;
    job_of_page_.resize(pages, extent.job);
  }
  for (const TraceRequest& request : trace_.requests) waiting_[request.job].push_back(&request);
  for (std::uint32_t job = 0; job < waiting_.size(); ++job) {
    if (Status s = SubmitNext(job); !s.ok()) return s;
  }
  return {};
}

Status Simulator::SubmitNext(std::uint32_t job) {
  if (waiting_[job].empty()) return {};
  const TraceRequest* request = waiting_[job].front();
  waiting_[job].pop_front();
  auto id = pager_.Submit(
      {IdOf(job), request->access, {{extents_[request->extent], request->first, request->count}}, false});
  if (!id.ok()) return id.status();
  asked_[id->value] = request;
  return {};
}

Status Simulator::Pump() {
  Actions actions;
  pager_.Pump(actions);
  moved_.out += actions.stores.size();
  for (const paging::LoadAction& load : actions.loads) moved_.in += load.zero ? 0 : 1;
  loads_.insert(loads_.end(), actions.loads.begin(), actions.loads.end());
  stores_.insert(stores_.end(), actions.stores.begin(), actions.stores.end());
  for (paging::RunAction& run : actions.runs) runs_.push_back(std::move(run));
  for (const wire::RequestId id : actions.finished) {
    const std::uint32_t job = asked_[id.value]->job;
    asked_.erase(id.value);
    if (Status s = SubmitNext(job); !s.ok()) return s;
  }
  return {};
}

void Simulator::TickCompute() {
  if (runs_.empty()) return;
  const paging::RunAction& run = runs_.front();
  const paging::PageRef page = run.pages[computed_].page;
  const std::uint64_t number = base_[page.extent.value] + page.index;
  visits_.push_back({static_cast<std::uint32_t>(number), asked_[run.request.value]->access});
  loaded_at_.push_back(moved_.in);
  if (++computed_ < run.pages.size()) return;
  computed_ = 0;
  pager_.RunDone(run.request, run.window);
  runs_.pop_front();
}

void Simulator::Tick() {
  while (!loads_.empty()) {
    const bool copies = !loads_.front().zero;
    pager_.LoadDone(loads_.front().page);
    loads_.pop_front();
    if (copies) break;
  }
  if (!stores_.empty()) {
    pager_.StoreDone(stores_.front().page);
    stores_.pop_front();
  }
  TickCompute();
}

Status Simulator::Run() {
  for (int quiet = 0; quiet < 2;) {
    if (Status s = Pump(); !s.ok()) return s;
    quiet = loads_.empty() && stores_.empty() && runs_.empty() ? quiet + 1 : 0;
    Tick();
  }
  pager_.CheckInvariants();
  if (!asked_.empty()) return {Code::kInternal, "the pager stopped before the trace was done"};
  return {};
}

Outcome Simulator::Result() const {
  Outcome outcome;
  outcome.moved = moved_;
  for (std::size_t job = 0; job < trace_.jobs.size(); ++job) {
    std::vector<Visit> visits;
    for (const Visit& visit : visits_) {
      if (job_of_page_[visit.page] == job) visits.push_back(visit);
    }
    const Moves least = Optimum(visits, pager_.Usage(IdOf(job))->share_frames);
    outcome.optimum.in += least.in;
    outcome.optimum.out += least.out;
  }
  outcome.visits = visits_.size();
  outcome.moved_in_last = moved_.in - loaded_at_[visits_.size() - visits_.size() / 10 - 1];
  return outcome;
}

}  // namespace

std::uint32_t WindowThatFits(const Trace& trace, std::uint64_t frames) {
  const std::uint64_t jobs = std::max<std::uint64_t>(1, trace.jobs.size());
  const std::uint64_t longest = SimulatorConfig{}.window_pages;
  return static_cast<std::uint32_t>(std::clamp<std::uint64_t>(frames / jobs, 1, longest));
}

wire::Result<Outcome> Simulate(const Trace& trace, const SimulatorConfig& config) {
  Simulator simulator(trace, config);
  if (Status s = simulator.Admit(); !s.ok()) return s;
  if (Status s = simulator.Run(); !s.ok()) return s;
  return simulator.Result();
}

}  // namespace bitpager::replay
