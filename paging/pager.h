// The pager of one device: page table, budgets, shares, eviction. It only decides: no I/O, threads or clock;
// the same calls give the same decisions. Called by the dispatcher thread alone. It hands out actions (loads,
// stores, runs, revocations); the caller performs them and reports each completion.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "client/wire/ids.h"
#include "client/wire/status.h"
#include "client/wire/types.h"

namespace bitpager::paging {

// HostOnly -> Loading -> Resident -> Evicting -> HostOnly, plus dirty.
enum class PageState : std::uint8_t { kHostOnly, kLoading, kResident, kEvicting };

// A device frame: a slot of a segment that the caller allocated for a domain.
struct FrameRef {
  std::uint32_t segment = 0;
  std::uint32_t slot = 0;
  auto operator<=>(const FrameRef&) const = default;
};

// Frames of domain 0 are private to the daemon; any other domain's segments are mapped by its clients.
using DomainId = std::uint32_t;
inline constexpr DomainId kPrivateDomain = 0;

enum class Policy : std::uint8_t { kScanAware, kLru, kClock };

struct PagerConfig {
  std::uint64_t page_bytes = 512U << 10;
  std::uint64_t device_frames = 0;      // device budget
  std::uint64_t host_frames = 0;        // host budget: committed at admission, one frame for each page
  std::uint64_t disk_frames = 0;        // likewise of extents whose copies lie on disk
  std::uint32_t segment_frames = 1;     // frames in a segment
  std::uint32_t window_pages = 32;      // pages that one run touches at most
  std::uint32_t windows_in_flight = 3;  // load, step, write-back
  // Pages of streaming windows in flight at least, whatever that costs in copies; 0: a window's.
  std::uint64_t least_under_way = 0;
  // Launches overlap copies: pages are brought in behind resident windows that have not run yet, few large
  // copies are better than many, and the pages that a job is short of lie evenly among those it has.
  bool loads_over_resident = false;
  // Pages that a request hands out in its first decision; each further one, at once behind it, hands out at
  // most `growth` times as many as all before it, and all of them at most a window more. So a device begins
  // before a large request is decided to its end, and has work until the next part is. first_pages 0: all in
  // one decision.
  std::uint64_t first_pages = 0;
  std::uint64_t growth = 6;
  Policy policy = Policy::kScanAware;
  bool poison = false;  // ask for given-up frames to be poisoned
};

// Host frames [first, first + count); those from PagerConfig::host_frames on are frames on disk.
struct HostRun {
  std::uint64_t first = 0;
  std::uint64_t count = 0;
};

// The least device frames a job keeps: one window, or all its pages if it has fewer.
struct JobSpec {
  std::string name;
  double weight = 1.0;                    // share under contention
  std::uint64_t device_quota_frames = 0;  // 0: none but the budget
  std::uint64_t host_quota_frames = 0;
};

struct ExtentSpec {
  wire::JobId job;
  wire::ExtentKind kind = wire::ExtentKind::kOptimizerState;
  std::uint64_t pages = 0;
  bool evictable = true;  // false: device frames are committed at admission
  DomainId domain = kPrivateDomain;
  bool on_disk = false;  // evictable ones: pages that are not on the device lie on disk, not in host memory
};

enum class Access : std::uint8_t {
  kRead,       // loads; pages stay clean
  kUpdate,     // loads; pages become dirty
  kOverwrite,  // every byte is rewritten: no load; pages become dirty
};

struct PageRange {
  wire::ExtentId extent;
  std::uint64_t first = 0;
  std::uint64_t count = 0;
};

struct RequestSpec {
  wire::JobId job;
  Access access = Access::kUpdate;
  std::vector<PageRange> ranges;  // visited in this order
  bool prefetch = false;          // only makes resident what fits the job's share; no runs
  // Of a prefetch: it is asked for next, so it comes in place of what would leave for it then. kFull: the job
  // is at work, or another hint is.
  bool sure = false;
};

struct PageRef {
  wire::ExtentId extent;
  std::uint64_t index = 0;
  auto operator<=>(const PageRef&) const = default;
};

// Why a page comes or leaves. Loads are for demand or prefetch alone; a page leaves for demand (its own job
// needs the frame), prefetch, share (another job under its share does), limit, command, pressure, or closing
// (its extent ends).
enum class Reason : std::uint8_t { kDemand, kPrefetch, kShare, kLimit, kCommand, kPressure, kClosing };
inline constexpr std::size_t kReasons = 7;

using ByReason = std::array<std::uint64_t, kReasons>;  // indexed by Reason

// Pages that moved. They only grow, but for a refused segment, whose arrivals are taken back.
struct Traffic {
  std::uint64_t arrived = 0;  // given a frame, with or without a copy
  ByReason to_device = {};    // copies to the device
  ByReason to_host = {};      // copies to the host
  ByReason dropped = {};      // left the device without a copy
  ByReason evicted = {};      // left the device, copied or dropped
};
void Add(Traffic& to, const Traffic& more);

// Loads and stores of one group belong to one window: where they lie side by side, one copy takes them all. A
// copy over more would delay what waits for its first pages.
struct LoadAction {
  PageRef page;
  FrameRef frame;
  std::uint64_t host_frame = 0;
  std::uint32_t group = 0;
  bool zero = false;  // never written, or about to be overwritten whole: nothing to copy, content undefined;
                      // LoadDone is reported all the same
  Reason reason = Reason::kDemand;
};
struct StoreAction {
  PageRef page;
  FrameRef frame;
  std::uint64_t host_frame = 0;
  std::uint32_t group = 0;
  Reason reason = Reason::kDemand;
};
struct DropAction {  // a clean page left the device; no copy. Already done when reported.
  PageRef page;
  FrameRef frame;
  Reason reason = Reason::kDemand;
};
struct RunPage {
  PageRef page;
  FrameRef frame;
  bool zero = false;  // its content was never written: it reads as zero
};
struct RunAction {
  wire::RequestId request;
  std::uint64_t window = 0;    // counts from 0 within the request
  std::vector<RunPage> pages;  // resident and pinned until RunDone
  bool last = false;           // the request's last window
  bool missing = false;        // pages of it were not resident when it was acquired
  bool leaves = false;         // pages of it are to leave behind it: a launch should end with it
};
struct RevokeAction {  // ask the lease holders of this extent to let go; report with LeaseReleased
  wire::ExtentId extent;
};

// Segments: the caller allocates or frees device memory and answers at once with SegmentReady / nothing.
struct SegmentRequest {
  std::uint32_t segment = 0;  // number chosen by the pager, reused after FreeSegment
  DomainId domain = kPrivateDomain;
};

struct JobUsage {
  std::string name;
  // Of shared extents the job's part: over all jobs these sum to what there is.
  std::uint64_t pages = 0;
  std::uint64_t resident_frames = 0;  // device frames held, Loading and Evicting included
  std::uint64_t leased_frames = 0;
  std::uint64_t host_frames = 0;  // committed
  std::uint64_t disk_frames = 0;  // committed on disk
  std::uint64_t dirty_pages = 0;
  std::uint64_t shared_pages = 0;          // of extents with more uses than one, whole
  std::uint64_t peak_resident_frames = 0;  // most since the job came, or ResetPeaks; never under the present
  std::uint64_t peak_host_frames = 0;      // likewise
  std::uint64_t resident_by_kind[2] = {0, 0};  // by ExtentKind
  std::uint64_t pages_by_kind[2] = {0, 0};
  std::uint64_t host_by_kind[2] = {0, 0};
  std::uint64_t disk_by_kind[2] = {0, 0};
  Traffic traffic;                 // since the job came
  std::uint64_t loaded_pages = 0;  // copies to the device since the job came
  std::uint64_t stored_pages = 0;  // copies to the host
  std::uint64_t dropped_pages = 0;
  std::uint64_t share_frames = 0;  // fair share now
};

// A job that was removed and has let go of its last frame.
struct EndedJob {
  wire::JobId id;
  JobUsage usage;  // its last counts
};

struct Actions {
  std::vector<std::uint32_t> free_segments;  // first: give these back
  std::vector<SegmentRequest> new_segments;  // then allocate these, before any load below
  std::vector<HostRun> free_host;            // no extent's any more; give back before any store below
  std::vector<DropAction> drops;
  std::vector<FrameRef> poison;  // frames given up (when configured); fill before any reuse
  std::vector<StoreAction> stores;
  std::vector<LoadAction> loads;
  std::vector<RunAction> runs;
  std::vector<RevokeAction> revokes;
  std::vector<wire::RequestId> finished;  // all runs done, reservation returned; each request once,
                                          // cancelled ones too
  std::vector<EndedJob> ended;            // jobs that are gone
  bool more = false;  // a request stopped at PagerConfig::first_pages or growth: pump again at once
  [[nodiscard]] bool empty() const;
};

// All jobs together, those included that were removed and still hold frames.
struct DeviceUsage {
  std::uint64_t used_frames = 0;
  std::uint64_t leased_frames = 0;
  std::uint64_t dirty_pages = 0;
  std::uint64_t host_frames = 0;  // committed
  std::uint64_t disk_frames = 0;  // likewise, on disk
  Traffic traffic;                // of jobs that are gone too
};

// Pages of a stretch. Every page is one of the first three, or was never written.
struct PageCounts {
  std::uint32_t resident = 0;
  std::uint32_t streaming = 0;  // on its way to the device or to the host
  std::uint32_t host = 0;       // written, and on the host alone
  std::uint32_t dirty = 0;      // of the first two: the device's copy is newer
  std::uint32_t disk = 0;       // of those on the host alone: they lie on its disk
};

// Stretches of `pages_per_cell` pages each; the last may still be filling.
struct PageCells {
  std::uint64_t pages_per_cell = 1;
  std::uint64_t in_last = 0;  // pages that the last cell counts; 0: the next page begins a cell
  std::vector<PageCounts> cells;
};

class Pager {
 public:
  explicit Pager(const PagerConfig& config);
  ~Pager();
  Pager(const Pager&) = delete;
  Pager& operator=(const Pager&) = delete;

