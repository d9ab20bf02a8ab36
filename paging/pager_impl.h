// The pager's inside. Dispatcher thread. Its parts: pager.cc (public face, reading), pager_admission.cc
// (jobs, extents, budgets), pager_requests.cc (requests, windows, runs), pager_streaming.cc (pages that come
// and go each step), pager_loads.cc (claims, loads, prefetches), pager_sharing.cc (extents with several uses,
// bases), pager_evict.cc (victims, limits, leases), pager_overdue.cc (what does not come back, what nobody
// needs), pager_events.cc (completions, refusals, endings), pager_usage.cc (counts), pager_check.cc
// (invariants).
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "paging/frame_pool.h"
#include "paging/host_frames.h"
#include "paging/job.h"
#include "paging/page.h"
#include "paging/pager.h"

namespace bitpager::paging {

// Broken invariant or a caller that broke the contract: says which and aborts.
[[noreturn]] void Broken(const char* what);
inline void Require(bool holds, const char* what) {
  if (!holds) Broken(what);
}

// Ids of bases: this and their domain.
inline constexpr std::uint64_t kBases = std::uint64_t{1} << 63;

struct Pager::Impl {
  explicit Impl(const PagerConfig& c);

  // ---- pager_admission.cc
  wire::Status AddJob(wire::JobId id, const JobSpec& spec);
  wire::Status SetJob(wire::JobId id, const JobSpec& spec);
  void RemoveJob(wire::JobId id);
  wire::Status SetDeviceFrames(std::uint64_t frames);
  wire::Result<wire::ExtentId> AddExtent(const ExtentSpec& spec);
  [[nodiscard]] wire::Status CheckJob(const JobSpec& spec, const Job* job) const;
  // `freed`: host frames that will have come free.
  [[nodiscard]] wire::Status CheckExtent(const ExtentSpec& spec, const Job* job, std::uint64_t freed) const;
  // Frames that `segments` lack for every job's least and every page that stays, `newcomers` jobs without
  // pages yet included.
  [[nodiscard]] std::uint64_t MissingFrames(std::uint64_t segments, std::uint64_t newcomers) const;
  // Whether the device holds every job's least beside the extent; Ok leaves its pages counted.
  [[nodiscard]] wire::Status CheckDevice(Extent& extent);
  wire::Status CheckReplace(wire::ExtentId old, const ExtentSpec& spec);
  void CountPages(Extent& extent, bool add);
  void PlaceOnHost(Extent& extent);
  static void CountCommitted(Extent& extent, bool add);
  [[nodiscard]] HostFrames& TierOf(const ExtentSpec& spec) { return spec.on_disk ? disk : host; }
  [[nodiscard]] const HostFrames& TierOf(const ExtentSpec& spec) const { return spec.on_disk ? disk : host; }
  [[nodiscard]] bool Servable(const Request& request) const;
  [[nodiscard]] std::uint64_t EvictableFrames() const;  // of the budget, less what stays
  void RecomputeShares();
  [[nodiscard]] std::string Bytes(std::uint64_t frames) const;

  // ---- pager_sharing.cc
  wire::Status AddUse(wire::ExtentId id, wire::JobId job);
  void RemoveUse(wire::ExtentId id, wire::JobId job);
  void RemoveUses(Job& job);  // of what bases hold
  [[nodiscard]] static bool Uses(const Extent& extent, const Job& job);
  [[nodiscard]] bool Busy(const Extent& extent) const;  // a request that is no hint works on it
  [[nodiscard]] Job& BaseOf(DomainId domain);           // made when new
  // Moves an extent that is not busy, with all counts, from job to job.
  [[nodiscard]] wire::Status Rehome(Extent& extent, Job& to);
  [[nodiscard]] std::uint64_t MissingIfMoved(const Extent& extent, Job& to);
  void MoveCounts(Extent& extent, Job& to);
  void SettleHomes();  // extents of bases that one job alone uses go back to it
  void EndRequestsOn(Job& queue, wire::ExtentId extent, const Job* by, bool hints_only);
  void LendToBases();  // weights and caps of all jobs
  void LendOf(Job& job);
  void AddParts(const Job& job, JobUsage& usage) const;
  // Adds (or takes away) the parts that the users of a base's extent answer for.
  static void CountParts(const Extent& extent, bool add);

