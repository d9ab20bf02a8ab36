// Fds that clients pass, and fds that go out: what they are, and copies with fewer rights. Any thread.
#pragma once

#include "client/wire/status.h"
#include "client/wire/unique_fd.h"

namespace bitpager::daemon {

// True for a pidfd of a process (fdinfo has a Pid line), whatever its state.
[[nodiscard]] bool IsPidfd(int fd);

// The same file, opened anew for reading only: it cannot be mapped for writing.
[[nodiscard]] wire::Result<wire::UniqueFd> ReopenReadOnly(int fd);

}  // namespace bitpager::daemon
