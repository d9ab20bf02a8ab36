// Recordings that `bitpager record` wrote: a summary, and traces rebuilt from the steps in them. One thread.
//
// Form, version 1: JSON, one object a line. The first is {"bitpager_record":1,"started_unix_ms":N}; each
// other has "type" ("status", "pages" or "event"; others are passed over), "time_unix_ms" and "body". A last
// line without its line feed that cannot be read was cut short; what stands before it counts.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "client/wire/status.h"
#include "tools/replay_main/trace.h"

namespace bitpager::replay {

// Of all jobs of one name, user and device, from the first sample that has them to the last. What moved
// before the first sample of a daemon does not count.
struct JobSummary {
  std::string name;
  std::string device;  // UUID
  std::uint32_t uid = 0;
  std::uint64_t peak_resident_bytes = 0;
  std::uint64_t peak_host_bytes = 0;
  std::uint64_t to_device_bytes = 0;
  std::uint64_t to_host_bytes = 0;
  std::uint64_t dropped_bytes = 0;  // left the device without a copy
  std::uint64_t steps = 0;
  std::uint64_t stall_ns = 0;
  std::uint64_t rank_ms = 0;                       // time that its sessions were there, added up
  std::map<std::string, std::uint64_t> evictions;  // pages, by reason
  [[nodiscard]] double stall_ratio() const;        // 0 to 1
};

struct Recording {
  std::string name;  // of the file
  std::int64_t started_unix_ms = 0;
  std::uint64_t span_ms = 0;  // from the first line to the last
  std::uint64_t statuses = 0;
  std::uint64_t page_maps = 0;
  std::uint64_t daemons = 0;                    // 1, and one more for each that was started meanwhile
  std::map<std::string, std::uint64_t> events;  // by name
  std::vector<JobSummary> jobs;
  std::uint64_t cut_line = 0;  // number of a last line that was cut short; 0: none

  // One for each device on which optimizers stepped. An arena's steps between two samples are so many visits
  // of all its pages; within a sample they are interleaved in proportion. Weights have none: their use is not
  // recorded.
  std::vector<Trace> traces;
  std::uint64_t weights = 0;         // extents that are not in the traces
  std::uint64_t steps_left_out = 0;  // beyond kMostVisits
};

// Pages visited in all traces of a recording at most, in about 100 MB of memory.
inline constexpr std::uint64_t kMostVisits = std::uint64_t{4} << 20;

[[nodiscard]] bool IsRecording(const std::string& path);
// Errors name the file, the line and what is wrong with it: kNotFound, kUnknownVersion, kInvalidArgument.
[[nodiscard]] wire::Result<Recording> ReadRecording(const std::string& path);

}  // namespace bitpager::replay
