#include "tools/cli/watch.h"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <optional>
#include <utility>
#include <vector>
#include <zmq.hpp>

namespace bitpager::cli {
namespace {

using std::chrono::milliseconds;
using wire::Code;
using wire::Result;
using wire::Status;

constexpr const char* kMonitor = "inproc://bitpager-watch";
constexpr std::int64_t kMostReplyBytes = std::int64_t{256} << 20;
constexpr milliseconds kLastWords{100};
constexpr int kMostEventsWaiting = 65536;  // beyond it the newest are dropped by ZeroMQ

int MillisecondsUntil(SteadyTime until) {
  const auto left = std::chrono::ceil<milliseconds>(until - std::chrono::steady_clock::now()).count();
  return static_cast<int>(std::clamp<std::int64_t>(left, 0, 3'600'000));
}

// The last frame of a message that waits; nothing when none does.
std::optional<std::string> TakeBody(zmq::socket_t& socket) {
  zmq::message_t frame;
  if (!socket.recv(frame, zmq::recv_flags::dontwait)) return std::nullopt;
  while (frame.more()) {
    if (!socket.recv(frame, zmq::recv_flags::dontwait)) return std::nullopt;
  }
  return frame.to_string();
}

}  // namespace

struct Watch::Sockets {
  struct Asked {
    std::string query;
    SteadyTime deadline;
  };
  zmq::context_t context{1};
  zmq::socket_t dealer{context, zmq::socket_type::dealer};
  zmq::socket_t monitor{context, zmq::socket_type::pair};
  std::optional<zmq::socket_t> subscriber;
  std::deque<Asked> asked;
  std::optional<SteadyTime> closing;  // the daemon has ended; until then its last events are heard
};

Watch::Watch(Target target, bool hears_events) : target_(std::move(target)), hears_events_(hears_events) {}
Watch::~Watch() = default;

Status Watch::Open() {
  if (is_open()) return {};
  const Result<Endpoints> there = FindEndpoints(target_);
  if (!there.ok()) return there.status();
  place_ = there->socket.empty() ? there->status : there->socket;
  if (hears_events_ && there->events.empty()) {
    return {Code::kInvalidArgument, "the events' endpoint of the daemon at " + there->status +
                                        " is not known. Hint: --events-endpoint, or --socket"};
  }
  try {
    auto made = std::make_unique<Sockets>();
    if (hears_events_) {
      made->subscriber.emplace(made->context, zmq::socket_type::sub);
      made->subscriber->set(zmq::sockopt::linger, 0);
      made->subscriber->set(zmq::sockopt::rcvhwm, kMostEventsWaiting);
      made->subscriber->set(zmq::sockopt::maxmsgsize, kMostReplyBytes);
      made->subscriber->set(zmq::sockopt::subscribe, "");
      made->subscriber->connect(there->events);
    }
    made->dealer.set(zmq::sockopt::linger, 0);
    made->dealer.set(zmq::sockopt::maxmsgsize, kMostReplyBytes);
    if (zmq_socket_monitor(made->dealer.handle(), kMonitor, ZMQ_EVENT_DISCONNECTED) != 0) {
      throw zmq::error_t();
    }
    made->monitor.connect(kMonitor);
    made->dealer.connect(there->status);
    sockets_ = std::move(made);
  } catch (const zmq::error_t& error) {
    return {Code::kUnreachable, "cannot watch " + there->status + " (" + error.what() + ")"};
  }
  return {};
}

void Watch::Close() {
  if (!is_open()) return;
  zmq_socket_monitor(sockets_->dealer.handle(), nullptr, 0);
  sockets_.reset();
}

bool Watch::is_open() const {
  return sockets_ != nullptr;
}

void Watch::Ask(const std::string& query) {
  if (!is_open()) return;
  const auto deadline = std::chrono::steady_clock::now() + milliseconds(target_.timeout_ms);
  sockets_->dealer.send(zmq::buffer(query), zmq::send_flags::dontwait);
  sockets_->asked.push_back({query, deadline});  // what could not be sent is not answered either
}

bool Watch::IsWaitingFor(const std::string& query) const {
  return is_open() && std::any_of(sockets_->asked.begin(), sockets_->asked.end(),
                                  [&](const Sockets::Asked& one) { return one.query == query; });
}

// Its last events may still be on their way when the other connection is closed.
bool Watch::DaemonEnded() {
  const auto now = std::chrono::steady_clock::now();
  if (TakeBody(sockets_->monitor) && !sockets_->closing) sockets_->closing = now + kLastWords;
  return sockets_->closing && now >= *sockets_->closing;
}

bool Watch::TakeReply(News& out) {
  auto body = TakeBody(sockets_->dealer);
  if (!body || sockets_->asked.empty()) return false;
  out = {News::Kind::kReply, std::move(sockets_->asked.front().query), std::move(*body)};
  sockets_->asked.pop_front();
  return true;
}

bool Watch::TakeEvent(News& out) {
  if (!sockets_->subscriber) return false;
  auto body = TakeBody(*sockets_->subscriber);
  if (!body) return false;
  out = {News::Kind::kEvent, "", std::move(*body)};
  return true;
}

// True: one of the inputs.
Result<bool> Watch::Poll(SteadyTime until, std::span<const Input> inputs) {
  std::vector<zmq_pollitem_t> items;
  for (const Input& one : inputs) {
    items.push_back({nullptr, one.fd, static_cast<short>(one.is_output ? 0 : ZMQ_POLLIN), 0});
  }
  if (is_open()) {
    items.push_back({sockets_->monitor.handle(), 0, ZMQ_POLLIN, 0});
    items.push_back({sockets_->dealer.handle(), 0, ZMQ_POLLIN, 0});
    if (sockets_->subscriber) items.push_back({sockets_->subscriber->handle(), 0, ZMQ_POLLIN, 0});
    if (!sockets_->asked.empty()) until = std::min(until, sockets_->asked.front().deadline);
    if (sockets_->closing) until = std::min(until, *sockets_->closing);
  }
  if (zmq_poll(items.data(), static_cast<int>(items.size()), MillisecondsUntil(until)) < 0) {
    if (zmq_errno() == EINTR) return false;  // stopped and continued
    return Status(Code::kInternal, std::string("poll failed: ") + zmq_strerror(zmq_errno()));
  }
  return std::any_of(items.begin(), items.begin() + static_cast<std::ptrdiff_t>(inputs.size()),
                     [](const zmq_pollitem_t& item) { return item.revents != 0; });
}

// The inputs come first, so that no flood of events keeps a signal from being heard.
Result<Watch::News> Watch::Next(SteadyTime until, std::span<const Input> inputs) {
  try {
    const Result<bool> input = Poll(until, inputs);
    if (!input.ok()) return input.status();
    News out;
    if (*input) {
      out.kind = News::Kind::kInput;
      return out;
    }
    if (!is_open() || TakeReply(out) || TakeEvent(out)) return out;
    if (DaemonEnded()) {
      Close();
      return Status(Code::kDaemonLost, "bitpagerd at " + place_ + " has ended. Hint: look at its log");
    }
    if (!sockets_->asked.empty() && std::chrono::steady_clock::now() >= sockets_->asked.front().deadline) {
      Close();
      return TimedOut(place_, target_.timeout_ms);
    }
    return out;
  } catch (const zmq::error_t& error) {
    Close();
    return Status(Code::kDaemonLost, "bitpagerd at " + place_ + " is lost (" + error.what() + ")");
  }
}

}  // namespace bitpager::cli
