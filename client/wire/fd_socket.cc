#include "client/wire/fd_socket.h"

#include <sys/socket.h>

#include <cerrno>

namespace bitpager::wire {
namespace {

// Takes ownership of every fd in the control data, so that none leaks; false when there are too many.
bool TakeFds(msghdr& message, Packet& out) {
  bool fit = true;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
      UniqueFd owned(fd);
      if (out.fd_count == kMaxMessageFds) {
        fit = false;
        continue;
      }
      out.fds[static_cast<std::size_t>(out.fd_count++)] = std::move(owned);
    }
  }
  return fit;
}

Status SendError(int error) {
  if (error == EAGAIN || error == EWOULDBLOCK) return {Code::kPending, "the socket has no room now"};
  if (error == EPIPE || error == ECONNRESET || error == ENOTCONN) {
    return {Code::kDaemonLost, "the peer closed the connection"};
  }
  if (error == EMSGSIZE) return {Code::kInvalidArgument, "the message is longer than the socket takes"};
  return {Code::kInternal, std::string("sendmsg failed: ") + std::strerror(error)};
}

}  // namespace

MessageHeader Packet::header() const {
  MessageHeader header;
  std::memcpy(&header, data.data(), sizeof(header));
  return header;
}

Status SendPacket(int socket, std::span<const std::byte> data, std::span<const int> fds) {
  if (data.size() > sizeof(Packet::data) || fds.size() > kMaxMessageFds) {
    return {Code::kInvalidArgument, "a message of " + std::to_string(data.size()) + " bytes and " +
                                        std::to_string(fds.size()) + " fds is larger than any message"};
  }
  iovec part{const_cast<std::byte*>(data.data()), data.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxMessageFds * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(head), fds.data(), fds.size_bytes());
  }
  while (::sendmsg(socket, &message, MSG_NOSIGNAL) < 0) {
    if (errno != EINTR) return SendError(errno);
  }
  return {};
}

Status ReceivePacket(int socket, Packet& out) {
  for (UniqueFd& fd : out.fds) fd.Reset();
  out.fd_count = 0;
  out.bytes = 0;
  out.closed = false;
  iovec part{out.data.data(), out.data.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxMessageFds * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  if (got < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK) return {Code::kPending, "nothing to receive"};
    if (errno == EINTR) return {Code::kInterrupted, "a signal came while waiting for a message"};
    if (errno == ECONNRESET || errno == EPIPE || errno == ENOTCONN) {
      out.closed = true;
      return {};
    }
    return {Code::kInternal, std::string("recvmsg failed: ") + std::strerror(errno)};
  }
  const bool fit = TakeFds(message, out);
  if ((message.msg_flags & MSG_TRUNC) != 0) return {Code::kProtocol, "a message is longer than any message"};
  if (!fit || (message.msg_flags & MSG_CTRUNC) != 0) {
    return {Code::kProtocol,
            "fds of a message were lost: more than " + std::to_string(kMaxMessageFds) +
                ", or this process has no descriptors left. Hint: raise the limit (ulimit -n)"};
  }
  out.bytes = static_cast<std::size_t>(got);
  out.closed = got == 0;  // no message is empty
  return {};
}

Status CheckPacket(const Packet& packet) {
  if (packet.bytes < sizeof(MessageHeader)) return {Code::kProtocol, "a message is shorter than its header"};
  const MessageHeader header = packet.header();
  if (header.magic != kMessageMagic) {
    return {Code::kProtocol,
            "a message does not start with bitpager's magic: the peer speaks something else"};
  }
  if (header.version != kWireVersion) {
    return {Code::kUnknownVersion, "the peer speaks protocol version " + std::to_string(header.version) +
                                       ", this side version " + std::to_string(kWireVersion) +
                                       ". Hint: install the same bitpager on both sides"};
  }
  if (header.body_bytes != packet.bytes - sizeof(MessageHeader)) {
    return {Code::kProtocol, "a message says " + std::to_string(header.body_bytes) + " body bytes, " +
                                 std::to_string(packet.bytes - sizeof(MessageHeader)) + " came"};
  }
  return {};
}

Status SendBare(int socket, MessageType type, std::uint32_t sequence, std::span<const int> fds) {
  MessageHeader header;
  header.type = type;
  header.sequence = sequence;
  std::array<std::byte, sizeof(MessageHeader)> data;
  std::memcpy(data.data(), &header, sizeof(header));
  return SendPacket(socket, data, fds);
}

Result<sockaddr_un> UnixAddress(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return Status(Code::kInvalidArgument, "socket path '" + path + "' is " + std::to_string(path.size()) +
                                              " bytes long; 1 to " +
                                              std::to_string(sizeof(address.sun_path) - 1) + " are possible");
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

}  // namespace bitpager::wire