  // ---- pager_requests.cc
  wire::Result<wire::RequestId> Submit(const RequestSpec& spec);
  void DropWaitingHints(Job& job);
  void Advance();  // everything that requests can do now
  struct Pace {
    std::uint64_t stride = 1;     // pages that one window may bring in
    std::uint64_t under_way = 1;  // pages of all acquired windows before which no more may be brought in
  };
  void ServeFront(Job& job, bool may_acquire);
  bool RetireFront(Job& job);  // takes the first request off the queue when it has ended
  bool AcquireWindow(Job& job, Request& request, Pace pace);
  bool PausesHere(Request& request);
  [[nodiscard]] Window CutWindow(const Job& job, Request& request, Pace pace, std::uint64_t* need);
  void Promise(Page& page);  // a frame for a page that lacks one, or lets it stay where it is
  [[nodiscard]] std::uint64_t Room(const Job& job, const Request& request) const;
  [[nodiscard]] Pace PaceOf(const Job& job) const;
  [[nodiscard]] bool FitsWhole(const Job& job, const Request& request) const;
  [[nodiscard]] bool NeedsFrame(const Page& page) const;
  [[nodiscard]] static bool Arrived(Window& window);  // every page of it
  void HandOutRuns(Request& request);
  void HandOut(Request& request, Window& window);
  void Visit(Job& job, Page& page, Access access);
  void Hold(Page& page);
  void Unhold(Page& page);
  void Count(Request& request, const Window& window, bool add) const;  // among those in flight
  void GiveUpWindows(Request& request);  // those not handed out; the cursor goes back
  void EndRequest(Request& request);     // nothing more of it starts
  [[nodiscard]] Page* PageAt(const Request& request) const;

  // ---- pager_streaming.cc
  void Spread(Job& job, std::uint64_t under_way);
  void ChooseGroups(Job& job) const;
  [[nodiscard]] std::uint64_t StreamingPages(const Job& job) const;
  void Learn(Job& job, const Request& request) const;
  void ExpectNext(Job& job, const Request& request);  // behind the last request of its queue
  void ExpectNothing(Job& job);
  void Expect(Job& job, const Request& behind, std::unique_ptr<Request> hint);
  [[nodiscard]] std::unique_ptr<Request> HintOf(const Job& job, const std::vector<PageRange>& ranges) const;
  [[nodiscard]] static bool Lacks(const Request& request);
  [[nodiscard]] std::unique_ptr<Request> HintAfter(Job& job, PartKey part);
  void Prepare(Job& job, Request& request);
  // `need`: frames that the job's next window lacks.
  [[nodiscard]] bool AwaitsStreaming(Job& job, const Request& request, std::uint64_t need);

  // ---- pager_reads.cc
  static void LearnRead(Job& job, const Request& request);
  void ExpectRead(Job& job, const Request& request);
  [[nodiscard]] bool IsReadOfWeight(const Job& job, const Request& request) const;

  // ---- pager_loads.cc
  void Prefetch(Job& job, Request& request);
  bool PrefetchPage(Job& job, Page& page, bool sure);
  [[nodiscard]] Page* SureVictim(Job& job, const Page& page);  // null: nobody, or not soon found
  void Claim(Page& page);
  void Unclaim(Page& page);
  void FillClaims(PoolId pool);
  [[nodiscard]] bool QuotaLets(const Job& job, bool evictable, std::uint64_t count) const;
  void Fill(Page& page, PoolId pool);
  void StartLoad(Page& page, std::uint32_t frame);

  // ---- pager_evict.cc
  // Makes sure that `need` frames of `pool` may be claimed for `job` now.
  enum class Procured : std::uint8_t {
    kYes,
    kNotYet,  // the job waits for its own pages or for a lease to end
    kShort,   // everything else is held by others' windows
  };
  Procured Procure(Job& job, PoolId pool, std::uint64_t need);
  bool EvictFor(Job& job, PoolId pool, std::uint64_t need);
  // Whose page goes: `job` itself when it would pass its share, else who is farthest over its own. Null:
  // nobody has a page to give. A null `job` asks for room that no job gets.
  [[nodiscard]] Job* VictimJob(Job* job, std::uint64_t need);
  [[nodiscard]] Page* VictimOf(Job& job);
  [[nodiscard]] bool LeavesBefore(const Page& a, const Page& b) const;  // of one job
  bool EvictOwn(Job& job, Reason reason);
  bool RevokeFor(Job* job);  // true while a revocation is out that may bring frames
  [[nodiscard]] std::uint32_t CheapestSegment(PoolId but) const;
  [[nodiscard]] std::uint64_t DrainCost(std::uint32_t segment) const;  // ~0: cannot be emptied now
  void DrainSegment(std::uint32_t segment, PoolId promised, Reason reason);
  void EvictGroup(Page& page, Reason reason);
  void StartEvict(Page& page, Reason reason);
  void Drop(Page& page, Reason reason);  // leaves without a copy
  void Leave(Page& page);                // gives up the frame: HostOnly
  void List(Page& page);
  void Unlist(Page& page);
  void EnforceLimits();
  void TrimBudget();
  void TrimJob(Job& job);
  void ShrinkLeases(Job& job);
  [[nodiscard]] std::uint64_t LeaseReserve(const Job& job, std::uint64_t leased,
                                           const Extent* but = nullptr) const;
  [[nodiscard]] Extent* OldestLease(const Job& job) const;  // not yet revoked
  void Revoke(Extent& extent);

