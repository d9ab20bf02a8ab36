#include "client/timeline.h"

#include <poll.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <optional>
#include <string>

#include "client/local_ops.h"
#include "client/wire/cpu.h"
#include "client/wire/text.h"

namespace bitpager::client {
namespace {

using Clock = std::chrono::steady_clock;
using wire::Code;
using wire::Result;
using wire::Status;

// A resident request of a few blocks is done within this; longer ones are worth a sleep.
constexpr std::chrono::nanoseconds kSpin{25'000};
constexpr int kPausesPerLook = 8;  // between looks at the clock
// How long an interrupted wait still waits.
constexpr std::chrono::milliseconds kGrace{1000};
// A doorbell that a faulty daemon forgets costs at most this.
constexpr int kSleepMs = 1000;
// While a stream is waited for it is looked at so often whether it may still go on.
constexpr int kLookMs = 100;
// A daemon that takes no request for so long hangs.
constexpr std::chrono::seconds kStalled{30};
// Failures of stream tickets that wait to be told: a caller that never asks keeps the first ones and the
// last.
constexpr std::size_t kKeptFailures = 16;

bool IsHint(wire::Op op) {
  return op == wire::Op::kPrefetch || op == wire::Op::kPhase || op == wire::Op::kExpect;
}

Status CorruptRing() {
  return {Code::kProtocol,
          "the completion ring of this session holds what no daemon writes; the session is closed. Hint: "
          "check that client and daemon are of one version"};
}

}  // namespace

wire::Code CodeFrom(std::uint64_t value) {
  const auto code = static_cast<Code>(value);
  return value <= ~0U && wire::CodeName(code) != "unknown" ? code : Code::kProtocol;
}

Status StatusOf(const wire::CompletionRecord& record) {
  const Code code = CodeFrom(record.code);
  if (code == Code::kOk) return {};
  std::string message(wire::TextOf(record.message));
  if (message.empty()) message = "the daemon answered " + std::string(wire::CodeName(code));
  return {code, std::move(message)};
}

Timeline::Timeline(wire::SegmentView view, wire::UniqueFd request_bell, wire::UniqueFd completion_bell,
                   int socket)
    : view_(view),
      request_bell_(std::move(request_bell)),
      completion_bell_(std::move(completion_bell)),
      socket_(socket),
      requests_(view.requests(), wire::kRequestSlots, &view.header().request_tail.word,
                &view.header().request_head.word),
      completions_(view.completions(), wire::kCompletionSlots, &view.header().completion_tail.word,
                   &view.header().completion_head.word) {
  open_.reserve(wire::kCompletionSlots);
}

Status Timeline::Fail(Status why) {
  if (failure_.ok()) failure_ = std::move(why);
  return failure_;
}

Status Timeline::Push(wire::RequestRecord& record) {
  record.ticket = last_ticket_ + 1;
  if (!streams_) {
    record.ready = record.ticket;
    // Pairs with the daemon's acquire when it looks whether the ticket's inputs are ready: they are written.
    view_.header().ready.word.store(record.ticket, std::memory_order_release);
  }
  const wire::RingState state = requests_.Push(record);
  if (state == wire::RingState::kFull) return {Code::kFull, "the request ring is full: the daemon is behind"};
  if (state != wire::RingState::kOk) {
    return Fail({Code::kProtocol, "the request ring's cursor is impossible; the session is closed"});
  }
  last_ticket_ = record.ticket;
  open_.push_back({record.ticket, record.op});
  // Pairs with the daemon's fence between setting daemon_sleeps and its last look at the ring: one of us
  // sees the other.
  wire::StoreLoadFence();
  if (view_.header().daemon_sleeps.word.load(std::memory_order_relaxed) != 0) {
    const std::uint64_t one = 1;
    // Cannot fail for want of room but when 2^64 rings are unread, and then the bell is readable anyway.
    [[maybe_unused]] const ssize_t written = ::write(request_bell_.get(), &one, sizeof(one));
  }
  return {};
}

Status Timeline::PushHint(wire::RequestRecord& record) {
  if (!failure_.ok()) return failure_;
  if (Result<bool> taken = Collect(0); !taken.ok()) return taken.status();
  if (open_hints_ >= kOpenHints) {
    return {Code::kFull, std::to_string(open_hints_) + " hints wait for the daemon already"};
  }
  if (Status pushed = Push(record); !pushed.ok()) return pushed;
  ++open_hints_;
  return {};
}

Result<wire::CompletionRecord> Timeline::Finish(wire::RequestRecord& record, Patience patience) {
  if (!failure_.ok()) return failure_;
  if (Status pushed = Push(record); !pushed.ok()) return pushed;
  if (Status waited = WaitFor(record.ticket, patience); !waited.ok()) {
    if (waited.code() == Code::kInterrupted) open_.back().left_behind = true;
    return waited;
  }
  return found_;
}

Status Timeline::Drain() {
  if (!failure_.ok()) return failure_;
  for (;;) {
    const auto left = std::find_if(open_.begin(), open_.end(), [](const Open& o) { return o.left_behind; });
    if (left == open_.end()) return {};
    if (Status waited = WaitFor(left->ticket, Patience::kUntilSignal); !waited.ok()) return waited;
  }
}

// Acquire pairs with the release of whoever ended the session: what the daemon did before is in the ring.
Status Timeline::CollectLiving() {
  if (!failure_.ok()) return failure_;
  const bool failed = view_.header().failed.word.load(std::memory_order_acquire) != 0;
  if (Result<bool> taken = Collect(0); !taken.ok()) return taken.status();
  return failed ? Lost() : Status();
}

Status Timeline::AwaitRoom() {
  if (Status living = CollectLiving(); !living.ok()) return living;
  if (open_streams_ >= kOpenStreamTickets) {
    const auto oldest = std::find_if(open_.begin(), open_.end(), [](const Open& o) { return o.of_stream; });
    if (Status waited = WaitFor(oldest->ticket, Patience::kUntilSignal); !waited.ok()) return waited;
  }
  // Fewer tickets are open than the ring has slots, so a full one means that the daemon takes none just now.
  for (const Clock::time_point end = Clock::now() + kStalled; requests_.Room() == wire::RingState::kFull;) {
    if (Status slept = SleepUnlessDone(0, 1); slept.code() == Code::kDaemonLost) return Lost();
    if (!failure_.ok()) return failure_;
    if (Clock::now() > end) {
      return {Code::kFull, "the request ring is full: the daemon has taken nothing for 30 s"};
    }
  }
  return {};
}

Status Timeline::AwaitStreams(std::uint64_t last, Patience patience) {
  if (Status living = CollectLiving(); !living.ok()) return living;
  for (;;) {
    const auto open = std::find_if(open_.begin(), open_.end(),
                                   [&](const Open& o) { return o.of_stream && o.ticket <= last; });
    if (open == open_.end()) return {};
    if (Status waited = WaitFor(open->ticket, patience); !waited.ok()) return waited;
  }
}

Status Timeline::AwaitAll(Patience patience) {
  if (Status living = CollectLiving(); !living.ok()) return living;
  while (!open_.empty()) {
    if (Status waited = WaitFor(open_.front().ticket, patience); !waited.ok()) return waited;
  }
  return {};
}

std::uint64_t Timeline::oldest_open_stream() const {
  for (const Open& open : open_) {
    if (open.of_stream) return open.ticket;
  }
  return ~0ULL;
}

void Timeline::Note(const TicketNote& note, const wire::CompletionRecord& record) {
  newest_ = {note, record};
  if (CodeFrom(record.code) == Code::kOk) return;
  if (failures_.size() == kKeptFailures) failures_.pop_back();
  failures_.push_back(newest_);
  // A failure is told once: from there.
  newest_.record.code = static_cast<std::uint32_t>(Code::kOk);
  newest_.record.message[0] = '\0';
}

Result<Finished> Timeline::TakeFinished() {
  const Status living = CollectLiving();
  if (failures_.empty()) return living.ok() ? Result<Finished>(newest_) : Result<Finished>(living);
  Finished oldest = failures_.front();
  failures_.pop_front();
  return oldest;
}

Result<bool> Timeline::Collect(std::uint64_t wanted) {
  wire::CompletionRecord record;
  for (;;) {
    const wire::RingState state = completions_.Pop(record);
    if (state == wire::RingState::kEmpty) return false;
    const auto at = std::find_if(open_.begin(), open_.end(),
                                 [&](const Open& open) { return open.ticket == record.ticket; });
    if (state != wire::RingState::kOk || at == open_.end() || at->op != record.op) return Fail(CorruptRing());
    if (IsHint(record.op)) --open_hints_;
    if (at->of_stream) {
      --open_streams_;
      Note(at->note, record);
    }
    open_.erase(at);
    if (record.ticket == wanted) {
      found_ = record;
      return true;
    }
  }
}

Status Timeline::Lost() {
  const std::uint64_t failed = view_.header().failed.word.load(std::memory_order_acquire);
  if (failed != 0 && CodeFrom(failed) != Code::kDaemonLost) {
    Code why = CodeFrom(failed);
    // No session ends by a code that asks the caller to try again.
    if (why <= Code::kNotResident || why == Code::kInterrupted) why = Code::kProtocol;
    return Fail({why, "the daemon ended this session (" + std::string(wire::CodeName(why)) +
                          "). Hint: its log says more; connect again"});
  }
  return Fail(
      {Code::kDaemonLost,
       "the daemon ended while this session was open; requests that were out may or may not have been "
       "applied. Hint: look at the daemon's log (journalctl -u bitpagerd), then connect again"});
}

Result<bool> Timeline::Spin(std::uint64_t ticket) {
  const Clock::time_point end = Clock::now() + kSpin;
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (!completions_.Empty()) {
        Result<bool> taken = Collect(ticket);
        if (!taken.ok() || taken.value()) return taken;
      }
      wire::CpuPause();
    }
    // The bell often wakes the daemon on this very processor.
    ::sched_yield();
  } while (Clock::now() < end);
  return false;
}

