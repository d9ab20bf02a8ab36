#include "daemon/tasks.h"

#include <algorithm>
#include <string>

#include "client/wire/text.h"

namespace bitpager::daemon {

using wire::Code;
using wire::Op;
using wire::Status;

namespace {

// As long as a client takes to prepare a step of many tensors.
constexpr std::uint64_t kExpectedNs = 1'000'000;

}  // namespace

int Tasks::Advance(Session& session) {
  int taken = 0;
  // A client that is gone has nobody to tell; a failed one still gets what it had ready applied.
  while (!session.active && session.HeadReady()) {
    const wire::RequestRecord record = session.pending.front();
    session.pending.pop_front();
    ++taken;
    ++core_.counters.requests;
    taken_ns_ = core_.clock.NowNs();
    Start(session, record);
  }
  if (!session.active) LookAhead(session);
  return taken;
}

// The client is ahead of its stream, so what it reads next is known while the stream still works.
void Tasks::LookAhead(Session& session) {
  if (session.closing || session.pending.empty()) return;
  const wire::RequestRecord& next = session.pending.front();
  if (next.op != Op::kDequantize || next.ticket == session.looked_ahead) return;
  const auto body = BodyOf<wire::DequantizeBody>(next);
  // What is wrong with it is told when its turn comes.
  const wire::Result<Extent*> weight = FindWeight(session, body.extent, true);
  const bool whole = next.version == wire::kWireVersion && weight.ok() && body.first_element == 0 &&
                     body.elements == (*weight)->weight()->elements;
  if (whole) {
    const Extent& extent = **weight;
    paging::RequestSpec spec{extent.job, paging::Access::kRead, {{extent.paged, 0, extent.pages}}, true};
    spec.sure = true;
    // Others of the job are at work, or another hint is: at the next look, unless it is its turn by then.
    const wire::Result<wire::RequestId> hint = core_.pager.Submit(spec);
    if (hint.status().code() == Code::kFull) return;
    touched_ = true;
  }
  session.looked_ahead = next.ticket;
}

void Tasks::Start(Session& session, const wire::RequestRecord& record) {
  wire::CompletionRecord completion;
  completion.ticket = record.ticket;
  completion.op = record.op;
  if (record.version != wire::kWireVersion) {
    Complete(session, completion,
             {Code::kUnknownVersion, "a record of version " + std::to_string(record.version) +
                                         "; this daemon speaks " + std::to_string(wire::kWireVersion) +
                                         ". Hint: use the client library that came with the daemon."},
             taken_ns_);
    return;
  }
  switch (record.op) {
    case Op::kNoop:
      return Complete(session, completion, {}, taken_ns_);
    case Op::kPrefetch:
      return Complete(session, completion, Prefetch(session, BodyOf<wire::PrefetchBody>(record)), taken_ns_);
    case Op::kPhase:
      return Complete(session, completion, SetPhase(session, BodyOf<wire::PhaseBody>(record)), taken_ns_);
    case Op::kExpect:
      ExpectStep();
      return Complete(session, completion, {}, taken_ns_);
    case Op::kLease:
      return StartLease(session, record);
    default:
      return StartWork(session, record);
  }
}

void Tasks::ExpectStep() {
  expected_until_ns_ = taken_ns_ + kExpectedNs;
  if (idle()) core_.device.ExpectKernels();
}

void Tasks::StartWork(Session& session, const wire::RequestRecord& record) {
  expected_until_ns_ = 0;
  AdmitResult admitted = Admit(session, record, core_.device);
  if (!admitted.ok()) {
    wire::CompletionRecord completion;
    completion.ticket = record.ticket;
    completion.op = record.op;
    return Complete(session, completion, admitted.status(), taken_ns_);
  }
  if (Extent* const filled = (*admitted)->Fills().extent; filled != nullptr) {
    if (Status begun = sharing_.BeginFill(*filled); !begun.ok()) {
      wire::CompletionRecord completion;
      completion.ticket = record.ticket;
      completion.op = record.op;
      return Complete(session, completion, begun, taken_ns_);
    }
  }
  ActiveTask& task = session.active.emplace();
  task.ticket = record.ticket;
  task.op = record.op;
  task.work = std::move(*admitted);
  task.continues = record.op == Op::kStep && BodyOf<wire::StepBody>(record).continues != 0;
  Submit(session, task.work->Pages());
}

void Tasks::StartLease(Session& session, const wire::RequestRecord& record) {
  wire::CompletionRecord completion;
  completion.ticket = record.ticket;
  completion.op = record.op;
  const std::uint64_t id = BodyOf<wire::LeaseBody>(record).extent;
  wire::Result<Extent*> extent = FindWeight(session, id, true);
  if (!extent.ok()) return Complete(session, completion, extent.status(), taken_ns_);
  Status granted = leases_.Grant(session, **extent, completion);
  if (granted.code() != Code::kNotResident) return Complete(session, completion, granted, taken_ns_);
  // Made resident by a read that does nothing, then tried once more.
  ActiveTask& task = session.active.emplace();
  task.ticket = record.ticket;
  task.op = record.op;
  task.lease_extent = (*extent)->id;
  Submit(session, {(*extent)->job, paging::Access::kRead, {{(*extent)->paged, 0, (*extent)->pages}}, false});
}

void Tasks::Submit(Session& session, const paging::RequestSpec& spec) {
  ActiveTask& task = *session.active;
  task.taken_ns = taken_ns_;
  task.admitted_ns = core_.clock.NowNs();
  task.idle_since_ns = task.admitted_ns;
  if (!spec.ranges.empty()) task.counted = spec.ranges.front().extent;
  const paging::Pager::Moves before = core_.pager.MovesWith(task.counted);
  task.loaded_before = before.loaded;
  task.stored_before = before.stored;
  wire::Result<wire::RequestId> request = core_.pager.Submit(spec);
  touched_ = true;
  if (request.ok()) {
    task.request = *request;
    requests_[*request] = session.identity().id;
    if (!core_.pager.Servable(*request)) {
      core_.room.AskAgain();  // the device refused memory before; by now it may have some
    }
    return;
  }
  wire::CompletionRecord completion;
  completion.ticket = task.ticket;
  completion.op = task.op;
  if (task.work != nullptr && task.work->Fills().extent != nullptr) {
    sharing_.AbandonFill(*task.work->Fills().extent);
  }
  session.active.reset();
  Complete(session, completion, request.status(), taken_ns_);
}

Status Tasks::Prefetch(Session& session, const wire::PrefetchBody& body) {
  const Extent* extent = session.FindExtent(wire::ExtentId{body.extent});
  if (extent == nullptr) {
    return {Code::kNotFound, "no extent " + std::to_string(body.extent) + " in this session to prefetch."};
  }
  if (body.first_page >= extent->pages || body.pages > extent->pages - body.first_page) {
    return {Code::kOutOfRange, "prefetch of pages past the end of extent " + std::to_string(body.extent) +
                                   " (" + std::to_string(extent->pages) + " pages)."};
  }
  const std::uint64_t pages = body.pages == 0 ? extent->pages - body.first_page : body.pages;
  wire::Result<wire::RequestId> request = core_.pager.Submit(
      {extent->job, paging::Access::kRead, {{extent->paged, body.first_page, pages}}, true});
  touched_ = true;
  return request.status();
}

Status Tasks::SetPhase(Session& session, const wire::PhaseBody& body) {
  if (body.phase > wire::Phase::kLeave) return {Code::kInvalidArgument, "unknown phase."};
  Job* job = core_.registry.FindJob(session.identity().job);
  job->phase = body.phase;
  if (body.phase == wire::Phase::kLeave) SendArenasAway(*job);
  // States are wanted at the step: as far as there is room, they come back while backward still computes.
  if (body.phase == wire::Phase::kBackward || body.phase == wire::Phase::kStep) PrefetchArenas(*job);
  return {};
}

void Tasks::PrefetchArenas(const Job& job) {
  paging::RequestSpec spec{job.id, paging::Access::kRead, {}, true};
  for (const wire::ExtentId id : job.extents) {
    const Extent* extent = core_.registry.FindExtent(id);
    if (extent->arena() != nullptr) spec.ranges.push_back({id, 0, extent->pages});
  }
  if (spec.ranges.empty()) return;
  // A hint: what cannot be prefetched now is loaded by the step.
  static_cast<void>(core_.pager.Submit(spec).ok());
  touched_ = true;
}

void Tasks::SendArenasAway(const Job& job) {
  for (const wire::ExtentId id : job.extents) {
    if (core_.registry.FindExtent(id)->arena() != nullptr)
      core_.pager.EvictExtent(id, paging::Reason::kPrefetch);  // a hint; no event for each step
  }
  touched_ = true;
}

ActiveTask* Tasks::TaskOf(wire::RequestId request, Session** session) {
  const auto found = requests_.find(request);
  if (found == requests_.end()) return nullptr;
  *session = core_.registry.FindSession(found->second);
  if (*session == nullptr || !(*session)->active || (*session)->active->request != request) return nullptr;
  return &*(*session)->active;
}

int Tasks::PumpPager() {
  if (!touched_) return 0;
  touched_ = false;
  actions_ = {};
  core_.pager.Pump(actions_);
  touched_ = actions_.more;
  const int starved = leases_.overdue() ? RefuseStarved() : 0;
  if (actions_.empty()) return starved;
  if (!actions_.stores.empty() || !actions_.drops.empty()) bursts_.Note(actions_, core_.clock.NowNs());
  for (const paging::EndedJob& job : actions_.ended) core_.past_jobs.Ended(job);
  const int refused = core_.mover.Apply(actions_);
  LaunchAll(actions_.runs);
  for (const paging::RevokeAction& revoke : actions_.revokes) leases_.Revoke(revoke.extent);
  for (const wire::RequestId request : actions_.finished) Finished(request);
  if (!actions_.finished.empty()) touched_ = true;  // the pager may have a use for the pause behind a step
  if (refused > 0) {
    core_.room.Refused(core_.clock.NowNs());
    touched_ = true;
    static_cast<void>(RefuseStarved());
  }
  return 1;
}

int Tasks::RefuseStarved() {
  const std::string overdue = leases_.OverdueText();
  const std::string window = std::to_string(core_.settings.pager.window_pages * core_.page_bytes());
  int refused = 0;
  for (const auto& [id, session] : core_.registry.sessions()) {
    if (!session->active || core_.pager.Servable(session->active->request)) continue;
    session->active->refused = {
        Code::kOutOfMemory,
        overdue.empty() ? "the device has no memory for one window of " + window +
                              " bytes, although the budget allows it; nothing was applied. Hint: free "
                              "memory of the device, then try again."
                        : "not applied, no device memory for a window: " + overdue};
    core_.pager.Cancel(session->active->request);
    ++refused;
  }
  sharing_.reader().CancelStarved();
  if (refused > 0) touched_ = true;
  return refused;
}

void Tasks::TakePages(std::span<const paging::RunAction> runs) {
  pages_.clear();
  for (const paging::RunAction& run : runs) {
    for (const paging::RunPage& page : run.pages) {
      pages_.push_back({page.page.index, core_.mover.AddressOf(page.frame), page.zero});
    }
  }
}

// Windows of one request that came in one decision, all of them resident, go out in one launch as far as the
// device likes long ones. A large request is decided on in parts, the first of them short: the device begins,
// while what the others need is put together. A launch whose last pages are to leave ends there, so that they
// leave soon.
void Tasks::LaunchAll(std::span<const paging::RunAction> runs) {
  while (!runs.empty()) {
    std::uint64_t pages = runs.front().pages.size();
    std::size_t count = 1;
    while (count < runs.size() && !runs[count - 1].leaves && runs[count].request == runs.front().request &&
           pages + runs[count].pages.size() <= core_.device_info.launch_pages) {
      pages += runs[count++].pages.size();
    }
    Launch(runs.first(count));
    runs = runs.subspan(count);
  }
}

// Consecutive windows of one request.
void Tasks::Launch(std::span<const paging::RunAction> runs) {
  Session* session = nullptr;
  ActiveTask* task = TaskOf(runs.front().request, &session);
  kernels::Event event;
  if (task != nullptr) {
    if (task->runs_in_flight == 0) CountWait(*session, *task, runs.front().missing);
    task->runs_in_flight += static_cast<std::uint32_t>(runs.size());
    if (task->work != nullptr) {
      if (runs.front().window == 0) task->work->Prepare(core_.device);
      TakePages(runs);
      event = task->work->Launch(core_.device, pages_);
      if (task->launch_ns == 0) task->launch_ns = core_.clock.NowNs() - task->taken_ns;
    }
    if (runs.back().last) {
      event =
          core_.device.Signal(kernels::Queue::kCompute, &session->segment().header().done.word, task->ticket);
    }
  }
  if (task == nullptr && sharing_.reader().Owns(runs.front().request)) {
    TakePages(runs);
    event = sharing_.reader().Launch(pages_);
  }
  for (const paging::RunAction& run : runs) runs_.push_back({event, run.request, run.window});
}

// Nothing of the task ran since idle_since_ns; now something does. `fault`: because pages were not there.
void Tasks::CountWait(const Session& session, ActiveTask& task, bool fault) {
  const std::uint64_t waited_ns = core_.clock.NowNs() - task.idle_since_ns;
  task.stall_ns += waited_ns;
  if (!fault) return;
  core_.counters.fault.Observe(waited_ns);
  ++core_.counters.jobs.faults;
  ++core_.registry.FindJob(session.identity().job)->counters.faults;
}

int Tasks::PollRuns() {
  int ended = 0;
  while (!runs_.empty() && (runs_.front().event.sequence == 0 || core_.device.Done(runs_.front().event))) {
    const Run run = runs_.front();
    runs_.pop_front();
    RunEnded(run);
    ++ended;
  }
  return ended;
}

void Tasks::RunEnded(const Run& run) {
  Session* session = nullptr;
  if (ActiveTask* task = TaskOf(run.request, &session); task != nullptr && --task->runs_in_flight == 0) {
    task->idle_since_ns = core_.clock.NowNs();
  }
  // The device has stored the ticket into `done` behind the run, over what the failure had put there.
  if (session != nullptr && session->failed()) session->ReleaseWaiters();
  core_.pager.RunDone(run.request, run.window);
  touched_ = true;
}

}  // namespace bitpager::daemon
