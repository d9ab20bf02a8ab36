#include "daemon/metrics_sums.h"

namespace bitpager::daemon {
namespace {

void Add(paging::ByReason& to, const paging::ByReason& more) {
  for (std::size_t i = 0; i < to.size(); ++i) to[i] += more[i];
}

// Of jobs and past jobs alike.
template <typename S>
void AddCounts(JobSnapshot& to, const S& more) {
  to.steps += more.steps;
  to.faults += more.faults;
  to.step_ns += more.step_ns;
  to.stall_ns += more.stall_ns;
  to.nonfinite_blocks += more.nonfinite_blocks;
  Add(to.evictions_by_reason, more.evictions_by_reason);
  Add(to.moved_by_reason.to_device, more.moved_by_reason.to_device);
  Add(to.moved_by_reason.to_host, more.moved_by_reason.to_host);
  Add(to.moved_by_reason.dropped, more.moved_by_reason.dropped);
}

void AddState(JobSnapshot& to, const JobSnapshot& more) {
  for (std::size_t kind = 0; kind < 2; ++kind) {
    to.resident_by_kind[kind] += more.resident_by_kind[kind];
    to.host_by_kind[kind] += more.host_by_kind[kind];
    to.disk_by_kind[kind] += more.disk_by_kind[kind];
  }
  to.dirty_bytes += more.dirty_bytes;
  to.peak_resident_bytes += more.peak_resident_bytes;
  to.peak_host_bytes += more.peak_host_bytes;
  to.leased_bytes += more.leased_bytes;
  to.shared_bytes += more.shared_bytes;
  to.buffer_bytes += more.buffer_bytes;
  to.device_quota_bytes += more.device_quota_bytes;
  to.share_bytes += more.share_bytes;
  to.weight += more.weight;
  to.sessions += more.sessions;
  to.saved_bytes.states_32bit += more.saved_bytes.states_32bit;
  to.saved_bytes.weights_16bit += more.saved_bytes.weights_16bit;
}

}  // namespace

std::map<std::string, JobSums> SumByName(const Snapshot& snapshot, const std::string& uuid) {
  std::map<std::string, JobSums> out;
  const auto entry = [&](const std::string& name) -> JobSums& {
    const auto [found, fresh] = out.try_emplace(name);
    if (fresh) found->second.job.weight = 0;
    return found->second;
  };
  for (const JobSnapshot& job : snapshot.jobs) {
    if (job.device != uuid) continue;
    JobSums& sum = entry(job.name);
    sum.alive += 1;
    AddState(sum.job, job);
    AddCounts(sum.job, job);
  }
  for (const PastJobSnapshot& past : snapshot.past_jobs) {
    if (past.device == uuid) AddCounts(entry(past.name).job, past);
  }
  return out;
}

}  // namespace bitpager::daemon
