#include "daemon/config_settings.h"

#include <array>
#include <bit>
#include <charconv>
#include <cmath>

#include "daemon/http_address.h"
#include "daemon/log.h"

namespace bitpager::daemon {
namespace {

using wire::Code;
using wire::Status;

Status Bad(const std::string& text, const std::string& why_and_hint) {
  return {Code::kInvalidArgument, "'" + text + "' " + why_and_hint};
}

// Integers in [low, high].
template <typename T>
Status SetInteger(T& out, const std::string& text, long long low, long long high) {
  long long value = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size() || value < low || value > high) {
    return Bad(text, "is not a whole number from " + std::to_string(low) + " to " + std::to_string(high));
  }
  out = static_cast<T>(value);
  return {};
}

Status SetBool(bool& out, const std::string& text) {
  if (text != "true" && text != "false") return Bad(text, "is neither true nor false");
  out = text == "true";
  return {};
}

Status SetSize(SizeSetting& out, const std::string& text) {
  const auto size = ParseSize(text);
  if (!size.ok()) return size.status();
  if (size->kind == SizeSetting::Kind::kBytes && size->bytes == 0) {
    return Bad(text, "is no budget or quota. Hint: leave the setting out for the default");
  }
  out = *size;
  return {};
}

Status SetPageBytes(Config& config, const std::string& text) {
  const auto bytes = ParseBytes(text);
  if (!bytes.ok()) return bytes.status();
  if (!std::has_single_bit(*bytes) || *bytes < (16U << 10) || *bytes > (64U << 20)) {
    return Bad(text,
               "is no page size. Hint: a power of two from 16KiB to 64MiB; 512KiB unless you know better");
  }
  config.page_bytes = *bytes;
  return {};
}

Status SetMode(Config& config, const std::string& text) {
  std::uint32_t mode = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), mode, 8);
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size() || mode > 0777 ||
      (mode & 0600) != 0600) {
    return Bad(text, "is no socket mode. Hint: octal digits that let the owner read and write, as 0660");
  }
  config.socket_mode = mode;
  return {};
}

Status SetWeight(Config& config, const std::string& text) {
  double weight = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), weight);
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size() || !(weight >= 1e-3) ||
      !(weight <= 1e3)) {
    return Bad(text, "is no weight. Hint: a number from 0.001 to 1000; 1 is usual");
  }
  config.job_weight = weight;
  return {};
}

Status SetLinger(Config& config, const std::string& text) {
  const auto ms = ParseDurationMs(text);
  if (!ms.ok()) return ms.status();
  config.linger_ms = *ms;
  return {};
}

Status SetLeaseReturn(Config& config, const std::string& text) {
  const auto ms = ParseDurationMs(text);
  if (!ms.ok()) return ms.status();
  config.lease_return_ms = *ms;
  return {};
}

Status SetLogLevel(Config& config, const std::string& text) {
  if (!IsLogLevel(text)) {
    return Bad(text, "is no log level. Hint: one of trace, debug, info, warn, error, off");
  }
  config.log_level = text;
  return {};
}

Status SetPolicy(Config& config, const std::string& text) {
  const auto policy = ParsePolicy(text);
  if (!policy.ok()) return policy.status();
  config.policy = *policy;
  return {};
}

Status SetKind(Config& config, const std::string& text) {
  if (text != "auto" && text != "cpu" && text != "cuda") {
    return Bad(text, "is no device kind. Hint: cpu, cuda, or auto: the GPUs that can be used, else the CPU");
  }
  config.device_kind = text;
  return {};
}

Status SetWatermark(Config& config, const std::string& text) {
  const auto bytes = ParseBytes(text);
  if (!bytes.ok()) return bytes.status();
  config.free_watermark_bytes = *bytes;
  return {};
}

Status SetFrames(Config& config, const std::string& text) {
  if (text != "explicit" && text != "managed") return Bad(text, "is neither explicit nor managed");
  config.managed = text == "managed";
  return {};
}

Status SetEndpoint(std::string& out, const std::string& text) {
  if (text.rfind("ipc:///", 0) != 0) {
    return Bad(text, "is no endpoint. Hint: ipc:// and an absolute path, as ipc:///run/bitpager/status");
  }
  out = text;
  return {};
}

Status SetHttp(Config& config, const std::string& text) {
  if (!text.empty()) {
    const auto address = ParseHttpAddress(text);
    if (!address.ok()) return address.status();
  }
  config.http = text;
  return {};
}

constexpr unsigned kSize = kText | kInteger;

