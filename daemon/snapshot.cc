#include "daemon/snapshot.h"

#include <concepts>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "client/wire/types.h"

namespace bitpager::daemon {
namespace {

using nlohmann::json;
using wire::Code;
using wire::Result;
using wire::Status;

static_assert(static_cast<int>(wire::ExtentKind::kOptimizerState) == 0 &&
              static_cast<int>(wire::ExtentKind::kQuantizedWeight) == 1);

static_assert(static_cast<int>(paging::Reason::kDemand) == 0 &&
              static_cast<int>(paging::Reason::kPrefetch) == 1 &&
              static_cast<int>(paging::Reason::kShare) == 2 &&
              static_cast<int>(paging::Reason::kLimit) == 3 &&
              static_cast<int>(paging::Reason::kCommand) == 4 &&
              static_cast<int>(paging::Reason::kPressure) == 5 &&
              static_cast<int>(paging::Reason::kClosing) == 6);

// One walk over the fields serves both ways: Fields(x, visit) calls visit(name, member) for each.
template <typename S, typename V>
void Fields(S& s, V&& visit) requires std::same_as<std::remove_const_t<S>, MovedSnapshot> {
  visit("to_device", s.to_device);
  visit("to_host", s.to_host);
  visit("dropped", s.dropped);
}

template <typename S, typename V>
void Fields(S& s, V&& visit) requires std::same_as<std::remove_const_t<S>, SavedSnapshot> {
  visit("states_32bit", s.states_32bit);
  visit("weights_16bit", s.weights_16bit);
}

template <typename S, typename V>
void Fields(S& s, V&& visit) requires std::same_as<std::remove_const_t<S>, HistogramSnapshot> {
  visit("bounds_s", s.bounds_s);
  visit("counts", s.counts);
  visit("sum_s", s.sum_s);
  visit("count", s.count);
}

template <typename S, typename V>
void Fields(S& s, V&& visit) requires std::same_as<std::remove_const_t<S>, HistogramsSnapshot> {
  visit("step", s.step);
  visit("stall", s.stall);
  visit("fault", s.fault);
  visit("request", s.request);
}

template <typename S, typename V>
void Fields(S& s, V&& visit) requires std::same_as<std::remove_const_t<S>, LinkSnapshot> {
  visit("to_device_bytes_per_s", s.to_device_bytes_per_s);
  visit("to_host_bytes_per_s", s.to_host_bytes_per_s);
}

template <typename S, typename V>
void Fields(S& s, V&& visit) requires std::same_as<std::remove_const_t<S>, HttpSnapshot> {
  visit("requests", s.requests);
  visit("scrapes", s.scrapes);
  visit("scrape_ns_last", s.scrape_ns_last);
}

template <typename S, typename V>
void Fields(S& s, V&& visit) requires std::same_as<std::remove_const_t<S>, PastJobSnapshot> {
  visit("name", s.name);
  visit("device", s.device);
  visit("uid", s.uid);
  visit("jobs", s.jobs);
  visit("steps", s.steps);
  visit("faults", s.faults);
  visit("stall_ns", s.stall_ns);
  visit("nonfinite_blocks", s.nonfinite_blocks);
  visit("evictions_by_reason", s.evictions_by_reason);
  visit("moved_by_reason", s.moved_by_reason);
  visit("step_ns", s.step_ns);
}

template <typename S, typename V>
void Fields(S& s, V&& visit) requires std::same_as<std::remove_const_t<S>, ExtentSnapshot> {
  visit("id", s.id);
  visit("kind", s.kind);
  visit("name", s.name);
  visit("rank", s.rank);
  visit("pages", s.pages);
  visit("resident_bytes", s.resident_bytes);
  visit("step", s.step);
  visit("lingering", s.lingering);
  visit("uses", s.uses);
}

template <typename S, typename V>
void Fields(S& s, V&& visit) requires std::same_as<std::remove_const_t<S>, JobSnapshot> {
  visit("id", s.id);
  visit("name", s.name);
  visit("device", s.device);
  visit("uid", s.uid);
  visit("sessions", s.sessions);
  visit("lingering", s.lingering);
  visit("linger_left_ms", s.linger_left_ms);
  visit("weight", s.weight);
  visit("device_quota_bytes", s.device_quota_bytes);
  visit("host_quota_bytes", s.host_quota_bytes);
  visit("pages", s.pages);
  visit("resident_bytes", s.resident_bytes);
  visit("host_bytes", s.host_bytes);
  visit("disk_bytes", s.disk_bytes);
  visit("leased_bytes", s.leased_bytes);
  visit("dirty_bytes", s.dirty_bytes);
  visit("buffer_bytes", s.buffer_bytes);
  visit("shared_bytes", s.shared_bytes);
  visit("bytes_by_kind", s.bytes_by_kind);
  visit("resident_bytes_by_kind", s.resident_by_kind);
  visit("share_bytes", s.share_bytes);
  visit("loaded_bytes", s.loaded_bytes);
  visit("stored_bytes", s.stored_bytes);
  visit("dropped_bytes", s.dropped_bytes);
  visit("steps", s.steps);
  visit("stall_ns", s.stall_ns);
  visit("nonfinite_blocks", s.nonfinite_blocks);
  visit("extents", s.extents);
  visit("ending", s.ending);
  visit("host_by_kind", s.host_by_kind);
  visit("disk_by_kind", s.disk_by_kind);
  visit("evictions_by_reason", s.evictions_by_reason);
  visit("moved_by_reason", s.moved_by_reason);
  visit("saved_bytes", s.saved_bytes);
  visit("faults", s.faults);
  visit("step_ns_last", s.step_ns_last);
  visit("stall_ns_last", s.stall_ns_last);
  visit("last_event", s.last_event);
  visit("step_ns", s.step_ns);
  visit("peak_resident_bytes", s.peak_resident_bytes);
  visit("peak_host_bytes", s.peak_host_bytes);
}

template <typename S, typename V>
void Fields(S& s, V&& visit) requires std::same_as<std::remove_const_t<S>, SessionSnapshot> {
  visit("id", s.id);
  visit("pid", s.pid);
  visit("uid", s.uid);
  visit("job", s.job);
  visit("device", s.device);
  visit("rank", s.rank);
  visit("client", s.client);
  visit("outstanding", s.outstanding);
}

template <typename S, typename V>
void Fields(S& s, V&& visit) requires std::same_as<std::remove_const_t<S>, DeviceSnapshot> {
  visit("kind", s.kind);
  visit("uuid", s.uuid);
  visit("name", s.name);
  visit("budget_bytes", s.budget_bytes);
  visit("used_bytes", s.used_bytes);
  visit("free_bytes", s.free_bytes);
  visit("budget_frames", s.budget_frames);
  visit("used_frames", s.used_frames);
  visit("free_frames", s.free_frames);
  visit("host_budget_bytes", s.host_budget_bytes);
  visit("host_committed_bytes", s.host_committed_bytes);
  visit("disk_budget_bytes", s.disk_budget_bytes);
  visit("disk_committed_bytes", s.disk_committed_bytes);
  visit("open", s.open);
  visit("gpu", s.gpu);
  visit("memory_total_bytes", s.memory_total_bytes);
  visit("memory_free_bytes", s.memory_free_bytes);
  visit("own_bytes", s.own_bytes);
  visit("pinned_host_bytes", s.pinned_host_bytes);
  visit("pressure_ratio", s.pressure_ratio);
  visit("leased_bytes", s.leased_bytes);
  visit("dirty_bytes", s.dirty_bytes);
  visit("link", s.link);
  visit("evictions_by_reason", s.evictions_by_reason);
  visit("moved_by_reason", s.moved_by_reason);
  visit("requests", s.requests);
  visit("steps", s.steps);
  visit("faults", s.faults);
  visit("stall_ns", s.stall_ns);
  visit("nonfinite_blocks", s.nonfinite_blocks);
  visit("histograms", s.histograms);
  visit("ipc_survives", s.ipc_survives);
  visit("ipc_problem", s.ipc_problem);
  visit("step_ns", s.step_ns);
}

template <typename S, typename V>
void Fields(S& s, V&& visit) requires std::same_as<std::remove_const_t<S>, TotalsSnapshot> {
  visit("loaded_bytes", s.loaded_bytes);
  visit("stored_bytes", s.stored_bytes);
  visit("dropped_bytes", s.dropped_bytes);
  visit("steps", s.steps);
  visit("requests", s.requests);
  visit("stall_ns", s.stall_ns);
  visit("nonfinite_blocks", s.nonfinite_blocks);
  visit("sessions_opened", s.sessions_opened);
  visit("sessions_lost", s.sessions_lost);
  visit("faults", s.faults);
  visit("events_dropped", s.events_dropped);
  visit("http", s.http);
  visit("step_ns", s.step_ns);
}

template <typename S, typename V>
void Fields(S& s, V&& visit) requires std::same_as<std::remove_const_t<S>, Snapshot> {
  visit("time_unix_ms", s.time_unix_ms);
  visit("version", s.version);
  visit("pid", s.pid);
  visit("uptime_ms", s.uptime_ms);
  visit("draining", s.draining);
  visit("private", s.private_mode);
  visit("socket", s.socket_path);
  visit("policy", s.policy);
  visit("page_bytes", s.page_bytes);
  visit("window_pages", s.window_pages);
  visit("host_budget_bytes", s.host_budget_bytes);
  visit("host_committed_bytes", s.host_committed_bytes);
  visit("devices", s.devices);
  visit("jobs", s.jobs);
  visit("sessions", s.sessions);
  visit("totals", s.totals);
  visit("errors", s.errors);
  visit("past_jobs", s.past_jobs);
  visit("events", s.events);
  visit("start_unix_ms", s.start_unix_ms);
  visit("http", s.http);
}

// ---- writing
template <typename S>
json ObjectOf(const S& s);

template <typename T>
json ValueOf(const T& value) {
  if constexpr (requires { Fields(value, [](const char*, const auto&) {}); }) {
    return ObjectOf(value);
  } else {
    return json(value);
  }
}
template <typename T>
json ValueOf(const std::vector<T>& items) {
  json out = json::array();
  for (const T& item : items) out.push_back(ValueOf(item));
  return out;
}
// Counts by kind or by reason, with their names.
constexpr const auto& NamesOf(const std::array<std::uint64_t, 2>& /*by_kind*/) {
  return kKindNames;
}
constexpr const auto& NamesOf(const paging::ByReason& /*by_reason*/) {
  return kReasonNames;
}
template <std::size_t n>
json ValueOf(const std::array<std::uint64_t, n>& counts) {
  json out = json::object();
  for (std::size_t i = 0; i < n; ++i) out[NamesOf(counts)[i]] = counts[i];
  return out;
}

template <typename S>
json ObjectOf(const S& s) {
  json out = json::object();
  Fields(s, [&](const char* name, const auto& member) { out[name] = ValueOf(member); });
  return out;
}

// ---- reading. Throws std::invalid_argument; caught at the border below.
[[noreturn]] void Wrong(const std::string& name, const char* expected) {
  throw std::invalid_argument(name + " is not " + expected);
}

template <typename S>
void ReadObject(const json& from, S& out, const std::string& place);

void Read(const json& from, std::string& out, const std::string& name) {
  if (!from.is_string()) Wrong(name, "a string");
  out = from.get<std::string>();
}
void Read(const json& from, bool& out, const std::string& name) {
  if (!from.is_boolean()) Wrong(name, "true or false");
  out = from.get<bool>();
}
void Read(const json& from, double& out, const std::string& name) {
  if (!from.is_number()) Wrong(name, "a number");
  out = from.get<double>();
}
void Read(const json& from, std::int64_t& out, const std::string& name) {
  const bool fits =
      from.is_number_integer() &&
      (!from.is_number_unsigned() ||
       from.get<std::uint64_t>() <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()));
  if (!fits) Wrong(name, "an integer");
  out = from.get<std::int64_t>();
}
void Read(const json& from, std::uint64_t& out, const std::string& name) {
  if (!from.is_number_unsigned()) Wrong(name, "an unsigned integer");
  out = from.get<std::uint64_t>();
}
void Read(const json& from, std::uint32_t& out, const std::string& name) {
  std::uint64_t wide = 0;
  Read(from, wide, name);
  if (wide > std::numeric_limits<std::uint32_t>::max()) Wrong(name, "a 32-bit integer");
  out = static_cast<std::uint32_t>(wide);
}
template <std::size_t n>
void Read(const json& from, std::array<std::uint64_t, n>& out, const std::string& name) {
  if (!from.is_object()) Wrong(name, "an object");
  for (std::size_t i = 0; i < n; ++i) {
    const char* key = NamesOf(out)[i];
    if (from.contains(key)) Read(from[key], out[i], name + "." + key);
  }
}
void Read(const json& from, std::map<std::string, std::uint64_t>& out, const std::string& name) {
  if (!from.is_object()) Wrong(name, "an object");
  for (const auto& [key, value] : from.items()) Read(value, out[key], name + "." + key);
}
template <typename S>
void Read(const json& from, S& out, const std::string& name) requires requires {
  Fields(out, [](const char*, auto&) {});
}
{ ReadObject(from, out, name + "."); }
template <typename T>
void Read(const json& from, std::vector<T>& out, const std::string& name) {
  if (!from.is_array()) Wrong(name, "an array");
  out.resize(from.size());
  for (std::size_t i = 0; i < out.size(); ++i) {
    Read(from[i], out[i], name + "[" + std::to_string(i) + "]");
  }
}

template <typename S>
void ReadObject(const json& from, S& out, const std::string& place) {
  if (!from.is_object()) Wrong(place.empty() ? "the snapshot" : place, "an object");
  Fields(out, [&](const char* name, auto& member) {
    const auto found = from.find(name);
    if (found != from.end()) Read(*found, member, place + name);
  });
}

}  // namespace

std::string ToJson(const Snapshot& snapshot, int indent) {
  json out = ObjectOf(snapshot);
  out["schema_version"] = kSnapshotSchemaVersion;
  return out.dump(indent, ' ', false, json::error_handler_t::replace);
}

Result<Snapshot> SnapshotFromJson(std::string_view text) {
  const auto bad = [](const std::string& why) {
    return Status(Code::kProtocol, "the daemon's status cannot be read: " + why +
                                       ". Hint: bitpager and bitpagerd should be of one release");
  };
  try {
    const json parsed = json::parse(text);
    if (!parsed.is_object()) return bad("it is not an object");
    std::uint64_t version = 0;
    if (parsed.contains("schema_version")) Read(parsed["schema_version"], version, "schema_version");
    if (version != kSnapshotSchemaVersion) return bad("schema_version is " + std::to_string(version));
    Snapshot out;
    ReadObject(parsed, out, "");
    return out;
  } catch (const std::exception& error) {
    return bad(error.what());
  }
}

}  // namespace bitpager::daemon
