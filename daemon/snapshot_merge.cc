// Snapshots of several devices' dispatchers become one.
#include <iterator>

#include "daemon/snapshot.h"

namespace bitpager::daemon {

void Merge(Snapshot& into, Snapshot&& from) {
  const auto append = [](auto& to, auto& items) {
    to.insert(to.end(), std::make_move_iterator(items.begin()), std::make_move_iterator(items.end()));
  };
  into.draining = into.draining || from.draining;
  into.host_budget_bytes += from.host_budget_bytes;
  into.host_committed_bytes += from.host_committed_bytes;
  append(into.devices, from.devices);
  append(into.jobs, from.jobs);
  append(into.sessions, from.sessions);
  append(into.past_jobs, from.past_jobs);
  TotalsSnapshot& totals = into.totals;
  totals.loaded_bytes += from.totals.loaded_bytes;
  totals.stored_bytes += from.totals.stored_bytes;
  totals.dropped_bytes += from.totals.dropped_bytes;
  totals.steps += from.totals.steps;
  totals.requests += from.totals.requests;
  totals.stall_ns += from.totals.stall_ns;
  totals.nonfinite_blocks += from.totals.nonfinite_blocks;
  totals.sessions_opened += from.totals.sessions_opened;
  totals.sessions_lost += from.totals.sessions_lost;
  totals.faults += from.totals.faults;
  totals.step_ns += from.totals.step_ns;
  for (const auto& [name, count] : from.errors) into.errors[name] += count;
}

}  // namespace bitpager::daemon
