// Whether host memory is left for a job. Dispatcher thread.
#pragma once

#include <cstdint>

#include "client/wire/status.h"
#include "daemon/core.h"

namespace bitpager::daemon {

// kQuotaExceeded or kBudgetExceeded, with the bytes, when `bytes` more of host memory for this job would pass
// a limit. `what` begins the message.
[[nodiscard]] wire::Status CheckHostRoom(const Core& core, const Job& job, std::uint64_t bytes,
                                         const char* what);

}  // namespace bitpager::daemon
