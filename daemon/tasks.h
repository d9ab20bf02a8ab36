// Takes tickets from sessions, admits them, follows them through the pager and the device, and completes
// them. One ticket of a session is worked on at a time, in order. Dispatcher thread.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <unordered_map>
#include <vector>

#include "client/wire/ids.h"
#include "daemon/core.h"
#include "daemon/evict_bursts.h"
#include "daemon/leases.h"
#include "daemon/sharing.h"

namespace bitpager::daemon {

class Tasks {
 public:
  Tasks(Core& core, Leases& leases, Sharing& sharing) : core_(core), leases_(leases), sharing_(sharing) {}

  // Starts the session's next tickets as far as they can go now. Returns how many records it took.
  int Advance(Session& session);
  // Reports finished runs to the pager. Returns how many.
  int PollRuns();
  // Lets the pager decide, performs it, completes what finished. Returns how much there was to do.
  int PumpPager();
  // Completes what waited for the shared base.
  void Settled(Session& session);
  // Something may have changed what the pager would decide.
  void Touch() { touched_ = true; }
  // A client prepares a step until then: whoever sleeps now wakes up too late.
  [[nodiscard]] std::uint64_t expected_until_ns() const { return expected_until_ns_; }
  // Windows that were launched have not been seen to end.
  [[nodiscard]] bool running() const { return !runs_.empty(); }
  [[nodiscard]] bool idle() const { return runs_.empty() && core_.mover.idle(); }
  // The device failed: nothing that is under way will be whole. Ends every session with kDeviceFault.
  void FailAll(const wire::Status& fault);
  // Ends a session that broke the protocol; its active ticket still finishes.
  void FailSession(Session& session, const wire::Status& why);
  // Tells of the evictions that are over. Returns how many.
  int TellBursts(std::uint64_t now_ns) { return bursts_.Poll(now_ns); }
  [[nodiscard]] std::optional<std::uint64_t> NextBurstNs() const { return bursts_.NextDeadlineNs(); }

 private:
  struct Run {
    kernels::Event event;
    wire::RequestId request;
    std::uint64_t window = 0;
  };

  void Start(Session& session, const wire::RequestRecord& record);
  void ExpectStep();
  // Of a session that works on nothing: the pages of the weight that it asks for next come meanwhile.
  void LookAhead(Session& session);
  void StartWork(Session& session, const wire::RequestRecord& record);
  void StartLease(Session& session, const wire::RequestRecord& record);
  void Submit(Session& session, const paging::RequestSpec& spec);
  [[nodiscard]] wire::Status Prefetch(Session& session, const wire::PrefetchBody& body);
  [[nodiscard]] wire::Status SetPhase(Session& session, const wire::PhaseBody& body);
  void PrefetchArenas(const Job& job);
  void SendArenasAway(const Job& job);

  void LaunchAll(std::span<const paging::RunAction> runs);
  void Launch(std::span<const paging::RunAction> runs);
  void TakePages(std::span<const paging::RunAction> runs);
  // Whether the session goes on only when its weight has settled.
  [[nodiscard]] bool Settles(Session& session, ActiveTask& task, const wire::CompletionRecord& completion);
  void RunEnded(const Run& run);
  void Finished(wire::RequestId request);
  // The device has less memory than the budget says, or leases do not come back: cancels what could never
  // start. Returns how many.
  int RefuseStarved();
  void FinishWork(Session& session, ActiveTask& task, wire::CompletionRecord& completion);
  void CountStep(const Session& session, Job& job, const ActiveTask& task,
                 const wire::CompletionRecord& completion, std::uint64_t now_ns);
  void CountWait(const Session& session, ActiveTask& task, bool fault);
  // The record that was taken at `taken_ns` has ended.
  void Complete(Session& session, wire::CompletionRecord& completion, const wire::Status& status,
                std::uint64_t taken_ns);
  [[nodiscard]] ActiveTask* TaskOf(wire::RequestId request, Session** session);

  Core& core_;
  Leases& leases_;
  Sharing& sharing_;
  EvictBursts bursts_{core_};
  bool touched_ = false;
  std::uint64_t taken_ns_ = 0;  // when the record in hand was taken
  std::uint64_t expected_until_ns_ = 0;
  paging::Actions actions_;          // kept for its memory
  std::vector<ResidentPage> pages_;  // of the launch in hand; kept for its memory
  std::deque<Run> runs_;             // in launch order: one compute queue, so they end in order
  std::unordered_map<wire::RequestId, wire::SessionId, wire::IdHash> requests_;
};

}  // namespace bitpager::daemon