  // ---- jobs. kBudgetExceeded when not every job could keep one window; kInvalidArgument for a quota under
  // one window. Messages name the bytes missing.
  [[nodiscard]] wire::Status AddJob(wire::JobId id, const JobSpec& spec);
  [[nodiscard]] wire::Status SetJob(wire::JobId id, const JobSpec& spec);  // new limits; pages leave by Pump
  // Its extents go with it. It is there until no frame is in use any more, and is reported in `ended` by the
  // Pump that finds it so.
  void RemoveJob(wire::JobId id);
  [[nodiscard]] wire::Status SetDeviceFrames(std::uint64_t frames);  // new device budget (pressure)

  // ---- extents. Admission commits host frames for every page (evictable), or device frames (not evictable).
  [[nodiscard]] wire::Result<wire::ExtentId> AddExtent(const ExtentSpec& spec);
  // Frees all its frames, when no run uses them; until then the extent is a zombie. Ends its requests
  // (reported in `finished`).
  void RemoveExtent(wire::ExtentId id);

  // What AddExtent(spec) would say if extent `old` of the same job were removed first; changes nothing. Ok is
  // kept by RemoveExtent(old) and AddExtent(spec) that follow at once.
  [[nodiscard]] wire::Status CheckReplace(wire::ExtentId old, const ExtentSpec& spec);

