// Where every page is, in cells of some pages each: what the dashboard paints. The dispatcher fills it; any
// thread may format it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "paging/pager.h"

namespace bitpager::daemon {

inline constexpr int kPageMapSchemaVersion = 1;
inline constexpr std::uint64_t kLeastCells = 64;
inline constexpr std::uint64_t kUsualCells = 1024;
inline constexpr std::uint64_t kMostCells = 4096;

struct PageCell {
  std::uint32_t job = 0;  // index in DevicePages::jobs
  paging::PageCounts counts;
};

// Cells come in order of job, extent and page; each holds pages_per_cell pages, but for the last of each job.
struct DevicePages {
  std::string uuid;
  std::string gpu;  // "0"; "cpu"
  std::string kind;
  std::uint64_t page_bytes = 0;
  std::uint64_t pages = 0;  // of all extents
  std::uint64_t pages_per_cell = 1;
  std::vector<std::string> jobs;
  std::vector<PageCell> cells;
};

struct PageMap {
  std::vector<DevicePages> devices;
};

// {"schema_version":1,"devices":[{"uuid","gpu","kind","page_bytes","pages","pages_per_cell","jobs":[names],
//  "cells":[[job, resident, dirty, host, streaming, disk], ...]}]}. Resident pages, those on their way
// (streaming), and those whose only copy is on the host are different pages; of the first two, dirty ones are
// newer on the device; of the last, those counted by `disk` lie on disk and not in host memory. Pages that
// were never written are none of these.
[[nodiscard]] std::string ToJson(const PageMap& map);

}  // namespace bitpager::daemon
