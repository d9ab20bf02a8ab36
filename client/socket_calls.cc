#include "client/socket_calls.h"

#include <poll.h>

#include <cerrno>
#include <chrono>

#include "client/timeline.h"
#include "client/wire/text.h"

namespace bitpager::client {
namespace {

using Clock = std::chrono::steady_clock;
using wire::Code;
using wire::Result;
using wire::Status;

Status HungUp() {
  return {Code::kDaemonLost,
          "the daemon closed the connection. Hint: look at its log (journalctl -u bitpagerd), then connect "
          "again"};
}

// What an answer must be: a whole reply, to this question.
Status CheckReply(const wire::Packet& packet, wire::MessageType type, std::uint32_t sequence) {
  if (Status whole = wire::CheckPacket(packet); !whole.ok()) return whole;
  const wire::MessageHeader header = packet.header();
  if (header.type != type || header.sequence != sequence || header.body_bytes != sizeof(wire::ReplyBody)) {
    return {Code::kProtocol,
            "the daemon's answer does not belong to the question. Hint: check that client "
            "and daemon are of one version"};
  }
  return {};
}

}  // namespace

Status SocketCalls::Broken(Status why) {
  broken_ = true;
  return why;
}

Status SocketCalls::AwaitPacket(wire::Packet& packet, int limit_ms) {
  const Clock::time_point end = Clock::now() + std::chrono::milliseconds(limit_ms);
  for (;;) {
    const auto rest = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now()).count();
    if (rest <= 0) {
      return {Code::kDaemonLost, "the daemon did not answer within " + std::to_string(limit_ms / 1000) +
                                     " s: it hangs or is stopped. Hint: look at its log"};
    }
    pollfd watched{socket_.get(), POLLIN, 0};
    const int ready = ::poll(&watched, 1, static_cast<int>(rest));
    if (ready < 0 && errno != EINTR) return {Code::kInternal, "poll failed on the daemon's socket"};
    if (ready <= 0) continue;
    const Status got = wire::ReceivePacket(socket_.get(), packet);
    if (got.code() != Code::kInterrupted && got.code() != Code::kPending) return got;
  }
}

Result<Reply> SocketCalls::Answer(Status sent, wire::MessageType type, int limit_ms) {
  if (broken_) return HungUp();
  if (sent.code() == Code::kInvalidArgument) return sent;
  if (!sent.ok() && sent.code() != Code::kDaemonLost) return Broken(std::move(sent));
  // A daemon that refuses may close before it reads; its answer is still there to be taken.
  Reply reply;
  if (Status got = AwaitPacket(reply.packet, limit_ms); !got.ok()) return Broken(std::move(got));
  if (reply.packet.closed) return Broken(HungUp());
  if (Status fine = CheckReply(reply.packet, type, sequence_); !fine.ok()) return Broken(std::move(fine));
  if (!wire::ReadBody(reply.packet, reply.body)) {
    return Broken({Code::kProtocol, "the daemon's answer has an unknown size"});
  }
  const Code code = CodeFrom(reply.body.code);
  if (code == Code::kOk) return reply;
  std::string message(wire::TextOf(reply.body.message));
  if (message.empty()) message = "the daemon refused: " + std::string(wire::CodeName(code));
  return Status(code, std::move(message));
}

void SocketCalls::Close(bool goodbye) {
  if (goodbye && !broken_ && socket_) {
    // The hang-up that follows ends the session too; nothing depends on this message.
    [[maybe_unused]] const Status said =
        wire::SendBare(socket_.get(), wire::MessageType::kDetach, ++sequence_);
  }
  broken_ = true;
  socket_.Reset();
}

}  // namespace bitpager::client
