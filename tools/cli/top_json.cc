#include "tools/cli/top_json.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace bitpager::cli {
namespace {

using daemon::DeviceSnapshot;
using daemon::JobSnapshot;
using daemon::Snapshot;
using nlohmann::json;

std::uint64_t Whole(double value) {
  return static_cast<std::uint64_t>(std::llround(std::clamp(value, 0.0, 1e18)));
}

void AddRates(const JobRates& rates, json& out) {
  out["to_device_bytes_per_s"] = Whole(rates.to_device_bytes);
  out["to_host_bytes_per_s"] = Whole(rates.to_host_bytes);
  out["steps_per_s"] = rates.steps;
  out["evictions_per_s"] = rates.evictions;
  out["stall_ratio"] = rates.stall_ratio;
}

json TotalsOf(const Snapshot& s, const JobRates& rates) {
  json out = {{"sessions", s.sessions.size()},
              {"loaded_bytes", s.totals.loaded_bytes},
              {"stored_bytes", s.totals.stored_bytes},
              {"dropped_bytes", s.totals.dropped_bytes},
              {"steps", s.totals.steps},
              {"requests", s.totals.requests},
              {"stall_ns", s.totals.stall_ns},
              {"nonfinite_blocks", s.totals.nonfinite_blocks},
              {"sessions_opened", s.totals.sessions_opened},
              {"sessions_lost", s.totals.sessions_lost}};
  AddRates(rates, out);
  return out;
}

json ByReason(const paging::ByReason& pages) {
  json out = json::object();
  for (std::size_t i = 0; i < pages.size(); ++i) out[daemon::kReasonNames[i]] = pages[i];
  return out;
}

json DeviceOf(const Snapshot& s, const DeviceSnapshot& d) {
  return {{"gpu", DeviceLabel(s, d.uuid)},
          {"uuid", d.uuid},
          {"kind", d.kind},
          {"name", d.name},
          {"budget_bytes", d.budget_bytes},
          {"used_bytes", d.used_bytes},
          {"free_bytes", d.free_bytes},
          {"memory_total_bytes", d.memory_total_bytes},
          {"memory_free_bytes", d.memory_free_bytes},
          {"own_bytes", d.own_bytes},
          {"disk_budget_bytes", d.disk_budget_bytes},
          {"disk_committed_bytes", d.disk_committed_bytes},
          {"pressure_ratio", d.pressure_ratio},
          {"link_to_device_bytes_per_s", d.link.to_device_bytes_per_s},
          {"link_to_host_bytes_per_s", d.link.to_host_bytes_per_s},
          {"evictions", ByReason(d.evictions_by_reason)},

          {"open", d.open}};
}

json JobOf(const Snapshot& s, const JobSnapshot& j, const JobRates& rates) {
  json out = {{"name", j.name},
              {"gpu", DeviceLabel(s, j.device)},
              {"device", j.device},
              {"uid", j.uid},
              {"sessions", j.sessions},
              {"lingering", j.lingering},
              {"weight", j.weight},
              {"device_quota_bytes", j.device_quota_bytes},
              {"share_bytes", j.share_bytes},
              {"resident_bytes", j.resident_bytes},
              {"host_bytes", j.host_bytes},
              {"disk_bytes", j.disk_bytes},
              {"peak_resident_bytes", j.peak_resident_bytes},
              {"peak_host_bytes", j.peak_host_bytes},
              {"dirty_bytes", j.dirty_bytes},
              {"leased_bytes", j.leased_bytes},
              {"optimizer_state_bytes", j.bytes_by_kind[0]},
              {"quantized_weight_bytes", j.bytes_by_kind[1]},
              {"loaded_bytes", j.loaded_bytes},
              {"stored_bytes", j.stored_bytes},
              {"dropped_bytes", j.dropped_bytes},
              {"steps", j.steps},
              {"stall_ns", j.stall_ns},
              {"faults", j.faults},
              {"step_ns", j.step_ns},
              {"step_ns_last", j.step_ns_last},
              {"stall_ns_last", j.stall_ns_last},
              {"evictions", ByReason(j.evictions_by_reason)}};
  AddRates(rates, out);
  return out;
}

}  // namespace

std::string TopJson(const TopView& view, const std::vector<Event>& events) {
  const Snapshot& s = view.now;
  const Rates& rates = *view.rates;
  json out = {{"schema_version", kTopSchemaVersion},
              {"time_unix_ms", s.time_unix_ms},
              {"interval_s", rates.seconds},
              {"daemon",
               {{"version", s.version},
                {"pid", s.pid},
                {"uptime_ms", s.uptime_ms},
                {"socket", s.socket_path},
                {"draining", s.draining},
                {"private", s.private_mode}}},
              {"host", {{"budget_bytes", s.host_budget_bytes}, {"committed_bytes", s.host_committed_bytes}}},
              {"totals", TotalsOf(s, rates.all)},
              {"devices", json::array()},
              {"jobs", json::array()},
              {"events", json::array()}};
  for (const DeviceSnapshot& device : s.devices) out["devices"].push_back(DeviceOf(s, device));
  for (std::size_t i = 0; i < s.jobs.size(); ++i) {
    out["jobs"].push_back(JobOf(s, s.jobs[i], rates.jobs[i]));
  }
  for (const Event& event : events) out["events"].push_back(json::parse(event.json));
  return out.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace bitpager::cli
