// Fills a Snapshot, and a map of the pages, from the dispatcher's state. Dispatcher thread.
#pragma once

#include "daemon/core.h"
#include "daemon/page_map.h"
#include "daemon/snapshot.h"

namespace bitpager::daemon {

// Everything but the facts that main knows: version, pid, socket path, private mode. Its cost does not depend
// on how many pages there are.
[[nodiscard]] Snapshot Observe(Core& core);

// The pages of this device in at most `cells` cells, but one for each job at least. Walks over every page.
[[nodiscard]] DevicePages ObservePages(const Core& core, std::uint64_t cells);

}  // namespace bitpager::daemon
