// Finds a daemon and connects a socket to it: a named one, else the system's, the user's, then this user's
// private one, which is started when allowed. Runs on the caller's thread; owns nothing.
#pragma once

#include <string>
#include <vector>

#include "client/wire/status.h"
#include "client/wire/unique_fd.h"

namespace bitpager::client {

struct Found {
  wire::UniqueFd socket;
  std::string path;
  bool is_private = false;  // started by clients, ends with the last of them
};

// Connects to the socket file. kUnreachable (nobody there), kPermissionDenied, kInvalidArgument (path).
[[nodiscard]] wire::Result<wire::UniqueFd> ConnectTo(const std::string& path);

struct SearchOptions {
  std::string socket;       // not empty: this one or none
  std::string daemon_path;  // bitpagerd to start; empty: look for it
  bool spawn = true;
  std::string device;               // UUID that a private daemon is started for; empty or "cpu-0": the CPU
  std::vector<std::string> passed;  // sockets whose daemons do not serve that device: looked past
};
// The socket that the search is bound to by name: `socket` or BITPAGER_SOCKET.
[[nodiscard]] bool NamedSocket(const std::string& socket);
// Search order: `socket`; BITPAGER_SOCKET; /run/bitpager/bitpager.sock; this user's,
// $XDG_RUNTIME_DIR/bitpager/ bitpager.sock or /tmp/bitpager-<uid>/bitpager.sock; the private daemon. A named
// socket must answer, and a daemon that is there but refuses is an error, not a reason to look on.
[[nodiscard]] wire::Result<Found> FindDaemon(const SearchOptions& options);

}  // namespace bitpager::client
