// Plays the pager's caller: performs actions in random order of completion, models the content of every
// frame, and checks at every instant what the pager promises. Test only; one thread.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "paging/pager.h"

namespace bitpager::paging {

inline wire::JobId JobOf(std::uint64_t n) {
  return {n};
}

// `frames` of device, plenty of host, windows of `window` pages, segments of `segment` frames.
inline PagerConfig SmallPages(std::uint64_t frames, std::uint32_t window = 4, std::uint32_t segment = 1) {
  PagerConfig config;
  config.page_bytes = 4096;
  config.device_frames = frames;
  config.host_frames = 10000;
  config.window_pages = window;
  config.segment_frames = segment;
  return config;
}

class Driver {
 public:
  explicit Driver(const PagerConfig& config, std::uint64_t seed = 1)
      : config_(config), pager(config), rng_(seed) {}

  wire::JobId Job(std::uint64_t n, JobSpec spec = {}) {
    if (spec.name.empty()) spec.name = "job" + std::to_string(n);
    const wire::Status status = pager.AddJob({n}, spec);
    EXPECT_TRUE(status.ok()) << status.message();
    quotas_[n] = spec.device_quota_frames;
    return {n};
  }
  wire::ExtentId Extent(wire::JobId job, std::uint64_t pages, bool evictable = true, DomainId domain = 0,
                        wire::ExtentKind kind = wire::ExtentKind::kOptimizerState) {
    auto id = pager.AddExtent({job, kind, pages, evictable, domain});
    EXPECT_TRUE(id.ok()) << id.status().message();
    if (!id.ok()) return {};
    job_of_[id->value] = job.value;
    domain_of_[id->value] = domain;
    return *id;
  }
  wire::RequestId Ask(wire::JobId job, std::vector<PageRange> ranges, Access access = Access::kUpdate,
                      bool prefetch = false, bool sure = false) {
    auto id = pager.Submit({job, access, std::move(ranges), prefetch, sure});
    const bool busy = prefetch && sure && id.status().code() == wire::Code::kFull;
    EXPECT_TRUE(id.ok() || busy) << id.status().message();
    if (!id.ok()) return {};
    access_[id->value] = access;
    owner_[id->value] = job.value;
    return *id;
  }
  // What is shared, or was, is nobody's own: no quota holds for its frames here.
  bool Share(wire::ExtentId id, wire::JobId with) {
    if (!pager.AddUse(id, with).ok()) return false;
    shared_ = true;
    if (job_of_[id.value] == kNobody) return true;
    for (const auto& [frame, page] : owners_) {
      if (page.extent != id) continue;
      --frames_of_[job_of_[id.value]];
      ++frames_of_[kNobody];
    }
    job_of_[id.value] = kNobody;
    return true;
  }
  // Over all jobs, the figures sum to what there is.
  void CheckSums(std::uint64_t jobs) const {
    JobUsage sum;
    for (std::uint64_t job = 1; job <= jobs; ++job) {
      const auto usage = pager.Usage({job});
      if (!usage) continue;
      sum.resident_frames += usage->resident_frames;
      sum.host_frames += usage->host_frames;
      sum.loaded_pages += usage->loaded_pages;
      EXPECT_EQ(usage->resident_by_kind[0] + usage->resident_by_kind[1], usage->resident_frames);
      EXPECT_EQ(usage->pages_by_kind[0] + usage->pages_by_kind[1], usage->pages);
      EXPECT_LE(usage->dirty_pages, usage->resident_frames);
    }
    EXPECT_EQ(sum.resident_frames, owners_.size());
    EXPECT_EQ(sum.host_frames, pager.used_host_frames());
  }

  // Takes over what a test added by itself.
  void Adopt(std::uint64_t job, std::uint64_t quota) { quotas_[job] = quota; }
  void Adopt(wire::ExtentId id, const ExtentSpec& spec) {
    job_of_[id.value] = spec.job.value;
    domain_of_[id.value] = spec.domain;
  }

