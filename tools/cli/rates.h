// What happened between two snapshots of one daemon, for each second. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "daemon/snapshot.h"

namespace bitpager::cli {

struct JobRates {
  double to_device_bytes = 0;  // a second
  double to_host_bytes = 0;
  double steps = 0;
  double evictions = 0;    // pages that left the device
  double stall_ratio = 0;  // share of the time that the job's ranks waited for pages, 0 to 1
};

struct Rates {
  double seconds = 0;          // between the two
  JobRates all;                // ended jobs included
  std::vector<JobRates> jobs;  // in the order of the later snapshot's jobs
};

// Nothing when they are of different daemons (it was started anew) or no time lies between. A job that came
// in between counts from its start. A counter that went back counts as unchanged.
[[nodiscard]] std::optional<Rates> RatesOf(const daemon::Snapshot& before, const daemon::Snapshot& now);

}  // namespace bitpager::cli
