// Runs a trace through the real pager against three queues in order: loads, stores, compute. One thread.
#pragma once

#include <cstdint>
#include <vector>

#include "client/wire/status.h"
#include "paging/pager.h"
#include "tools/replay_main/optimum.h"
#include "tools/replay_main/trace.h"

namespace bitpager::replay {

struct SimulatorConfig {
  paging::Policy policy = paging::Policy::kScanAware;
  std::uint64_t frames = 0;
  std::uint32_t window_pages = 32;
  std::uint32_t windows_in_flight = 3;
};

struct Outcome {
  Moves moved;
  Moves optimum;  // for the order of visits that this run had
  std::uint64_t visits = 0;
  std::uint64_t moved_in_last =
      0;  // pages in during the last tenth of the visits, when the policy has learned
};

// The largest window, no longer than the daemon's, of which every job of the trace can keep one in so many
// frames; at least a page.
[[nodiscard]] std::uint32_t WindowThatFits(const Trace& trace, std::uint64_t frames);

// Time is counted in pages: each queue moves or computes one page a tick, all three at once. A job submits
// its next request when the previous one is done. kBudgetExceeded when a window of each job does not fit;
// kInternal when the pager stops before the trace is done.
[[nodiscard]] wire::Result<Outcome> Simulate(const Trace& trace, const SimulatorConfig& config);

}  // namespace bitpager::replay
