// One message with its fds over a Unix SEQPACKET socket, and the framing of messages.h on top. Both sides use
// it; owns no thread and no state. Every received fd is close-on-exec and owned at once, so a refused message
// leaks none.
#pragma once

#include <sys/un.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include "client/wire/messages.h"
#include "client/wire/status.h"
#include "client/wire/unique_fd.h"

namespace bitpager::wire {

// Room for any message of this version; a longer one is refused.
inline constexpr std::size_t kMaxBodyBytes = 1024;
static_assert(sizeof(ReplyBody) <= kMaxBodyBytes && sizeof(HelloBody) <= kMaxBodyBytes &&
              sizeof(CreateArenaBody) <= kMaxBodyBytes);

// One message as it came: `bytes` of `data`, and the fds that came beside it, in order.
struct Packet {
  std::array<std::byte, sizeof(MessageHeader) + kMaxBodyBytes> data;
  std::size_t bytes = 0;
  std::array<UniqueFd, kMaxMessageFds> fds;
  int fd_count = 0;
  bool closed = false;  // the peer hung up (or was killed): nothing more will come

  [[nodiscard]] MessageHeader header() const;  // CheckPacket first
};

// Sends one message. kPending: the socket is non-blocking and has no room. kDaemonLost: the peer hung up.
// kInvalidArgument: too long, or more than kMaxMessageFds fds. The fds stay the caller's.
[[nodiscard]] Status SendPacket(int socket, std::span<const std::byte> data, std::span<const int> fds = {});

// Receives one message. kPending: the socket is non-blocking and nothing is there. kInterrupted: a signal
// came first. kProtocol: longer than any message, more fds than fit, or fds lost for lack of descriptors.
// A hang-up is not an error: `closed` is set.
[[nodiscard]] Status ReceivePacket(int socket, Packet& out);

// Ok when the packet is one whole message of this version. kProtocol: short, bad magic, or body_bytes is not
// what came; kUnknownVersion: well-formed, of another version (header() is readable then).
[[nodiscard]] Status CheckPacket(const Packet& packet);

// The body, when it has exactly the size of `Body`.
template <typename Body>
[[nodiscard]] bool ReadBody(const Packet& packet, Body& out) {
  static_assert(kIsBody<Body>);
  if (packet.bytes != sizeof(MessageHeader) + sizeof(Body)) return false;
  std::memcpy(&out, packet.data.data() + sizeof(MessageHeader), sizeof(Body));
  return true;
}

// Frames `body` and sends it.
template <typename Body>
[[nodiscard]] Status SendBody(int socket, MessageType type, std::uint32_t sequence, const Body& body,
                              std::span<const int> fds = {}) {
  static_assert(kIsBody<Body> && sizeof(Body) <= kMaxBodyBytes);
  MessageHeader header;
  header.type = type;
  header.body_bytes = sizeof(Body);
  header.sequence = sequence;
  std::array<std::byte, sizeof(MessageHeader) + sizeof(Body)> data;
  std::memcpy(data.data(), &header, sizeof(header));
  std::memcpy(data.data() + sizeof(header), &body, sizeof(Body));
  return SendPacket(socket, data, fds);
}
// A message without a body (kDetach, kUsage, kDrain).
[[nodiscard]] Status SendBare(int socket, MessageType type, std::uint32_t sequence,
                              std::span<const int> fds = {});

// Address of a socket file. kInvalidArgument when the path is empty or longer than the kernel takes (107).
[[nodiscard]] Result<sockaddr_un> UnixAddress(const std::string& path);

}  // namespace bitpager::wire
