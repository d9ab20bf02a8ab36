#include "daemon/notify.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string>

#include "client/wire/unique_fd.h"

namespace bitpager::daemon {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

constexpr int kFirstPassedFd = 3;

Status CannotTell(const std::string& path, const std::string& why) {
  return {Code::kUnreachable, "cannot tell the service manager at NOTIFY_SOCKET=" + path + " (" + why +
                                  "). Hint: NotifyAccess=main in the unit"};
}

std::string OneLine(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c == '\n' || c == '\r') c = ' ';
  }
  return out;
}

int EnvironmentNumber(const char* name) {
  const char* text = std::getenv(name);
  int value = -1;
  if (text == nullptr) return value;
  const char* end = text + std::strlen(text);
  const auto parsed = std::from_chars(text, end, value);
  return parsed.ec == std::errc() && parsed.ptr == end ? value : -1;
}

bool SocketOption(int fd, int option, int& out) {
  socklen_t bytes = sizeof(out);
  return ::getsockopt(fd, SOL_SOCKET, option, &out, &bytes) == 0;
}

bool IsListeningSeqpacket(int fd) {
  int domain = 0;
  int type = 0;
  int listening = 0;
  return SocketOption(fd, SO_DOMAIN, domain) && domain == AF_UNIX && SocketOption(fd, SO_TYPE, type) &&
         type == SOCK_SEQPACKET && SocketOption(fd, SO_ACCEPTCONN, listening) && listening != 0;
}

}  // namespace

Status Notify(std::string_view state) {
  const char* named = std::getenv("NOTIFY_SOCKET");
  if (named == nullptr || *named == '\0') return {};
  const std::string path = named;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if ((path[0] != '/' && path[0] != '@') || path.size() >= sizeof(address.sun_path)) {
    return CannotTell(path, "no Unix socket address");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  if (path[0] == '@') address.sun_path[0] = '\0';  // abstract name
  const auto bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
  const wire::UniqueFd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (fd.get() < 0) return CannotTell(path, std::strerror(errno));
  const ssize_t sent = ::sendto(fd.get(), state.data(), state.size(), MSG_NOSIGNAL,
                                reinterpret_cast<const sockaddr*>(&address), bytes);
  return sent == static_cast<ssize_t>(state.size()) ? Status() : CannotTell(path, std::strerror(errno));
}

Status NotifyReady(std::string_view status_text) {
  return Notify("READY=1\nSTATUS=" + OneLine(status_text));
}

Status NotifyStopping() {
  return Notify("STOPPING=1");
}

Status NotifyStatus(std::string_view status_text) {
  return Notify("STATUS=" + OneLine(status_text));
}

Result<std::optional<int>> TakeActivatedSocket() {
  const int pid = EnvironmentNumber("LISTEN_PID");
  const int count = EnvironmentNumber("LISTEN_FDS");
  ::unsetenv("LISTEN_PID");
  ::unsetenv("LISTEN_FDS");
  ::unsetenv("LISTEN_FDNAMES");
  if (pid != ::getpid() || count <= 0) return std::optional<int>();
  for (int fd = kFirstPassedFd; fd < kFirstPassedFd + count; ++fd) {
    if (::fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) break;
  }
  if (count != 1 || !IsListeningSeqpacket(kFirstPassedFd)) {
    return Status(Code::kInvalidArgument,
                  "the service manager passed " + std::to_string(count) +
                      " sockets, and one listening Unix SEQPACKET socket is wanted. Hint: one "
                      "ListenSequentialPacket= line in bitpagerd.socket");
  }
  return std::optional<int>(kFirstPassedFd);
}

}  // namespace bitpager::daemon