  // One decision and the taking over of its actions. Whether another one is to follow at once.
  bool Pump() {
    Actions actions;
    pager.Pump(actions);
    Take(actions);
    return actions.more;
  }
  // Completes one random outstanding thing; false when there is none.
  bool CompleteOne() {
    std::vector<std::uint64_t> running;
    for (const auto& [job, queue] : runs_) {
      if (!queue.empty()) running.push_back(job);
    }
    const std::size_t all = loads_.size() + stores_.size() + running.size();
    if (all == 0) return false;
    std::size_t pick = rng_() % all;
    if (pick < loads_.size()) {
      FinishLoad(pick);
    } else if ((pick -= loads_.size()) < stores_.size()) {
      FinishStore(pick);
    } else {
      FinishRun(running[pick - stores_.size()]);
    }
    return true;
  }
  // Until nothing is outstanding and the pager decides nothing more.
  void Settle() {
    for (int quiet = 0; quiet < 2;) {
      Pump();
      if (check_each) pager.CheckInvariants();
      quiet = CompleteOne() ? 0 : quiet + 1;
    }
  }
  void Run(wire::JobId job, std::vector<PageRange> ranges, Access access = Access::kUpdate) {
    const wire::RequestId id = Ask(job, std::move(ranges), access);
    Settle();
    EXPECT_TRUE(finished.count(id.value)) << "request " << id.value << " never finished";
  }

  // What the job's actions were, counted here.
  void ExpectTraffic(wire::JobId job) {
    ExpectTraffic("job " + std::to_string(job.value), pager.Usage(job)->traffic, traffic_[job.value]);
  }
  // What the device tells, and all jobs up to `jobs` together with those that ended, is what was seen.
  void ExpectAllTraffic(std::uint64_t jobs) {
    Traffic seen = past_seen_;
    for (const auto& [job, traffic] : traffic_) Add(seen, traffic);
    Traffic told = past_told_;
    for (std::uint64_t job = 1; job <= jobs; ++job) {
      if (const auto usage = pager.Usage({job}); usage) Add(told, usage->traffic);
    }
    ExpectTraffic("all jobs", told, seen);
    ExpectTraffic("the device", pager.Usage().traffic, seen);
  }

  // ---- the caller's actions that change the model too
  void Remove(wire::ExtentId id) { pager.RemoveExtent(id); }
  void ResetPeaks(wire::JobId job) { pager.ResetPeaks(job), peaks_.erase(job.value); }
  void SetQuota(std::uint64_t job, std::uint64_t frames, JobSpec spec = {}) {
    spec.name = "job" + std::to_string(job);
    spec.device_quota_frames = frames;
    if (pager.SetJob({job}, spec).ok()) {
      quotas_[job] = frames;
      lowered_.insert(job);
    }
  }
  [[nodiscard]] std::uint64_t FramesOf(std::uint64_t job) const {
    const auto it = frames_of_.find(job);
    return it == frames_of_.end() ? 0 : it->second;
  }
  [[nodiscard]] std::size_t segments() const { return segments_.size(); }
  [[nodiscard]] std::size_t outstanding_stores() const { return stores_.size(); }
  [[nodiscard]] std::size_t outstanding_loads() const { return loads_.size(); }
  [[nodiscard]] std::size_t outstanding_runs() const {
    std::size_t sum = 0;
    for (const auto& [job, queue] : runs_) sum += queue.size();
    return sum;
  }
  [[nodiscard]] std::size_t outstanding_run_pages() const {
    std::size_t sum = 0;
    for (const auto& [job, queue] : runs_) {
      for (const Running& running : queue) sum += running.run.pages.size();
    }
    return sum;
  }
  // Every request of the job has ended.
  [[nodiscard]] bool idle(wire::JobId job) const {
    return std::all_of(owner_.begin(), owner_.end(), [&](const auto& each) {
      return each.second != job.value || finished.count(each.first);
    });
  }
  std::mt19937_64& rng() { return rng_; }

 private:
  using Frame = std::pair<std::uint32_t, std::uint32_t>;
  struct Running {
    RunAction run;
    Access access;
  };
  static Frame Of(FrameRef f) { return {f.segment, f.slot}; }
  static std::size_t Index(Reason reason) { return static_cast<std::size_t>(reason); }

  void Own(Frame frame, PageRef page) {
    EXPECT_FALSE(owners_.count(frame)) << "frame given twice";
    owners_[frame] = page;
    ++frames_of_[job_of_[page.extent.value]];
  }
  void Disown(Frame frame, PageRef page) {
    EXPECT_TRUE(owners_.count(frame) && owners_[frame] == page);
    owners_.erase(frame);
    const std::uint64_t job = job_of_[page.extent.value];
    if (--frames_of_[job] <= quotas_[job]) lowered_.erase(job);
  }

