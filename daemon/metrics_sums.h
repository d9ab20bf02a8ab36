// What jobs of one name have together on a device: metrics know jobs by their names alone. Any thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "daemon/snapshot.h"

namespace bitpager::daemon {

struct JobSums {
  std::uint64_t alive = 0;  // jobs that are there
  JobSnapshot job;          // sums of them, and the counts of past ones too
};

// Of the device with this UUID, by name.
[[nodiscard]] std::map<std::string, JobSums> SumByName(const Snapshot& snapshot, const std::string& uuid);

}  // namespace bitpager::daemon
