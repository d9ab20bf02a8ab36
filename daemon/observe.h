// Fills a Snapshot from the dispatcher's state. Dispatcher thread.
#pragma once

#include "daemon/core.h"
#include "daemon/snapshot.h"

namespace bitpager::daemon {

// Everything but the facts that main knows: version, pid, socket path, private mode.
[[nodiscard]] Snapshot Observe(Core& core);

}  // namespace bitpager::daemon
