// Sealed shared memory that the daemon makes for a session. Any thread.
#pragma once

#include <cstdint>

#include "client/wire/status.h"
#include "client/wire/unique_fd.h"

namespace bitpager::daemon {

// A memfd of `bytes`, close-on-exec, sealed against shrinking, growing and further seals.
[[nodiscard]] wire::Result<wire::UniqueFd> MakeSealedMemory(const char* name, std::uint64_t bytes);

// A doorbell: a non-blocking, close-on-exec eventfd.
[[nodiscard]] wire::Result<wire::UniqueFd> MakeBell();
void Ring(int bell);
// Empties a bell that rang.
void Quiet(int bell);

}  // namespace bitpager::daemon
