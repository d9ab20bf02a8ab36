#include "tools/cli/rates.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

namespace bitpager::cli {
namespace {

using daemon::JobSnapshot;
using daemon::Snapshot;

double Grown(std::uint64_t before, std::uint64_t now) {
  return now > before ? static_cast<double>(now - before) : 0;
}

double StallRatio(double stall_ns, double seconds, std::size_t sessions) {
  const double ranks = static_cast<double>(std::max<std::size_t>(sessions, 1));
  return std::clamp(stall_ns / (seconds * 1e9 * ranks), 0.0, 1.0);
}

std::uint64_t Sum(const paging::ByReason& pages) {
  return std::accumulate(pages.begin(), pages.end(), std::uint64_t{0});
}

std::uint64_t Evicted(const Snapshot& s) {
  std::uint64_t pages = 0;
  for (const daemon::DeviceSnapshot& device : s.devices) pages += Sum(device.evictions_by_reason);
  return pages;
}

// Of a job or of all: both have these counters.
template <typename Counters>
JobRates RatesBetween(const Counters& before, const Counters& now, double seconds, std::size_t sessions) {
  JobRates out;
  out.to_device_bytes = Grown(before.loaded_bytes, now.loaded_bytes) / seconds;
  out.to_host_bytes = Grown(before.stored_bytes, now.stored_bytes) / seconds;
  out.steps = Grown(before.steps, now.steps) / seconds;
  out.stall_ratio = StallRatio(Grown(before.stall_ns, now.stall_ns), seconds, sessions);
  return out;
}

}  // namespace

std::optional<Rates> RatesOf(const Snapshot& before, const Snapshot& now) {
  if (before.pid != now.pid || before.socket_path != now.socket_path || now.uptime_ms <= before.uptime_ms) {
    return std::nullopt;
  }
  Rates out;
  out.seconds = static_cast<double>(now.uptime_ms - before.uptime_ms) / 1000;
  out.all = RatesBetween(before.totals, now.totals, out.seconds, now.sessions.size());
  out.all.evictions = Grown(Evicted(before), Evicted(now)) / out.seconds;
  std::map<std::pair<std::string, std::uint64_t>, const JobSnapshot*> known;  // by device and id
  for (const JobSnapshot& job : before.jobs) known[{job.device, job.id}] = &job;
  const JobSnapshot none;
  for (const JobSnapshot& job : now.jobs) {
    const auto found = known.find({job.device, job.id});
    const JobSnapshot& was = found == known.end() ? none : *found->second;
    out.jobs.push_back(RatesBetween(was, job, out.seconds, job.sessions));
    out.jobs.back().evictions =
        Grown(Sum(was.evictions_by_reason), Sum(job.evictions_by_reason)) / out.seconds;
  }
  return out;
}

}  // namespace bitpager::cli
