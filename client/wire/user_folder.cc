#include "client/wire/user_folder.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace bitpager::wire {

Status CheckOwnFolder(const std::string& folder) {
  struct stat entry {};
  if (::lstat(folder.c_str(), &entry) != 0) {
    return {Code::kPermissionDenied, "cannot look at " + folder + ": " + std::strerror(errno)};
  }
  if (!S_ISDIR(entry.st_mode) || entry.st_uid != ::geteuid() || (entry.st_mode & 077) != 0) {
    return {Code::kPermissionDenied, folder +
                                         " is not a folder that belongs to this user alone (mode 0700). "
                                         "Hint: remove it, or name a daemon's socket (BITPAGER_SOCKET)"};
  }
  return {};
}

UserFolder FindUserFolder() {
  UserFolder out;
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  if (runtime != nullptr && *runtime == '/') {
    out.skipped = CheckOwnFolder(runtime);
    out.in_runtime_folder = out.skipped.ok();
    if (!out.skipped.ok()) {
      out.skipped = {out.skipped.code(), "XDG_RUNTIME_DIR is not used: " + out.skipped.message()};
    }
  }
  out.path = out.in_runtime_folder ? std::string(runtime) + "/bitpager"
                                   : "/tmp/bitpager-" + std::to_string(::geteuid());
  return out;
}

}  // namespace bitpager::wire