  void Take(Actions& actions) {
    for (const DropAction& drop : actions.drops) TakeDrop(drop);
    for (const std::uint32_t segment : actions.free_segments) {
      EXPECT_EQ(segments_.erase(segment), 1U);
      std::erase_if(device_, [&](const auto& content) { return content.first.first == segment; });
      for (const auto& [frame, page] : owners_) EXPECT_NE(frame.first, segment) << "freed with pages in it";
    }
    std::set<std::uint32_t> refused;
    for (const SegmentRequest& made : actions.new_segments) {
      if (refusals > 0 && rng_() % 3 == 0) {
        --refusals;
        refused.insert(made.segment);
      } else {
        EXPECT_TRUE(segments_.emplace(made.segment, made.domain).second) << "segment number in use";
      }
    }
    for (const FrameRef frame : actions.poison) {
      if (refused.count(frame.segment)) continue;
      EXPECT_TRUE(segments_.count(frame.segment));
      EXPECT_FALSE(owners_.count(Of(frame))) << "a frame in use is poisoned";
      device_[Of(frame)] = kPoison;
      poisoned.insert(frame);
    }
    for (const StoreAction& store : actions.stores) TakeStore(store);
    for (const LoadAction& load : actions.loads) {
      if (!refused.count(load.frame.segment)) TakeLoad(load);
    }
    for (RunAction& run : actions.runs) TakeRun(run);
    for (const RevokeAction& revoke : actions.revokes) revoked.push_back(revoke.extent);
    for (const wire::RequestId id : actions.finished) {
      EXPECT_TRUE(finished.insert(id.value).second) << "finished twice";
    }
    for (const EndedJob& job : actions.ended) TakeEnd(job);
    if (!refused.empty()) config_.device_frames = segments_.size() * config_.segment_frames;
    for (const std::uint32_t segment : refused) pager.SegmentRefused(segment);
    SeePeaks();
    for (const auto& [job, count] : frames_of_) {
      if (quotas_[job] != 0 && !lowered_.count(job)) {
        EXPECT_LE(count, quotas_[job]) << "quota of job " << job;
      }
    }
    if (check_budget) {
      EXPECT_LE(segments_.size() * config_.segment_frames, config_.device_frames);
    }
  }
  // The peak that is told is the most that was seen; shares change hands between two looks.
  void SeePeaks() {
    for (const auto& [job, quota] : quotas_) {
      const auto usage = pager.Usage({job});
      if (!usage) continue;
      peaks_[job] = std::max(peaks_[job], usage->resident_frames);
      EXPECT_GE(usage->peak_resident_frames, peaks_[job]);
      if (shared_) continue;
      EXPECT_EQ(usage->peak_resident_frames, peaks_[job]) << "job " << job;
    }
  }
  void TakeEnd(const EndedJob& job) {
    peaks_.erase(job.id.value);
    EXPECT_FALSE(pager.Usage(job.id)) << "an ended job is gone";
    EXPECT_EQ(job.usage.resident_frames, 0U);
    EXPECT_EQ(job.usage.host_frames, 0U);
    Add(past_told_, job.usage.traffic);
    Add(past_seen_, traffic_[job.id.value]);
    if (check_traffic) {
      ExpectTraffic("job " + std::to_string(job.id.value), job.usage.traffic, traffic_[job.id.value]);
    }
    traffic_.erase(job.id.value);
    ended.push_back(job.id);
  }
  static void ExpectTraffic(const std::string& whose, const Traffic& told, const Traffic& seen) {
    EXPECT_EQ(told.arrived, seen.arrived) << whose;
    EXPECT_EQ(told.to_device, seen.to_device) << whose;
    EXPECT_EQ(told.to_host, seen.to_host) << whose;
    EXPECT_EQ(told.dropped, seen.dropped) << whose;
    EXPECT_EQ(told.evicted, seen.evicted) << whose;
  }
  void TakeDrop(const DropAction& drop) {
    Disown(Of(drop.frame), drop.page);
    ++dropped;
    Traffic& traffic = traffic_[job_of_[drop.page.extent.value]];
    ++traffic.dropped[Index(drop.reason)];
    ++traffic.evicted[Index(drop.reason)];
    if (drop.reason == Reason::kClosing) return;
    const std::uint64_t host_frame = pager.HostFrameOf(drop.page);
    if (model_.count(drop.page) && host_frame != ~0ULL) {  // ~0: its extent was removed meanwhile
      EXPECT_EQ(host_[host_frame], model_[drop.page]) << "a lost write";
    }
  }
  void TakeStore(const StoreAction& store) {
    EXPECT_EQ(owners_[Of(store.frame)], store.page);
    stores_.push_back(store);
    ++stored;
    ++traffic_[job_of_[store.page.extent.value]].to_host[Index(store.reason)];
  }
  void TakeLoad(const LoadAction& load) {
    EXPECT_TRUE(segments_.count(load.frame.segment)) << "load into a segment that does not exist";
    EXPECT_EQ(segments_[load.frame.segment], domain_of_[load.page.extent.value])
        << "a foreign domain's segment";
    if (config_.poison && device_.count(Of(load.frame))) {
      EXPECT_EQ(device_[Of(load.frame)], kPoison);
    }
    Own(Of(load.frame), load.page);
    loads_.push_back(load);
    if (!load.zero) ++loaded;
    EXPECT_TRUE(load.reason == Reason::kDemand || load.reason == Reason::kPrefetch);
    Traffic& traffic = traffic_[job_of_[load.page.extent.value]];
    ++traffic.arrived;
    if (!load.zero) ++traffic.to_device[Index(load.reason)];
  }
  void TakeRun(RunAction& run) {
    EXPECT_LE(run.pages.size(), config_.window_pages);
    EXPECT_EQ(run.window, next_window_[run.request.value]++);
    for (const RunPage& page : run.pages) {
      EXPECT_EQ(owners_[Of(page.frame)], page.page) << "a run's page is not there";
      EXPECT_EQ(pager.StateOf(page.page), PageState::kResident);
    }
    runs_[owner_[run.request.value]].push_back({run, access_[run.request.value]});
  }

