// This user's private daemon: started by the first client, ended by itself with the last. Processes that
// start at once agree by a lock file on which of them starts it. Runs on the caller's thread.
#pragma once

#include <string>

#include "client/connect.h"
#include "client/wire/status.h"

namespace bitpager::client {

// Connects to this user's private daemon for `device`, starting it first if none serves. Each GPU has one of
// its own; "cpu-0" and the empty name mean the CPU's. `daemon_path`: the program;
// empty: BITPAGERD, then beside this library (same folder, ../bin, bin), then PATH. Waits at most 5 s for it
// to serve. kNotFound: no program; kPermissionDenied: the folder for its socket is not this user's own;
// kUnreachable with the end of its log otherwise.
[[nodiscard]] wire::Result<Found> FindPrivateDaemon(const std::string& daemon_path,
                                                    const std::string& device = {});

// The folder of its socket, lock and log, made if missing: wire::FindUserFolder's; mode 0700 and owned by
// this user, or kPermissionDenied.
[[nodiscard]] wire::Result<std::string> PrivateFolder();

}  // namespace bitpager::client
