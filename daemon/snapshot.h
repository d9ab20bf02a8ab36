// What the daemon tells operators: a plain copy of its state at one moment, and its two forms. The dispatcher
// fills it; any thread may format it. Bytes of frames count whole pages.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "client/wire/status.h"

namespace bitpager::daemon {

inline constexpr int kSnapshotSchemaVersion = 1;

struct ExtentSnapshot {
  std::uint64_t id = 0;
  std::string kind;  // "optimizer_state", "quantized_weight"
  std::string name;  // optimizer or weight
  std::uint32_t rank = 0;
  std::uint64_t pages = 0;
  std::uint64_t resident_bytes = 0;  // of all its pages, whoever has them too
  std::uint64_t step = 0;            // optimizer states: the step they are at
  bool lingering = false;            // kept without a session
  std::uint64_t uses = 1;            // weights, of this and other jobs, that lie in its pages
};

struct JobSnapshot {
  std::uint64_t id = 0;
  std::string name;
  std::string device;  // UUID; a job on several devices is listed once for each
  std::uint32_t uid = 0;
  std::uint32_t sessions = 0;
  bool lingering = false;  // no session; its extents are kept for linger_left_ms
  std::int64_t linger_left_ms = 0;
  double weight = 1.0;
  std::uint64_t device_quota_bytes = 0;  // 0: none but the budget
  std::uint64_t host_quota_bytes = 0;
  std::uint64_t pages = 0;
  std::uint64_t resident_bytes = 0;
  std::uint64_t host_bytes = 0;  // committed
  std::uint64_t leased_bytes = 0;
  std::uint64_t dirty_bytes = 0;
  std::uint64_t buffer_bytes = 0;  // slabs that the daemon made for it
  // Weights that others have too, in full. The other figures have the job's part of them, so that all jobs'
  // sum to the device's.
  std::uint64_t shared_bytes = 0;
  std::array<std::uint64_t, 2> bytes_by_kind = {};     // indexed by wire::ExtentKind: all pages
  std::array<std::uint64_t, 2> resident_by_kind = {};  // indexed by wire::ExtentKind
  std::uint64_t share_bytes = 0;                       // fair share of the device now
  std::uint64_t loaded_bytes = 0;                      // copied to the device since the job came
  std::uint64_t stored_bytes = 0;                      // copied to the host
  std::uint64_t dropped_bytes = 0;                     // left the device without a copy
  std::uint64_t steps = 0;
  std::uint64_t stall_ns = 0;
  std::uint64_t nonfinite_blocks = 0;
  std::vector<ExtentSnapshot> extents;
};

struct SessionSnapshot {
  std::uint64_t id = 0;
  std::int64_t pid = 0;  // 0: hidden by a pid namespace
  std::uint32_t uid = 0;
  std::string job;
  std::string device;  // UUID
  std::uint32_t rank = 0;
  std::string client;
  std::uint32_t outstanding = 0;  // tickets
};

struct DeviceSnapshot {
  std::string kind;
  std::string uuid;
  std::string name;
  std::uint64_t budget_bytes = 0;
  std::uint64_t used_bytes = 0;
  std::uint64_t free_bytes = 0;
  std::uint64_t budget_frames = 0;
  std::uint64_t used_frames = 0;
  std::uint64_t free_frames = 0;
  std::uint64_t host_budget_bytes = 0;
  std::uint64_t host_committed_bytes = 0;
  bool open = true;  // false: no client came for it yet
};

struct TotalsSnapshot {
  std::uint64_t loaded_bytes = 0;
  std::uint64_t stored_bytes = 0;
  std::uint64_t dropped_bytes = 0;
  std::uint64_t steps = 0;
  std::uint64_t requests = 0;
  std::uint64_t stall_ns = 0;
  std::uint64_t nonfinite_blocks = 0;
  std::uint64_t sessions_opened = 0;
  std::uint64_t sessions_lost = 0;  // ended without a detach
};

struct Snapshot {
  std::int64_t time_unix_ms = 0;
  std::string version;
  std::int64_t pid = 0;
  std::uint64_t uptime_ms = 0;
  bool draining = false;
  bool private_mode = false;
  std::string socket_path;
  std::string policy;
  std::uint64_t page_bytes = 0;
  std::uint32_t window_pages = 0;
  std::uint64_t host_budget_bytes = 0;     // of all devices together
  std::uint64_t host_committed_bytes = 0;  // likewise
  std::vector<DeviceSnapshot> devices;
  std::vector<JobSnapshot> jobs;
  std::vector<SessionSnapshot> sessions;
  TotalsSnapshot totals;
  std::map<std::string, std::uint64_t> errors;  // replies and completions that failed, by wire::CodeName
};

// Adds what another device's dispatcher told.
void Merge(Snapshot& into, Snapshot&& from);

// One JSON object, schema_version 1; bytes and counts are integers. Valid UTF-8 whatever the names hold.
[[nodiscard]] std::string ToJson(const Snapshot& snapshot, int indent = -1);
// Reads what ToJson wrote, also by a newer daemon (unknown keys are passed over). kProtocol.
[[nodiscard]] wire::Result<Snapshot> SnapshotFromJson(std::string_view json);

struct TextStyle {
  bool color = false;
};
// A header and a table of the jobs, for people. Control characters in names are replaced.
[[nodiscard]] std::string ToText(const Snapshot& snapshot, TextStyle style = {});

}  // namespace bitpager::daemon