  // ---- pager_events.cc
  void LoadDone(PageRef ref);
  void StoreDone(PageRef ref);
  void RunDone(wire::RequestId id, std::uint64_t number);
  void SegmentRefused(std::uint32_t segment);
  void Cancel(wire::RequestId id);
  void RemoveExtent(wire::ExtentId id);
  void Discard(Page& page);  // of a zombie, when nothing uses it
  void BuryIfDone(Extent& extent);
  wire::Status Lease(wire::ExtentId id);
  void LeaseReleased(wire::ExtentId id);
  std::uint64_t Evict(wire::JobId id, std::uint64_t frames, Reason reason);
  void EvictExtent(wire::ExtentId id, Reason reason);

  // ---- pager_overdue.cc
  void LeaseOverdue(wire::ExtentId id);
  // Segments in which frames of overdue leases lie.
  [[nodiscard]] std::uint64_t OverdueSegments() const;
  // Pages of the job in `pool` that may need frames: not those that sit in overdue leases.
  [[nodiscard]] std::uint64_t NeedyPages(const Job& job, PoolId pool) const;
  [[nodiscard]] std::string OverdueText() const;  // empty where there are none
  void GiveBackUnused();

  // ---- pager_check.cc
  void CheckInvariants() const;
  void CheckFrames() const;
  void CheckPage(const Page& page) const;
  void CheckJobs() const;
  void CheckUses() const;
  void CheckTraffic() const;
  void CheckPools() const;
  void CheckHost() const;

  // ---- pager.cc
  void Pump(Actions& out);
  [[nodiscard]] Job* FindJob(wire::JobId id) const;
  [[nodiscard]] Extent* FindExtent(wire::ExtentId id) const;
  [[nodiscard]] Page* FindPage(PageRef ref) const;
  [[nodiscard]] JobUsage UsageOf(const Job& job) const;
  [[nodiscard]] DeviceUsage Usage() const;
  void ReadPages(wire::ExtentId id, PageCells& cells) const;
  // One page more in the job's and in all traffic, and in what is charged for a base's; `refused`: one less,
  // it did not come after all.
  void Tally(const Extent& extent, ByReason Traffic::*what, Reason reason);
  void TallyArrival(const Page& page, bool empty, bool refused);
  void BuryJobs();
  static void NotePeak(Job& job);
  void NotePeaks();
  void RetakePeaks();  // the last Pump's arrivals did not all come

  PagerConfig config;
  FramePools frames;
  HostFrames host;
  HostFrames disk;                                     // its numbers follow those of `host`
  std::map<std::uint64_t, std::unique_ptr<Job>> jobs;  // in order of id: decisions must not depend on hashing
  std::unordered_map<std::uint64_t, std::unique_ptr<Extent>> extents;
  std::unordered_map<std::uint64_t, std::unique_ptr<Request>> requests;
  std::vector<std::deque<Page*>> claims;    // by pool, oldest first
  std::uint64_t claims_open = 0;            // of all pools
  Actions pending;                          // decided, not handed out yet
  std::vector<Job*> order;                  // scratch of Advance
  std::vector<Page*> filled;                // scratch of FillClaims
  std::vector<std::uint32_t> taken_frames;  // likewise: their frames
  std::vector<const Job*> passed_over;      // likewise: that wait for a whole window's frames
  Traffic traffic;                          // of all jobs that ever were
  Traffic past_traffic;                     // of those that are gone
  std::uint64_t last_extent = 0;
  std::uint64_t last_request = 0;
  std::uint64_t decisions = 0;  // Pumps so far, from 1
  std::uint64_t leases = 0;     // granted so far: which was leased longest ago
  std::uint64_t overdue = 0;    // pages of overdue leases
  std::uint32_t last_mark = 0;
  bool shares_stale = true;
  bool unsettled = false;       // bases may hold what one job alone uses
  bool short_of_least = false;  // refused segments left less than every job's least
};

}  // namespace bitpager::paging