Status Timeline::Sleep(int limit_ms) {
  pollfd watched[2] = {{completion_bell_.get(), POLLIN, 0}, {socket_, POLLIN | POLLRDHUP, 0}};
  if (::poll(watched, 2, limit_ms) < 0) {
    if (errno == EINTR) return {Code::kInterrupted, "a signal came while waiting for the daemon"};
    return {Code::kInternal, std::string("poll failed: ") + std::strerror(errno)};
  }
  if (watched[0].revents != 0) {
    std::uint64_t rings = 0;
    [[maybe_unused]] const ssize_t got = ::read(completion_bell_.get(), &rings, sizeof(rings));
  }
  if ((watched[1].revents & (POLLHUP | POLLRDHUP | POLLERR | POLLNVAL)) != 0) {
    return {Code::kDaemonLost, ""};
  }
  if (watched[1].revents != 0) {
    return Fail({Code::kProtocol, "the daemon sent a message that nobody asked for; the session is closed"});
  }
  return {};
}

Status Timeline::SleepUnlessDone(std::uint64_t ticket, int limit_ms) {
  wire::Word& sleeps = view_.header().client_sleeps.word;
  sleeps.store(1, std::memory_order_relaxed);
  // Pairs with the daemon's fence between its push and its look at client_sleeps.
  wire::StoreLoadFence();
  // Acquire pairs with the daemon's release: what it did before it ended the session is in the ring.
  const bool failed = view_.header().failed.word.load(std::memory_order_acquire) != 0;
  const Result<bool> taken = Collect(ticket);
  Status out;
  if (!taken.ok()) {
    out = taken.status();
  } else if (taken.value()) {
    out = Status(Code::kPending, "");
  } else if (failed) {
    out = Lost();
  } else {
    out = Sleep(limit_ms);
  }
  sleeps.store(0, std::memory_order_relaxed);
  return out;
}