// clang-format off
constexpr std::array kSettings = std::to_array<Setting>({
    {"socket.path", "--socket", "PATH", "Unix socket to serve", kText,
     [](Config& c, const std::string& t) -> Status {
       if (t.empty()) return Bad(t, "is no path");
       c.socket_path = t;
       return {};
     }},
    {"socket.mode", "--socket-mode", "MODE", "its file mode (0600; 0660 with a group)", kText, SetMode},
    {"socket.group", "--socket-group", "GROUP", "group that may use the daemon", kText,
     [](Config& c, const std::string& t) -> Status { c.socket_group = t; return {}; }},
    {"memory.device_budget", "--device-budget", "SIZE", "memory for device frames (90% of what a GPU has free, 25% on the CPU)", kSize,
     [](Config& c, const std::string& t) { return SetSize(c.device_budget, t); }},
    {"memory.host_budget", "--host-budget", "SIZE", "memory for host frames (50% of what is free)", kSize,
     [](Config& c, const std::string& t) { return SetSize(c.host_budget, t); }},
    {"memory.disk_folder", "--disk-folder", "PATH", "folder for pages of weights that are to lie on disk (none)", kText,
     [](Config& c, const std::string& t) -> Status { c.disk_folder = t; return {}; }},
    {"memory.disk_budget", "--disk-budget", "SIZE", "bytes set aside there (25% of what is free)", kSize,
     [](Config& c, const std::string& t) { return SetSize(c.disk_budget, t); }},
    {"memory.page_size", "--page-size", "SIZE", "bytes of a page (512KiB)", kSize, SetPageBytes},
    {"memory.window_pages", "--window-pages", "N", "pages of one streaming window (16MiB of them, 8 to 32)", kInteger,
     [](Config& c, const std::string& t) { return SetInteger(c.window_pages, t, 1, 1024); }},
    {"memory.windows_in_flight", "--windows-in-flight", "N", "windows that overlap: load, step, write back (3; GPUs 6)",
     kInteger, [](Config& c, const std::string& t) { return SetInteger(c.windows_in_flight, t, 1, 16); }},
    {"memory.policy", "--policy", "NAME", "which pages leave: scan, lru, clock (scan)", kText, SetPolicy},
    {"memory.poison_frames", "--poison-frames", nullptr, "overwrite frames that are given up", kBoolean,
     [](Config& c, const std::string& t) { return SetBool(c.poison_frames, t); }},
    {"memory.free_watermark", "--free-watermark", "SIZE", "memory of a GPU that pages leave free (1/64, 512MiB at least)",
     kSize, SetWatermark},
    {"memory.frames", "--frames", "KIND", "explicit (moved by copies) or managed (CUDA Unified Memory)", kText,
     SetFrames},
    {"memory.managed_beyond_free", "--managed-beyond-free", nullptr,
     "let managed frames exceed the device's free memory", kBoolean,
     [](Config& c, const std::string& t) { return SetBool(c.managed_beyond_free, t); }},
    {"device.kind", "--device", "KIND", "device that holds the frames: cpu, cuda, auto (auto)", kText, SetKind},
    {"device.index", "--device-index", "N", "which one of its kind (all)", kInteger,
     [](Config& c, const std::string& t) { return SetInteger(c.device_index, t, 0, 1023); }},
    {"device.uuid", "--device-uuid", "UUID", "one GPU by its UUID, as nvidia-smi -L prints it", kText,
     [](Config& c, const std::string& t) -> Status { c.device_uuid = t; return {}; }},
    {"device.threads", "--threads", "N", "compute threads of the CPU device (0: all allowed)", kInteger,
     [](Config& c, const std::string& t) { return SetInteger(c.device_threads, t, 0, 1024); }},
    {"device.test_handles", "--test-handles", "BOOL", "try once, unused, what memory lent by CUDA handle survives (true)",
     kBoolean, [](Config& c, const std::string& t) { return SetBool(c.test_handles, t); }},
    {"jobs.weight", "--job-weight", "W", "share of a job under contention (1)", kInteger | kFloat, SetWeight},
    {"jobs.device_quota", "--job-device-quota", "SIZE", "device bytes of a job (none but the budget)", kSize,
     [](Config& c, const std::string& t) { return SetSize(c.job_device_quota, t); }},
    {"jobs.host_quota", "--job-host-quota", "SIZE", "host bytes of a job (none but the budget)", kSize,
     [](Config& c, const std::string& t) { return SetSize(c.job_host_quota, t); }},
    {"jobs.share_weights", "--share-weights", "BOOL", "hold equal weights of one user's jobs once (true)", kBoolean,
     [](Config& c, const std::string& t) { return SetBool(c.share_weights, t); }},
    {"jobs.linger", "--linger", "TIME", "how long a job's pages stay after its last session (0)", kText,
     SetLinger},
    {"limits.max_sessions", "--max-sessions", "N", "sessions at a time (256)", kInteger,
     [](Config& c, const std::string& t) { return SetInteger(c.max_sessions, t, 1, 65536); }},
    {"limits.max_sessions_of_user", "--max-sessions-of-user", "N",
     "of one user but root and the daemon's own (three quarters of them)", kInteger,
     [](Config& c, const std::string& t) { return SetInteger(c.max_sessions_of_user, t, 1, 65536); }},
    {"limits.lease_return", "--lease-return", "TIME", "in which a revoked lease is to be given back (5s)", kText,
     SetLeaseReturn},
    {"log.level", "--log-level", "LEVEL", "trace, debug, info, warn, error, off (info)", kText, SetLogLevel},
    {"telemetry.status", "--status-endpoint", "ENDPOINT", "where status is asked (ipc://SOCKET.status)", kText,
     [](Config& c, const std::string& t) { return SetEndpoint(c.status_endpoint, t); }},
    {"telemetry.events", "--events-endpoint", "ENDPOINT", "where events are told (ipc://SOCKET.events)", kText,
     [](Config& c, const std::string& t) { return SetEndpoint(c.events_endpoint, t); }},
    {"telemetry.http", "--http", "ADDRESS", "serve metrics and the dashboard, as 127.0.0.1:9790 (nowhere)", kText, SetHttp},
    {"telemetry.http_remote", "--http-remote", nullptr, "let --http be an address that other machines reach", kBoolean,
     [](Config& c, const std::string& t) { return SetBool(c.http_remote, t); }},
});
// clang-format on

}  // namespace

std::span<const Setting> Settings() {
  return kSettings;
}

}  // namespace bitpager::daemon
