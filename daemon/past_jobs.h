// Counts that outlive their jobs: a job that ended goes on counting here, by its name, so that the figures of
// all jobs always add up to the device's and never fall. Dispatcher thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <string>

#include "client/wire/ids.h"
#include "paging/pager.h"

namespace bitpager::daemon {

// What a job counts beside the pager.
struct JobCounters {
  std::uint64_t steps = 0;
  std::uint64_t faults = 0;  // waits for a window's pages
  std::uint64_t stall_ns = 0;
  std::uint64_t nonfinite_blocks = 0;
  std::uint64_t step_ns = 0;  // of all steps together
};

// The most frames that a job had.
struct Peaks {
  std::uint64_t resident = 0;
  std::uint64_t host = 0;
};

// Of jobs that are gone; those of one name and user together.
struct PastJob {
  std::string name;  // empty: of jobs whose own entry made room for a newer one
  std::uint32_t uid = 0;
  std::uint64_t jobs = 0;
  JobCounters counters;
  paging::Traffic traffic;
};

class PastJobs {
 public:
  static constexpr std::size_t kNames = 64;

  // A job whose sessions and extents are gone, while the pager may still wait for its last frames.
  struct Ending {
    std::string name;
    std::uint32_t uid = 0;
    JobCounters counters;
    Peaks peaks;
  };
  void Leave(wire::JobId id, Ending job) { ending_[id] = std::move(job); }
  // The pager knows it no more.
  void Ended(const paging::EndedJob& job);

  [[nodiscard]] const std::map<wire::JobId, Ending>& ending() const { return ending_; }
  [[nodiscard]] const std::deque<PastJob>& past() const { return past_; }  // oldest end first

 private:
  [[nodiscard]] PastJob& EntryOf(const std::string& name, std::uint32_t uid);

  std::map<wire::JobId, Ending> ending_;
  std::deque<PastJob> past_;
};

}  // namespace bitpager::daemon
