// Where the sockets of one user's daemons lie, as daemon, clients and commands agree on it. Reads the
// environment; any thread.
#pragma once

#include <string>

#include "client/wire/status.h"

namespace bitpager::wire {

// Ok when `folder` is a folder, no link to one, that this user (the effective uid) owns and nobody else may
// enter: only then nobody else can pose as a daemon in it. kPermissionDenied with the reason otherwise.
[[nodiscard]] Status CheckOwnFolder(const std::string& folder);

struct UserFolder {
  std::string path;  // not necessarily there
  Status skipped;    // not Ok: XDG_RUNTIME_DIR is set, and why it is not used
  bool in_runtime_folder = false;
};
// $XDG_RUNTIME_DIR/bitpager where that is set to a folder of this user's own (it is not under sudo, which may
// keep the variable), else /tmp/bitpager-<uid>. In /tmp anyone may have made it: CheckOwnFolder before use.
[[nodiscard]] UserFolder FindUserFolder();

}  // namespace bitpager::wire
