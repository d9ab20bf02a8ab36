// Questions and answers over the attach socket: one at a time, in order, never waiting for ever. One caller
// at a time (the connection's mutex).
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "client/wire/fd_socket.h"
#include "client/wire/messages.h"
#include "client/wire/status.h"
#include "client/wire/unique_fd.h"

namespace bitpager::client {

// An answer whose code was Ok.
struct Reply {
  wire::ReplyBody body;
  wire::Packet packet;  // owns the fds that came
};

class SocketCalls {
 public:
  explicit SocketCalls(wire::UniqueFd socket) : socket_(std::move(socket)) {}

  // Sends and waits at most `limit_ms` for the answer; signals do not end the wait. A refusal comes back as
  // its code and message. When the connection itself failed (kDaemonLost, kProtocol, kUnknownVersion),
  // broken() is true and nothing more can be asked.
  template <typename Body>
  [[nodiscard]] wire::Result<Reply> Ask(wire::MessageType type, const Body& body,
                                        std::span<const int> fds = {}, int limit_ms = kLimitMs) {
    wire::Status sent = wire::SendBody(socket_.get(), type, ++sequence_, body, fds);
    return Answer(std::move(sent), type, limit_ms);
  }
  [[nodiscard]] wire::Result<Reply> AskBare(wire::MessageType type, int limit_ms = kLimitMs) {
    wire::Status sent = wire::SendBare(socket_.get(), type, ++sequence_);
    return Answer(std::move(sent), type, limit_ms);
  }
  // Says goodbye without waiting for an answer, and hangs up.
  void Close(bool goodbye);

  [[nodiscard]] bool broken() const { return broken_; }
  [[nodiscard]] int fd() const { return socket_.get(); }

  static constexpr int kLimitMs = 30'000;

 private:
  wire::Result<Reply> Answer(wire::Status sent, wire::MessageType type, int limit_ms);
  wire::Status AwaitPacket(wire::Packet& packet, int limit_ms);
  wire::Status Broken(wire::Status why);

  wire::UniqueFd socket_;
  std::uint32_t sequence_ = 0;
  bool broken_ = false;
};

}  // namespace bitpager::client
