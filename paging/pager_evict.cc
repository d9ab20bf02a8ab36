// Victims: which page leaves for whom, limits, leases' ends. Dispatcher thread.
#include <algorithm>

#include "paging/pager_impl.h"

namespace bitpager::paging {
namespace {

// Frames that `job` has beyond its share; negative under it.
std::int64_t Over(const Job& job) {
  return static_cast<std::int64_t>(job.Settled()) - static_cast<std::int64_t>(job.share);
}

}  // namespace

void Pager::Impl::List(Page& page) {
  const Extent& extent = *page.extent;
  if (!extent.spec.evictable || extent.leased || extent.zombie || page.listed) return;
  extent.job->victims[extent.pool].Add(page);
}

void Pager::Impl::Unlist(Page& page) {
  page.extent->job->victims[page.extent->pool].Remove(page);
}

void Pager::Impl::Leave(Page& page) {
  Extent& extent = *page.extent;
  Job& job = *extent.job;
  frames.Give(page.frame, pending);
  page.frame = kNone;
  page.state = PageState::kHostOnly;
  page.undefined = false;
  --extent.framed;
  if (job.base) --extent.users[extent.framed % extent.users.size()]->lent_frames;
  --job.frames_by_kind[static_cast<int>(extent.spec.kind)];
  --(extent.spec.evictable ? job.frames : job.fixed_frames);
}

void Pager::Impl::Drop(Page& page, Reason reason) {
  Tally(*page.extent, &Traffic::dropped, reason);
  Tally(*page.extent, &Traffic::evicted, reason);
  pending.drops.push_back({RefOf(page), frames.RefOf(page.frame), reason});
  Leave(page);
}

void Pager::Impl::StartEvict(Page& page, Reason reason) {
  Extent& extent = *page.extent;
  Job& job = *extent.job;
  if (page.listed) Unlist(page);
  if (!page.dirty || page.undefined) {
    Drop(page, reason);
    return;
  }
  page.state = PageState::kEvicting;
  page.reason = reason;
  Tally(extent, &Traffic::to_host, reason);
  ++job.leaving;
  if (!frames.SegmentOf(page.frame).draining) ++frames.pool(extent.pool).leaving;
  pending.stores.push_back({RefOf(page), frames.RefOf(page.frame), page.host_frame, page.mark, reason});
}

bool Pager::Impl::LeavesBefore(const Page& a, const Page& b) const {
  const JobClock& clock = a.extent->job->clock;
  if (config.policy == Policy::kScanAware) {
    return a.streams != b.streams ? a.streams : ExpectedUse(a, clock) > ExpectedUse(b, clock);
  }
  return std::max(a.last_use, a.arrived) < std::max(b.last_use, b.arrived);
}

Page* Pager::Impl::VictimOf(Job& job) {
  Page* best = nullptr;
  for (EvictionOrder& victims : job.victims) {
    Page* page = victims.Next(job.clock, job.Mixed());
    if (page != nullptr && (best == nullptr || LeavesBefore(*page, *best))) best = page;
  }
  return best;
}

bool Pager::Impl::EvictOwn(Job& job, Reason reason) {
  Page* page = VictimOf(job);
  if (page == nullptr) return false;
  EvictGroup(*page, reason);
  return true;
}

// The page, and where copies overlap launches, so that few and large ones pay, those that ran in one window
// with it: what leaves together comes back together.
void Pager::Impl::EvictGroup(Page& page, Reason reason) {
  std::vector<Page>& pages = page.extent->pages;
  if (config.loads_over_resident && (reason == Reason::kDemand || reason == Reason::kPrefetch)) {
    const auto goes = [&](std::size_t i) { return pages[i].listed && pages[i].mark == page.mark; };
    for (std::size_t i = page.index; i > 0 && goes(i - 1); --i) StartEvict(pages[i - 1], reason);
    for (std::size_t i = page.index + 1; i < pages.size() && goes(i); ++i) StartEvict(pages[i], reason);
  }
  StartEvict(page, reason);
}

Job* Pager::Impl::VictimJob(Job* job, std::uint64_t need) {
  if (job != nullptr && job->Settled() + need > job->share && job->Listed() > 0) return job;
  Job* most_over = nullptr;
  for (auto& [id, each] : jobs) {
    if (each->Listed() == 0) continue;
    if (most_over == nullptr || Over(*each) > Over(*most_over)) most_over = each.get();
  }
  const bool own = job != nullptr && job->Listed() > 0 && (most_over == nullptr || Over(*most_over) <= 0);
  return own ? job : most_over;
}

Pager::Impl::Procured Pager::Impl::Procure(Job& job, PoolId pool, std::uint64_t need) {
  const std::uint64_t own = frames.pool(pool).stays ? 0 : need;
  while (own > 0 && job.Settled() + own > job.cap) {
    if (EvictOwn(job, Reason::kDemand)) continue;
    (void)RevokeFor(&job);
    return Procured::kNotYet;
  }
  while (frames.Available(pool) < need) {
    if (frames.Grow(pool, pending)) continue;
    if (EvictFor(job, pool, own)) continue;
    return RevokeFor(&job) ? Procured::kNotYet : Procured::kShort;
  }
  return Procured::kYes;
}

// One frame more for `pool`, sooner or later. `need`: what `job` will claim against its share.
bool Pager::Impl::EvictFor(Job& job, PoolId pool, std::uint64_t need) {
  Job* from = VictimJob(need > 0 ? &job : nullptr, need);
  if (from == nullptr) return false;
  const Reason reason = from == &job ? Reason::kDemand : Reason::kShare;
  if (config.segment_frames == 1) {
    Page* page = VictimOf(*from);
    if (page->extent->pool == pool) {
      EvictGroup(*page, reason);
    } else {
      DrainSegment(page->frame, pool, reason);
    }
    return true;
  }
  if (from->victims[pool].size() == 0) {
    if (const std::uint32_t segment = CheapestSegment(pool); segment != kNone) {
      DrainSegment(segment, pool, reason);
      return true;
    }
    for (auto& [id, each] : jobs) {
      if (each->victims[pool].size() > 0 && (from->victims[pool].size() == 0 || Over(*each) > Over(*from))) {
        from = each.get();
      }
    }
  }
  Page* page = from->victims[pool].Next(from->clock, from->Mixed());
  if (page == nullptr) return false;
  EvictGroup(*page, reason);
  return true;
}

// ---- whole segments

// What emptying a segment costs, in copies; pages of jobs that are not over their share count more.
std::uint64_t Pager::Impl::DrainCost(std::uint32_t segment) const {
  constexpr std::uint64_t kCannot = ~0ULL;
  if (!frames.MayDrain(segment)) return kCannot;
  std::uint64_t cost = 0;
  for (std::uint32_t slot = 0; slot < config.segment_frames; ++slot) {
    const Page* page = frames.owner(segment * config.segment_frames + slot);
    if (page == nullptr) continue;
    if (page->holds > 0 || page->extent->leased || page->state == PageState::kLoading) return kCannot;
    if (page->state == PageState::kEvicting) continue;
    const std::uint64_t copies = page->dirty ? 3 : (page->zero ? 1 : 2);
    cost += Over(*page->extent->job) > 0 ? copies : 4 * copies;
  }
  return cost;
}

// Of another pool than `but`; kNone when no segment can be emptied now.
std::uint32_t Pager::Impl::CheapestSegment(PoolId but) const {
  std::uint32_t best = kNone;
  std::uint64_t least = ~0ULL;
  for (std::uint32_t i = 0; i < frames.segments().size(); ++i) {
    if (!frames.segments()[i].exists || frames.segments()[i].pool == but) continue;
    const std::uint64_t cost = DrainCost(i);
    if (cost >= least) continue;
    least = cost;
    best = i;
  }
  return best;
}

void Pager::Impl::DrainSegment(std::uint32_t segment, PoolId promised, Reason reason) {
  std::vector<Page*> pages;
  for (std::uint32_t slot = 0; slot < config.segment_frames; ++slot) {
    Page* page = frames.owner(segment * config.segment_frames + slot);
    if (page != nullptr && page->state == PageState::kResident) pages.push_back(page);
  }
  frames.Drain(segment, promised, pending);
  for (Page* page : pages) StartEvict(*page, reason);
}

// ---- limits

void Pager::Impl::TrimBudget() {
  while (frames.Excess() > 0) {
    if (frames.Shrink(pending)) continue;
    std::uint32_t segment = kNone;
    if (config.segment_frames > 1) {
      segment = CheapestSegment(kNone);
    } else if (Job* from = VictimJob(nullptr, 0); from != nullptr) {
      segment = VictimOf(*from)->frame;
    }
    if (segment == kNone) {
      (void)RevokeFor(nullptr);
      return;
    }
    DrainSegment(segment, kNone, Reason::kPressure);
  }
}

void Pager::Impl::TrimJob(Job& job) {
  // Only a lowered quota leads here. Windows that have not run go back, to be cut anew: what they hold could
  // not leave, and what they were promised would not come.
  if (job.Settled() > job.cap && !job.queue.empty()) {
    Request& request = *job.queue.front();
    for (Page* page : request.coming) {
      if (page->claimed && page->holds == 0) Unclaim(*page);
    }
    GiveUpWindows(request);
  }
  while (job.Settled() > job.cap) {
    if (EvictOwn(job, Reason::kLimit)) continue;
    (void)RevokeFor(&job);
    break;
  }
  while (job.to_evict > 0) {
    if (EvictOwn(job, job.evict_reason)) {
      --job.to_evict;
      continue;
    }
    for (Extent* extent = OldestLease(job); extent != nullptr; extent = OldestLease(job)) Revoke(*extent);
    if (job.frames == job.leaving) job.to_evict = 0;
    break;
  }
  ShrinkLeases(job);
}

// Frames that leases of `leased` pages leave a job for its other pages: a window, and where weights have to
// be read by turns, one that is read and one that comes meanwhile, as far as that takes no more than a
// quarter of what it has. `but`: about to be leased; may be null.
std::uint64_t Pager::Impl::LeaseReserve(const Job& job, std::uint64_t leased, const Extent* but) const {
  const std::uint64_t others = job.pages - std::min(job.pages, leased);
  std::uint64_t largest = 0;
  for (const Extent* extent : job.extents) {
    const bool stays = extent == but || extent->zombie || (extent->leased && !extent->revoking);
    const bool by_turns = extent->spec.kind == wire::ExtentKind::kQuantizedWeight && extent->spec.evictable;
    if (by_turns && !stays) largest = std::max(largest, extent->spec.pages);
  }
  const std::uint64_t turns = std::min(2 * largest, (job.share - std::min(job.share, job.overdue)) / 4);
  return std::min(others, std::max<std::uint64_t>(config.window_pages, turns));
}

// A job's leases never keep it from having room for its other pages besides.
void Pager::Impl::ShrinkLeases(Job& job) {
  if (job.leased == 0) return;
  std::uint64_t kept = 0;
  for (const Extent* extent : job.extents) {
    if (extent->leased && !extent->revoking && extent->spec.evictable) kept += extent->spec.pages;
  }
  // `kept` leaves out what is being revoked, and so does the share that it is measured by.
  while (kept + LeaseReserve(job, kept) > job.share - job.overdue) {
    Extent* extent = OldestLease(job);
    if (extent == nullptr) return;
    kept -= extent->spec.pages;
    Revoke(*extent);
  }
}

void Pager::Impl::EnforceLimits() {
  if (frames.Excess() > 0) TrimBudget();
  for (auto& [id, job] : jobs) TrimJob(*job);
}

// ---- leases

Extent* Pager::Impl::OldestLease(const Job& job) const {
  Extent* oldest = nullptr;
  for (Extent* extent : job.extents) {
    if (!extent->leased || extent->revoking || !extent->spec.evictable) continue;
    if (oldest == nullptr || extent->leased_at < oldest->leased_at) oldest = extent;
  }
  return oldest;
}

void Pager::Impl::Revoke(Extent& extent) {
  if (extent.revoking) return;
  extent.revoking = true;
  pending.revokes.push_back({extent.id});
}

// Nothing else is left to evict: asks for leased pages, of the job farthest over its share. One extent at a
// time; `job` (may be null) is asked first when it is over its own share.
bool Pager::Impl::RevokeFor(Job* job) {
  Job* from = nullptr;
  for (auto& [id, each] : jobs) {
    if (each->leased == 0) continue;
    const bool out = std::any_of(each->extents.begin(), each->extents.end(),
                                 [](const Extent* extent) { return extent->revoking && !extent->overdue; });
    if (out) return true;
    if (each->leased == each->overdue) continue;
    if (from == nullptr || Over(*each) > Over(*from)) from = each.get();
  }
  if (job != nullptr && job->leased > job->overdue && Over(*job) >= 0) from = job;
  Extent* extent = from == nullptr ? nullptr : OldestLease(*from);
  if (extent == nullptr) return false;
  Revoke(*extent);
  return true;
}

}  // namespace bitpager::paging
