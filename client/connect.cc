#include "client/connect.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "client/private_daemon.h"
#include "client/wire/fd_socket.h"
#include "client/wire/user_folder.h"

namespace bitpager::client {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

constexpr const char* kSystemSocket = "/run/bitpager/bitpager.sock";

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

Status ConnectError(const std::string& path, int error) {
  const std::string start = "cannot reach bitpagerd at " + path + " (";
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return {Code::kUnreachable, start + "no such file). Hint: start it with `bitpagerd --socket " + path +
                                      "`, or correct the path (option or BITPAGER_SOCKET)"};
    case ECONNREFUSED:
      return {Code::kUnreachable, start +
                                      "connection refused: stale socket?). Hint: the daemon that made it "
                                      "is gone; start it again"};
    case EACCES:
    case EPERM:
      return {Code::kPermissionDenied,
              start + "permission denied). Hint: `sudo usermod -aG bitpager $USER`, then log in again"};
    case EPROTOTYPE:
    case ENOTSOCK:
      return {Code::kUnreachable, start + "another program's file). Hint: name bitpagerd's socket"};
    case EAGAIN:
      return {Code::kUnreachable, start +
                                      "it is alive but accepts no connections). Hint: try again; if it "
                                      "stays so, look at its log"};
    default:
      return {Code::kUnreachable, start + std::strerror(error) + "). Hint: look at the daemon's log"};
  }
}

// Where this user's own daemon serves: as the daemon chooses by default, if nobody else could serve there.
// Empty otherwise; `why` says what was passed over, empty when nothing was.
std::string UserSocket(std::string& why) {
  const wire::UserFolder folder = wire::FindUserFolder();
  why = folder.skipped.message();
  if (!folder.in_runtime_folder) {
    const Status own = wire::CheckOwnFolder(folder.path);
    if (!own.ok()) {
      why += (why.empty() ? "" : "; ") + own.message();
      return {};
    }
  }
  return folder.path + "/bitpager.sock";
}

// A daemon that is not there is no answer; every other outcome is one.
bool NobodyThere(const Status& status) {
  return status.code() == Code::kUnreachable;
}

}  // namespace

Result<wire::UniqueFd> ConnectTo(const std::string& path) {
  Result<sockaddr_un> address = wire::UnixAddress(path);
  if (!address.ok()) return address.status();
  wire::UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket) {
    return Status(Code::kUnreachable, std::string("cannot open a socket: ") + std::strerror(errno) +
                                          ". Hint: raise the limit of open files (ulimit -n)");
  }
  // A full backlog must not block for ever.
  const timeval limit{5, 0};
  ::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  while (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof(*address)) != 0) {
    if (errno != EINTR) return ConnectError(path, errno);
  }
  return socket;
}

bool NamedSocket(const std::string& socket) {
  return !socket.empty() || !Environment("BITPAGER_SOCKET").empty();
}

Result<Found> FindDaemon(const SearchOptions& options) {
  const std::string named = options.socket.empty() ? Environment("BITPAGER_SOCKET") : options.socket;
  std::string passed_over;
  std::string places[2] = {kSystemSocket, UserSocket(passed_over)};
  if (!named.empty()) {
    places[0] = named;
    places[1].clear();
  }
  std::string tried;
  for (const std::string& path : places) {
    if (path.empty()) continue;
    if (std::find(options.passed.begin(), options.passed.end(), path) != options.passed.end()) {
      tried += (tried.empty() ? "" : "; ") + path + " serves other devices than " + options.device;
      continue;
    }
    Result<wire::UniqueFd> socket = ConnectTo(path);
    if (socket.ok()) return Found{std::move(*socket), path, false};
    if (!named.empty() || !NobodyThere(socket.status())) return socket.status();
    tried += (tried.empty() ? "" : "; ") + socket.status().message();
  }
  if (named.empty() && !passed_over.empty()) tried += "; " + passed_over;
  if (options.spawn) return FindPrivateDaemon(options.daemon_path, options.device);
  return Status(Code::kUnreachable,
                "no bitpagerd answers, and starting a private one was not allowed. Tried: " + tried);
}

}  // namespace bitpager::client
