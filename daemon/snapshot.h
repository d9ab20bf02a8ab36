// What the daemon tells operators: a plain copy of its state at one moment, and its two forms. The dispatcher
// fills it; any thread may format it. Bytes of frames count whole pages.
//
// At every moment the jobs' figures add up to their device's: resident, host and buffer, leased and dirty
// bytes over `jobs`; counts over `jobs` and `past_jobs`. Counts never fall.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "client/wire/status.h"
#include "paging/pager.h"

namespace bitpager::daemon {

inline constexpr int kSnapshotSchemaVersion = 1;

// Indexed by wire::ExtentKind.
inline constexpr std::array<const char*, 2> kKindNames = {"optimizer_state", "quantized_weight"};
// Indexed by paging::Reason.
inline constexpr std::array<const char*, paging::kReasons> kReasonNames = {
    "demand", "prefetch", "share", "limit", "command", "pressure", "closing"};

// Bytes that moved, by the reason for it.
struct MovedSnapshot {
  paging::ByReason to_device = {};  // demand and prefetch alone
  paging::ByReason to_host = {};
  paging::ByReason dropped = {};  // left the device without a copy
};

// Bytes less than states and weights take elsewhere: 32-bit states of the same rule, 16-bit weights of as
// many elements. 0 where ours take more: tiny ones fill whole pages.
struct SavedSnapshot {
  std::uint64_t states_32bit = 0;
  std::uint64_t weights_16bit = 0;
};

// counts[i]: what took at most bounds_s[i] and more than the bound before; the last, one more than there are
// bounds: what took longer than all.
struct HistogramSnapshot {
  std::vector<double> bounds_s;
  std::vector<std::uint64_t> counts;
  double sum_s = 0;
  std::uint64_t count = 0;
};

struct HistogramsSnapshot {
  HistogramSnapshot step;     // from the moment that its inputs are ready and it is its turn, to its end
  HistogramSnapshot stall;    // the part of a request for pages in which none of it ran
  HistogramSnapshot fault;    // one wait for a window whose pages were not there
  HistogramSnapshot request;  // as step, of requests of every kind
};

// The fastest that copies of many pages were seen to go so far. 0: not measured yet.
struct LinkSnapshot {
  std::uint64_t to_device_bytes_per_s = 0;
  std::uint64_t to_host_bytes_per_s = 0;
};

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
  std::uint64_t disk_bytes = 0;  // likewise
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
  bool ending = false;                             // nothing is left of it but frames on their way out
  std::array<std::uint64_t, 2> host_by_kind = {};  // indexed by wire::ExtentKind: committed
  std::array<std::uint64_t, 2> disk_by_kind = {};  // likewise
  paging::ByReason evictions_by_reason = {};       // pages that left the device
  MovedSnapshot moved_by_reason;
  SavedSnapshot saved_bytes;
  std::uint64_t faults = 0;  // waits for a window's pages
  std::uint64_t step_ns_last = 0;
  std::uint64_t stall_ns_last = 0;        // of the last request for pages
  std::string last_event;                 // name of the newest event of the job
  std::uint64_t step_ns = 0;              // of all steps so far, as the step histogram counts them
  std::uint64_t peak_resident_bytes = 0;  // most at any moment since the job came
  std::uint64_t peak_host_bytes = 0;      // likewise
};

// Counts of jobs that ended: those of one name, user and device together. Of 64 names; the counts of older
// ones are in one entry without a name.
struct PastJobSnapshot {
  std::string name;
  std::string device;  // UUID
  std::uint32_t uid = 0;
  std::uint64_t jobs = 0;  // how many
  std::uint64_t steps = 0;
  std::uint64_t faults = 0;
  std::uint64_t stall_ns = 0;
  std::uint64_t nonfinite_blocks = 0;
  paging::ByReason evictions_by_reason = {};
  MovedSnapshot moved_by_reason;
  std::uint64_t step_ns = 0;
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
  std::uint64_t disk_budget_bytes = 0;  // 0: no disk tier
  std::uint64_t disk_committed_bytes = 0;
  bool open = true;                      // false: no client came for it yet
  std::string gpu;                       // the driver's index, "0"; "cpu" for the CPU device
  std::uint64_t memory_total_bytes = 0;  // as the driver, or the system, says
  std::uint64_t memory_free_bytes = 0;
  std::uint64_t own_bytes = 0;          // of them, what our segments take
  std::uint64_t pinned_host_bytes = 0;  // locked host memory
  // How near the free memory is to the watermark that pages leave free (by default 1/64 of all, at least 512
  // MiB): 1 - (free - watermark) / watermark, within 0 and 1.
  double pressure_ratio = 0;
  std::uint64_t leased_bytes = 0;
  std::uint64_t dirty_bytes = 0;
  LinkSnapshot link;
  // Counts of all jobs there ever were.
  paging::ByReason evictions_by_reason = {};
  MovedSnapshot moved_by_reason;
  std::uint64_t requests = 0;
  std::uint64_t steps = 0;
  std::uint64_t faults = 0;
  std::uint64_t stall_ns = 0;
  std::uint64_t nonfinite_blocks = 0;
  HistogramsSnapshot histograms;
  std::string ipc_survives;   // whether memory lent by handle outlives its lender: IpcSurvivalName
  std::string ipc_problem;    // why that is not known
  std::uint64_t step_ns = 0;  // of all steps of all jobs there ever were
};

struct HttpSnapshot {
  std::uint64_t requests = 0;
  std::uint64_t scrapes = 0;         // of /metrics
  std::uint64_t scrape_ns_last = 0;  // what the one before took
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
  std::uint64_t faults = 0;
  std::uint64_t events_dropped = 0;  // readers were too far behind
  HttpSnapshot http;
  std::uint64_t step_ns = 0;
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
  std::vector<PastJobSnapshot> past_jobs;
  std::map<std::string, std::uint64_t> events;  // so far, by name
  std::int64_t start_unix_ms = 0;
  std::string http;  // address and port that answer HTTP; empty: none
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
