#include "daemon/past_jobs.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace bitpager::daemon {
namespace {

void Add(PastJob& to, const PastJob& from) {
  to.jobs += from.jobs;
  to.counters.steps += from.counters.steps;
  to.counters.faults += from.counters.faults;
  to.counters.stall_ns += from.counters.stall_ns;
  to.counters.nonfinite_blocks += from.counters.nonfinite_blocks;
  to.counters.step_ns += from.counters.step_ns;
  paging::Add(to.traffic, from.traffic);
}

}  // namespace

// Moved to the end; made when new, and then the oldest makes room.
PastJob& PastJobs::EntryOf(const std::string& name, std::uint32_t uid) {
  const auto found = std::find_if(past_.begin(), past_.end(),
                                  [&](const PastJob& past) { return past.name == name && past.uid == uid; });
  if (found != past_.end()) {
    PastJob entry = std::move(*found);
    past_.erase(found);
    past_.push_back(std::move(entry));
    return past_.back();
  }
  past_.push_back({name, uid, 0, {}, {}});
  if (past_.size() <= kNames) return past_.back();
  // The nameless one, once there is one, stays in front.
  if (!past_.front().name.empty()) {
    past_.front().name.clear();
    past_.front().uid = 0;
    return past_.back();
  }
  const auto oldest = std::next(past_.begin());
  Add(past_.front(), *oldest);
  past_.erase(oldest);
  return past_.back();
}

void PastJobs::Ended(const paging::EndedJob& job) {
  const auto found = ending_.find(job.id);
  if (found == ending_.end()) return;
  PastJob& entry = EntryOf(found->second.name, found->second.uid);
  Add(entry, {{}, 0, 1, found->second.counters, job.usage.traffic});
  ending_.erase(found);
}

}  // namespace bitpager::daemon