  void FinishLoad(std::size_t i) {
    const LoadAction load = loads_[i];
    loads_.erase(loads_.begin() + static_cast<std::ptrdiff_t>(i));
    device_[Of(load.frame)] = load.zero ? rng_() | 1 : host_[load.host_frame];
    pager.LoadDone(load.page);
  }
  void FinishStore(std::size_t i) {
    const StoreAction store = stores_[i];
    stores_.erase(stores_.begin() + static_cast<std::ptrdiff_t>(i));
    host_[store.host_frame] = device_[Of(store.frame)];
    pager.StoreDone(store.page);
    if (pager.StateOf(store.page) != PageState::kResident) {
      Disown(Of(store.frame), store.page);
      ++traffic_[job_of_[store.page.extent.value]].evicted[Index(store.reason)];
    }
  }
  void FinishRun(std::uint64_t job) {
    const Running running = runs_[job].front();
    runs_[job].pop_front();
    for (const RunPage& page : running.run.pages) {
      const std::uint64_t there = device_[Of(page.frame)];
      visits.push_back(page.page);
      if (running.access != Access::kOverwrite) {
        EXPECT_EQ(page.zero, !model_.count(page.page)) << "wrong about a page never written";
        if (!page.zero) {
          EXPECT_EQ(there, model_[page.page]) << "a stale page";
        }
      }
      if (running.access == Access::kRead) continue;
      model_[page.page] = 2 * ++writes_;
      device_[Of(page.frame)] = model_[page.page];
    }
    pager.RunDone(running.run.request, running.run.window);
  }

  static constexpr std::uint64_t kPoison = ~0ULL;
  static constexpr std::uint64_t kNobody = ~0ULL;
  PagerConfig config_;

 public:
  Pager pager;
  std::set<std::uint64_t> finished;
  std::set<FrameRef> poisoned;
  std::vector<wire::ExtentId> revoked;
  std::vector<wire::JobId> ended;
  std::vector<PageRef> visits;
  std::uint64_t loaded = 0;
  std::uint64_t stored = 0;
  std::uint64_t dropped = 0;
  int refusals = 0;           // segments that may still be refused
  bool check_each = true;     // invariants after each step of Settle
  bool check_budget = true;   // off while a lowered budget is being reached
  bool check_traffic = true;  // of each job: not where pages are shared
  void SetBudget(std::uint64_t frames) {
    if (pager.SetDeviceFrames(frames).ok()) config_.device_frames = frames;
  }

 private:
  std::mt19937_64 rng_;
  std::map<std::uint64_t, std::uint64_t> quotas_, job_of_, domain_of_, owner_, next_window_, frames_of_;
  std::map<std::uint64_t, Access> access_;
  std::set<std::uint64_t> lowered_;
  std::map<Frame, PageRef> owners_;
  std::map<Frame, std::uint64_t> device_;
  std::map<std::uint64_t, std::uint64_t> host_;
  std::map<PageRef, std::uint64_t> model_;  // what each written page must hold
  std::map<std::uint32_t, DomainId> segments_;
  std::map<std::uint64_t, Traffic> traffic_;  // by job, as its actions were seen
  Traffic past_seen_;                         // of jobs that ended
  Traffic past_told_;
  std::map<std::uint64_t, std::uint64_t> peaks_;  // by job
  bool shared_ = false;
  std::vector<LoadAction> loads_;
  std::vector<StoreAction> stores_;
  std::map<std::uint64_t, std::deque<Running>> runs_;  // by job; a compute queue is in order
  std::uint64_t writes_ = 0;
};

}  // namespace bitpager::paging
