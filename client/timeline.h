// Requests and their completions in the session's shared segment: submit, wait, drain. Trusts nothing that it
// reads there. One caller at a time (the connection's mutex).
//
// Two kinds of ticket: those the caller waits for, and stream tickets, which a GPU's stream marks ready and
// waits for; their completions are taken by later calls. Tickets are applied and completed in order.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <string_view>
#include <vector>

#include "client/wire/records.h"
#include "client/wire/ring.h"
#include "client/wire/segment.h"
#include "client/wire/status.h"
#include "client/wire/unique_fd.h"

namespace bitpager::client {

// Whether a signal ends a wait. A request whose result must be taken (staged parameters) is waited for to its
// end; the daemon's own end is noticed in any case.
enum class Patience : std::uint8_t { kUntilSignal, kUntilDone };

// Tickets that hints (prefetch, phase) may have open, so that a request always finds a slot.
inline constexpr std::size_t kOpenHints = wire::kCompletionSlots / 2;

// Stream tickets that may be open: a caller that runs further ahead waits.
inline constexpr std::size_t kOpenStreamTickets = 64;
static_assert(kOpenHints + kOpenStreamTickets < wire::kCompletionSlots &&
              wire::kCompletionSlots <= wire::kRequestSlots);

// What a stream ticket was for.
struct TicketNote {
  std::uint64_t extent = 0;
  std::uint64_t step = 0;  // of the optimizer; 0: no step
};

// A stream ticket that is done. ticket 0: none.
struct Finished {
  TicketNote note;
  wire::CompletionRecord record;
};

class Timeline {
 public:
  // `socket` is watched for hang-up only and stays the caller's.
  Timeline(wire::SegmentView view, wire::UniqueFd request_bell, wire::UniqueFd completion_bell, int socket);

  // Pushes a request whose inputs are ready and waits for its completion, whatever its code. Errors:
  // kInterrupted (the request goes on; Drain waits for it), kDaemonLost or the code that ended the session,
  // kProtocol.
  template <typename Body>
  wire::Result<wire::CompletionRecord> Run(wire::Op op, const Body& body,
                                           Patience patience = Patience::kUntilSignal) {
    wire::RequestRecord record = RecordOf(op, body);
    return Finish(record, patience);
  }
  // A request without a body.
  wire::Result<wire::CompletionRecord> Run(wire::Op op) {
    wire::RequestRecord record = RecordOf(op);
    return Finish(record, Patience::kUntilSignal);
  }
  // Pushes a request and does not wait; its completion is dropped. kFull: too many hints are open.
  template <typename Body>
  wire::Status Hint(wire::Op op, const Body& body) {
    wire::RequestRecord record = RecordOf(op, body);
    return PushHint(record);
  }
  wire::Status Hint(wire::Op op) {
    wire::RequestRecord record = RecordOf(op);
    return PushHint(record);
  }

  // Waits for the requests that interrupted waits left behind. kInterrupted: again.
  wire::Status Drain();

  // ---- stream tickets ----
  // From now on only streams write `ready`; what the caller waits for needs no mark, for it comes behind
  // every earlier ticket anyway. `fault` says why streams will never mark anything again, Ok while they may:
  // whoever waits for a stream asks it now and then, and the session fails with what it says.
  void UseStreams(std::function<wire::Status()> fault) {
    streams_ = true;
    stream_fault_ = std::move(fault);
  }
  // Waits until one more stream ticket finds room in both rings. kInterrupted: nothing happened.
  wire::Status AwaitRoom();
  // The next ticket's number, for the stream's mark.
  [[nodiscard]] std::uint64_t next_ticket() const { return last_ticket_ + 1; }
  // Pushes next_ticket(), whose inputs are there once a stream has marked `ready`. Does not wait. Only after
  // AwaitRoom.
  template <typename Body>
  wire::Status PushBehindStream(wire::Op op, const Body& body, const TicketNote& note, std::uint64_t ready) {
    wire::RequestRecord record = RecordOf(op, body);
    record.ready = ready;
    if (wire::Status pushed = Push(record); !pushed.ok()) return pushed;
    open_.back().note = note;
    open_.back().of_stream = true;
    ++open_streams_;
    return {};
  }
  // Takes the completions that are there, and waits for every stream ticket up to `last`. kInterrupted: some
  // go on.
  wire::Status AwaitStreams(std::uint64_t last, Patience patience);
  // Takes the completions that are there. True: no ticket is open.
  [[nodiscard]] bool IsIdle() { return Collect(0).ok() && open_.empty(); }
  // Takes the completions that are there, and waits for every ticket, hints too. kInterrupted: some go on.
  wire::Status AwaitAll(Patience patience);
  // The least stream ticket that is not complete as far as was seen; ~0: none is open.
  [[nodiscard]] std::uint64_t oldest_open_stream() const;
  // A stream request that was waited for after all.
  void Note(const TicketNote& note, const wire::CompletionRecord& record);
  // The oldest failure that was not taken yet; else the newest stream ticket that is done, with kOk: if it
  // failed, that was told.
  wire::Result<Finished> TakeFinished();