Result<bool> Timeline::LookAtStreams(std::uint64_t ticket, Clock::time_point& next_look) {
  const Clock::time_point now = Clock::now();
  if (open_streams_ == 0 || !stream_fault_ || now < next_look) return false;
  next_look = now + std::chrono::milliseconds(kLookMs);
  // What is done is done, whatever became of the streams since.
  Result<bool> taken = Collect(ticket);
  if (!taken.ok() || *taken || open_streams_ == 0) return taken;
  Status fault = stream_fault_();
  return fault.ok() ? Result<bool>(false) : Result<bool>(Fail(std::move(fault)));
}

Status Timeline::WaitFor(std::uint64_t ticket, Patience patience) {
  std::optional<Clock::time_point> grace_end;
  Clock::time_point next_look = Clock::now() + std::chrono::milliseconds(kLookMs);
  bool lost = false;
  for (;;) {
    const Result<bool> taken = Spin(ticket);
    if (!taken.ok()) return taken.status();
    if (taken.value()) return {};
    if (lost) return Lost();
    int limit_ms = kSleepMs;
    if (grace_end) {
      const auto rest = std::chrono::ceil<std::chrono::milliseconds>(*grace_end - Clock::now());
      if (rest.count() <= 0) {
        return {
            Code::kInterrupted,
            "a signal came while waiting for the daemon; the request goes on, and the next call waits for "
            "it first"};
      }
      limit_ms = static_cast<int>(std::min<long long>(rest.count(), kSleepMs));
    }
    if (open_streams_ > 0) limit_ms = std::min(limit_ms, kLookMs);
    const Status slept = SleepUnlessDone(ticket, limit_ms);
    if (slept.code() == Code::kPending) return {};
    const Result<bool> came = LookAtStreams(ticket, next_look);
    if (!came.ok()) return came.status();
    if (*came) return {};
    if (slept.code() == Code::kInterrupted) {
      if (patience == Patience::kUntilSignal && !grace_end) grace_end = Clock::now() + kGrace;
    } else if (slept.code() == Code::kDaemonLost && failure_.ok()) {
      lost = true;  // hung up: one more look at the ring
    } else if (!slept.ok()) {
      return slept;
    }
  }
}

}  // namespace bitpager::client
