// The half of Tasks that ends tickets: results, counts, completions, failures.
#include <algorithm>
#include <string>

#include "client/wire/text.h"
#include "daemon/tasks.h"

namespace bitpager::daemon {

using wire::Code;
using wire::Op;
using wire::Status;

void Tasks::Finished(wire::RequestId request) {
  Session* session = nullptr;
  ActiveTask* task = TaskOf(request, &session);
  requests_.erase(request);
  if (task == nullptr) {
    if (sharing_.reader().Owns(request)) sharing_.reader().Finished();
    return;
  }
  wire::CompletionRecord completion;
  completion.ticket = task->ticket;
  completion.op = task->op;
  const std::uint64_t taken_ns = task->taken_ns;
  if (!task->refused.ok()) {
    const Status refused = task->refused;
    if (task->work != nullptr && task->work->Fills().extent != nullptr) {
      sharing_.AbandonFill(*task->work->Fills().extent);
    }
    session->active.reset();
    return Complete(*session, completion, refused, taken_ns);
  }
  if (task->work != nullptr) {
    FinishWork(*session, *task, completion);
    return;
  }
  const Extent* extent = core_.registry.FindExtent(task->lease_extent);
  session->active.reset();
  if (extent == nullptr) {
    Complete(*session, completion, {Code::kNotFound, "the weight was dropped while a lease was asked for."},
             taken_ns);
  } else {
    Status granted = leases_.Grant(*session, *extent, completion);
    Complete(*session, completion, granted, taken_ns);
  }
}

void Tasks::FinishWork(Session& session, ActiveTask& task, wire::CompletionRecord& completion) {
  Job* job = core_.registry.FindJob(session.identity().job);
  Status status = task.work->Finish(completion);
  const bool input_lost = task.work->InputLost();
  const std::uint64_t now = core_.clock.NowNs();
  const paging::Pager::Moves moves = core_.pager.MovesWith(task.counted);
  completion.values[2] = moves.loaded - std::min(moves.loaded, task.loaded_before);
  completion.values[3] = moves.stored - std::min(moves.stored, task.stored_before);
  completion.values[4] = now - task.admitted_ns;
  completion.values[5] = task.stall_ns;
  completion.values[6] = task.launch_ns;
  job->counters.stall_ns += task.stall_ns;
  job->stall_ns_last = task.stall_ns;
  core_.counters.jobs.stall_ns += task.stall_ns;
  core_.counters.stall.Observe(task.stall_ns);
  if (task.op == Op::kStep) {
    CountStep(session, *job, task, completion, now);
    // Pairs with an acquire load by whoever asks which step was applied last.
    session.segment().header().applied_step.word.store(task.ticket, std::memory_order_release);
  }
  if (status.ok() && !input_lost && Settles(session, task, completion)) return;
  const std::uint64_t taken_ns = task.taken_ns;
  session.active.reset();
  if (input_lost) {
    status = {Code::kOutOfRange, "a registered buffer was shrunk while it was used; the session ends."};
  }
  Complete(session, completion, status, taken_ns);
  if (input_lost) FailSession(session, status);
}

bool Tasks::Settles(Session& session, ActiveTask& task, const wire::CompletionRecord& completion) {
  const Work::Filling filled = task.work->Fills();
  if (filled.extent == nullptr) return false;
  touched_ = true;
  if (!sharing_.EndFill(session, *filled.extent, filled.start)) return false;
  task.settling = true;
  task.completion = completion;
  task.work.reset();  // and with it the client's memory
  return true;
}

void Tasks::Settled(Session& session) {
  if (!session.active || !session.active->settling) return;
  wire::CompletionRecord completion = session.active->completion;
  const std::uint64_t taken_ns = session.active->taken_ns;
  session.active.reset();
  Complete(session, completion, {}, taken_ns);
}

void Tasks::CountStep(const Session& session, Job& job, const ActiveTask& task,
                      const wire::CompletionRecord& completion, std::uint64_t now_ns) {
  const std::uint64_t nonfinite_blocks = completion.values[0];
  for (JobCounters* counters : {&job.counters, &core_.counters.jobs}) {
    counters->steps += task.continues ? 0 : 1;
    counters->nonfinite_blocks += nonfinite_blocks;
  }
  job.step_ns_last = now_ns - task.taken_ns;
  job.counters.step_ns += job.step_ns_last;
  core_.counters.jobs.step_ns += job.step_ns_last;
  core_.counters.step.Observe(job.step_ns_last);
  if (nonfinite_blocks == 0) return;
  core_.TellSeldom({"nonfinite", job.name, 0,
                    "request " + std::to_string(task.ticket) + " of rank " +
                        std::to_string(session.identity().rank) + ": " + std::to_string(nonfinite_blocks) +
                        " blocks of gradients with NaN or inf, the first in tensor " +
                        std::to_string(completion.values[1])});
}

void Tasks::Complete(Session& session, wire::CompletionRecord& completion, const Status& status,
                     std::uint64_t taken_ns) {
  core_.counters.request.Observe(core_.clock.NowNs() - taken_ns);
  completion.code = static_cast<std::uint32_t>(status.code());
  wire::CopyText(completion.message, status.message());
  if (!status.ok()) ++core_.counters.errors[status.code()];
  if (session.failed() || session.closing) return;
  wire::Word& done = session.segment().header().done.word;
  // Pairs with the client's wait on `done`. The device stores it for works; here for all others.
  if (done.load(std::memory_order_relaxed) < completion.ticket) {
    done.store(completion.ticket, std::memory_order_release);
  }
  if (!session.Complete(completion)) {
    FailSession(session, {Code::kProtocol, "the completion ring is full or its cursor was overwritten."});
  }
}

void Tasks::FailSession(Session& session, const Status& why) {
  if (session.failed()) return;
  ++core_.counters.errors[why.code()];
  session.Fail(why.code());
  session.closing = true;
  const Job* job = core_.registry.FindJob(session.identity().job);
  core_.TellSeldom({"error", job->name, 0, why.message()});
}

void Tasks::FailAll(const Status& fault) {
  for (auto& [id, session] : core_.registry.sessions()) {
    if (session->active && session->active->work != nullptr) session->active->work->Abandon();
    FailSession(*session, fault);
  }
}

}  // namespace bitpager::daemon