  // Ok, or why the session is over; the same from then on.
  [[nodiscard]] const wire::Status& failure() const { return failure_; }
  wire::Status Fail(wire::Status why);

  [[nodiscard]] int request_bell() const { return request_bell_.get(); }
  [[nodiscard]] int completion_bell() const { return completion_bell_.get(); }

 private:
  struct Open {
    std::uint64_t ticket = 0;
    wire::Op op = wire::Op::kNoop;
    bool left_behind = false;  // by an interrupted wait
    bool of_stream = false;
    TicketNote note = {};  // of_stream
  };

  static wire::RequestRecord RecordOf(wire::Op op) {
    wire::RequestRecord record;
    record.version = wire::kWireVersion;
    record.op = op;
    return record;
  }
  template <typename Body>
  static wire::RequestRecord RecordOf(wire::Op op, const Body& body) {
    static_assert(sizeof(Body) <= wire::kRequestBodyBytes && std::is_trivially_copyable_v<Body>);
    wire::RequestRecord record = RecordOf(op);
    std::memcpy(record.body, &body, sizeof(Body));
    return record;
  }

  // While a stream is waited for, each time that `next_look` has come: takes completions until `ticket`, and
  // asks whether streams may still go on. True: it came.
  wire::Result<bool> LookAtStreams(std::uint64_t ticket, std::chrono::steady_clock::time_point& next_look);
  wire::Result<wire::CompletionRecord> Finish(wire::RequestRecord& record, Patience patience);
  wire::Status PushHint(wire::RequestRecord& record);
  // Numbers the record, marks it ready unless streams do, pushes it, rings.
  wire::Status Push(wire::RequestRecord& record);
  // Takes what completions there are; then says whether the session lives.
  wire::Status CollectLiving();
  // Takes completions until `wanted` (0: all there are); true when it came.
  wire::Result<bool> Collect(std::uint64_t wanted);
  wire::Status WaitFor(std::uint64_t ticket, Patience patience);
  wire::Result<bool> Spin(std::uint64_t ticket);
  // Sleeps until the daemon rings, hangs up, a signal comes (kInterrupted) or `limit_ms` passed.
  wire::Status Sleep(int limit_ms);
  // Announces the sleep, looks once more, sleeps. kPending: the ticket's completion came.
  wire::Status SleepUnlessDone(std::uint64_t ticket, int limit_ms);
  // The session is over: by the code that the daemon left, or by its end.
  wire::Status Lost();

  wire::SegmentView view_;
  wire::UniqueFd request_bell_;
  wire::UniqueFd completion_bell_;
  int socket_;
  wire::RingProducer<wire::RequestRecord> requests_;
  wire::RingConsumer<wire::CompletionRecord> completions_;

  std::uint64_t last_ticket_ = 0;
  std::vector<Open> open_;
  std::size_t open_hints_ = 0;
  std::size_t open_streams_ = 0;
  bool streams_ = false;
  std::function<wire::Status()> stream_fault_;
  std::deque<Finished> failures_;  // of stream tickets, not taken yet
  Finished newest_;
  wire::CompletionRecord found_;  // of the ticket that is waited for
  wire::Status failure_;
};

// The completion's message as a Status; Ok when its code is.
[[nodiscard]] wire::Status StatusOf(const wire::CompletionRecord& record);
// A code that came over the wire; kProtocol for one that does not exist.
[[nodiscard]] wire::Code CodeFrom(std::uint64_t value);

}  // namespace bitpager::client
