// Requests and their completions in the session's shared segment: submit, wait, drain. Trusts nothing that it
// reads there. One caller at a time (the connection's mutex).
#pragma once

#include <cstdint>
#include <cstring>
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
    wire::RequestRecord record;
    record.version = wire::kWireVersion;
    record.op = op;
    return Finish(record, Patience::kUntilSignal);
  }
  // Pushes a request and does not wait; its completion is dropped. kFull: too many hints are open.
  template <typename Body>
  wire::Status Hint(wire::Op op, const Body& body) {
    wire::RequestRecord record = RecordOf(op, body);
    return PushHint(record);
  }

  // Waits for the requests that interrupted waits left behind. kInterrupted: again.
  wire::Status Drain();

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
  };

  template <typename Body>
  static wire::RequestRecord RecordOf(wire::Op op, const Body& body) {
    static_assert(sizeof(Body) <= wire::kRequestBodyBytes && std::is_trivially_copyable_v<Body>);
    wire::RequestRecord record;
    record.version = wire::kWireVersion;
    record.op = op;
    std::memcpy(record.body, &body, sizeof(Body));
    return record;
  }

  wire::Result<wire::CompletionRecord> Finish(wire::RequestRecord& record, Patience patience);
  wire::Status PushHint(wire::RequestRecord& record);
  // Numbers the record, marks it ready, pushes it, rings.
  wire::Status Push(wire::RequestRecord& record);
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
  wire::CompletionRecord found_;  // of the ticket that is waited for
  wire::Status failure_;
};

// The completion's message as a Status; Ok when its code is.
[[nodiscard]] wire::Status StatusOf(const wire::CompletionRecord& record);
// A code that came over the wire; kProtocol for one that does not exist.
[[nodiscard]] wire::Code CodeFrom(std::uint64_t value);

}  // namespace bitpager::client