  // ---- shared extents: quantized weights of one domain that hold the same. An extent has one use, its
  // job's; each further one is a job's (the same or another) whose own copy it replaces. From then on it is
  // only read. While several jobs use an extent its pages are counted once: a base of the domain holds them,
  // which has the part of its users' weights and device quotas that falls to these pages (of a job that uses
  // `own` pages and a part of `shared` ones: own : shared), and each use answers for an equal part of every
  // count. kPending: a request that uses it is under way, ask again. kBudgetExceeded: the device cannot hold
  // a window of the base beside every job's.
  [[nodiscard]] wire::Status AddUse(wire::ExtentId id, wire::JobId job);
  // Ends one use; the last one is RemoveExtent. When one job is left, the extent becomes its own again.
  void RemoveUse(wire::ExtentId id, wire::JobId job);
  [[nodiscard]] std::uint64_t UsesOf(wire::ExtentId id) const;
  // The job that has used the extent longest.
  [[nodiscard]] std::optional<wire::JobId> OldestUserOf(wire::ExtentId id) const;
  // Copies so far of pages that are counted with the extent's: its job's, or its base's.
  struct Moves {
    std::uint64_t loaded = 0;
    std::uint64_t stored = 0;
  };
  [[nodiscard]] Moves MovesWith(wire::ExtentId id) const;

