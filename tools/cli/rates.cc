#include "tools/cli/rates.h"

#include <algorithm>
#include <map>
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

// Of a job or of all: both have these counters.
template <typename Counters>
JobRates RatesBetween(const Counters& before, const Counters& now, double seconds, std::uint64_t page_bytes,
                      std::size_t sessions) {
  JobRates out;
  const double stored = Grown(before.stored_bytes, now.stored_bytes);
  out.to_device_bytes = Grown(before.loaded_bytes, now.loaded_bytes) / seconds;
  out.to_host_bytes = stored / seconds;
  out.steps = Grown(before.steps, now.steps) / seconds;
  out.stall_ratio = StallRatio(Grown(before.stall_ns, now.stall_ns), seconds, sessions);
  const double left = stored + Grown(before.dropped_bytes, now.dropped_bytes);
  out.evictions = left / static_cast<double>(std::max<std::uint64_t>(page_bytes, 1)) / seconds;
  return out;
}

}  // namespace

std::optional<Rates> RatesOf(const Snapshot& before, const Snapshot& now) {
  if (before.pid != now.pid || before.socket_path != now.socket_path || now.uptime_ms <= before.uptime_ms) {
    return std::nullopt;
  }
  Rates out;
  out.seconds = static_cast<double>(now.uptime_ms - before.uptime_ms) / 1000;
  out.all = RatesBetween(before.totals, now.totals, out.seconds, now.page_bytes, now.sessions.size());
  std::map<std::pair<std::string, std::uint64_t>, const JobSnapshot*> known;  // by device and id
  for (const JobSnapshot& job : before.jobs) known[{job.device, job.id}] = &job;
  const JobSnapshot none;
  for (const JobSnapshot& job : now.jobs) {
    const auto found = known.find({job.device, job.id});
    out.jobs.push_back(RatesBetween(found == known.end() ? none : *found->second, job, out.seconds,
                                    now.page_bytes, job.sessions));
  }
  return out;
}

}  // namespace bitpager::cli