  // ---- requests. Always accepted (kNotFound / kOutOfRange for bad ranges, kInvalidArgument to write what is
  // shared); one request of a job runs at a time, in order of arrival. Those on shared extents of a base
  // count as the base's. Prefetches run only behind no other request of the job; one that waits is finished
  // by whatever comes after it.
  [[nodiscard]] wire::Result<wire::RequestId> Submit(const RequestSpec& spec);
  // Ends a request: windows already run stay applied. A request that has not started is not applied at all.
  void Cancel(wire::RequestId id);
  [[nodiscard]] bool Started(wire::RequestId id) const;  // a run of it was handed out

  // ---- leases: a leased extent's pages stay resident until released. kFull beyond the lease reserve (share
  // less one window of the job's other pages), kNotResident unless all its pages are resident now.
  [[nodiscard]] wire::Status Lease(wire::ExtentId id);
  void LeaseReleased(wire::ExtentId id);
  // The holders of a revoked lease do not let go. Until LeaseReleased nobody waits for its frames: shares,
  // admission and Servable do without the segments that they lie in.
  void LeaseOverdue(wire::ExtentId id);

  // ---- commands. Evict: pages of the job (`frames` of them; 0: all that are there now) leave as soon as
  // nothing pins them; leases are revoked when nothing else is left.
  // Returns how many: not those that other jobs use too.
  std::uint64_t Evict(wire::JobId id, std::uint64_t frames, Reason reason);

  // Pages of the extent that nothing pins now leave.
  void EvictExtent(wire::ExtentId id, Reason reason);

  // Gives back wholly free segments that no page of any job could need; by the next Pump.
  void GiveBackUnused();

  // Decides everything that can be decided now, appended to `out`.
  void Pump(Actions& out);

  // ---- completions.
  void LoadDone(PageRef page);
  void StoreDone(PageRef page);
  void RunDone(wire::RequestId request, std::uint64_t window);
  // The device refused a segment of the last Pump (kOutOfMemory), reported before the next one: the budget
  // shrinks to what exists until SetDeviceFrames. The caller leaves out that Pump's loads into the segment
  // and does not report them; nothing else of that Pump touches it.
  void SegmentRefused(std::uint32_t segment);
  // False when a request that has not started needs more frames than there are at all, since a refusal or
  // beside overdue leases: it would wait for ever.
  [[nodiscard]] bool Servable(wire::RequestId id) const;

  // ---- reading.
  [[nodiscard]] std::optional<JobUsage> Usage(wire::JobId id) const;
  [[nodiscard]] DeviceUsage Usage() const;
  // The job's peaks begin anew at what it has now.
  void ResetPeaks(wire::JobId id);
  // Counts the extent's pages, in order, behind what `cells` holds.
  void ReadPages(wire::ExtentId id, PageCells& cells) const;
  [[nodiscard]] PageState StateOf(PageRef page) const;
  [[nodiscard]] std::optional<FrameRef> FrameOf(PageRef page) const;  // when resident
  [[nodiscard]] std::uint64_t HostFrameOf(PageRef page) const;
  // Of all pages of the extent together.
  [[nodiscard]] std::uint64_t FramesOf(wire::ExtentId id) const;
  [[nodiscard]] std::uint64_t free_frames() const;
  // Frames of segments that exist, and of those the ones not on their way out.
  [[nodiscard]] std::uint64_t allocated_frames() const;
  [[nodiscard]] std::uint64_t staying_frames() const;
  // The least budget: one window of every job, and what never leaves.
  [[nodiscard]] std::uint64_t LeastDeviceFrames() const;
  [[nodiscard]] std::uint64_t used_host_frames() const;
  [[nodiscard]] std::uint64_t used_disk_frames() const;
  [[nodiscard]] const PagerConfig& config() const;
  // Aborts, naming the broken invariant.
  void CheckInvariants() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bitpager::paging
