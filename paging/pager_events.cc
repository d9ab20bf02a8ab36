// What the caller reports: copies and runs done, segments refused, leases, cancellations, endings.
// Dispatcher thread.
#include <algorithm>

#include "paging/pager_impl.h"

namespace bitpager::paging {

using wire::Code;
using wire::Status;

void Pager::Impl::LoadDone(PageRef ref) {
  Page* page = FindPage(ref);
  Require(page != nullptr && page->state == PageState::kLoading, "LoadDone of a page that was not loading");
  page->state = PageState::kResident;
  const bool misplaced = frames.SegmentOf(page->frame).draining || page->undefined;
  if (page->extent->zombie) {
    Discard(*page);
  } else if (page->claimed || (misplaced && page->holds == 0)) {
    StartEvict(*page, Reason::kDemand);
  } else if (page->holds == 0) {
    List(*page);
  }
}

void Pager::Impl::StoreDone(PageRef ref) {
  Page* page = FindPage(ref);
  Require(page != nullptr && page->state == PageState::kEvicting,
          "StoreDone of a page that was not evicting");
  Extent& extent = *page->extent;
  const bool draining = frames.SegmentOf(page->frame).draining;
  if (!page->rescued) {
    --extent.job->leaving;
    if (!draining) --frames.pool(extent.pool).leaving;
  }
  page->dirty = false;
  --extent.job->dirty;
  --extent.dirty;
  const bool stays = page->rescued && !extent.zombie && !(draining && page->holds == 0);
  page->rescued = false;
  if (stays) {
    page->state = PageState::kResident;
    if (page->holds == 0) List(*page);
    return;
  }
  Tally(extent, &Traffic::evicted, page->reason);
  Leave(*page);
  if (extent.zombie) BuryIfDone(extent);
}

void Pager::Impl::RunDone(wire::RequestId id, std::uint64_t number) {
  const auto it = requests.find(id.value);
  Require(it != requests.end(), "RunDone of an unknown request");
  std::deque<Window>& windows = it->second->windows;
  const auto window = std::lower_bound(windows.begin(), windows.end(), number,
                                       [](const Window& w, std::uint64_t n) { return w.number < n; });
  Require(window != windows.end() && window->number == number && window->handed_out,
          "RunDone of a window that is not running");
  --it->second->handed_out;
  Count(*it->second, *window, false);
  const std::vector<Page*> pages = std::move(window->pages);
  windows.erase(window);
  for (Page* page : pages) Unhold(*page);
}

// The caller ignored what the last Pump wanted to load into the segment. All windows that count on frames of
// its pool go back and are acquired anew from what there is.
void Pager::Impl::SegmentRefused(std::uint32_t segment) {
  Require(segment < frames.segments().size() && frames.segments()[segment].exists, "refusal of no segment");
  const PoolId pool = frames.segments()[segment].pool;
  for (auto& [id, job] : jobs) {
    if (job->queue.empty()) continue;
    Request& request = *job->queue.front();
    for (Page* page : request.coming) {
      if (page->claimed && page->holds == 0 && page->extent->pool == pool) Unclaim(*page);
    }
    GiveUpWindows(request);
  }
  for (std::uint32_t slot = 0; slot < config.segment_frames; ++slot) {
    Page* page = frames.owner(segment * config.segment_frames + slot);
    if (page == nullptr) continue;
    Require(page->state == PageState::kLoading, "refusal of a segment in use");
    TallyArrival(*page, page->zero || page->undefined, true);
    Extent& extent = *page->extent;
    Leave(*page);
    if (extent.zombie) BuryIfDone(extent);
  }
  RetakePeaks();
  frames.Refuse(segment, pending);
  frames.SetBudget(frames.existing());
  shares_stale = true;
}

void Pager::Impl::Cancel(wire::RequestId id) {
  const auto it = requests.find(id.value);
  if (it != requests.end() && !it->second->cancelled) EndRequest(*it->second);
}

// ---- extents that end

void Pager::Impl::RemoveExtent(wire::ExtentId id) {
  Extent* extent = FindExtent(id);
  if (extent == nullptr || extent->zombie) return;
  EndRequestsOn(*extent->job, id, nullptr, false);
  CountPages(*extent, false);
  extent->zombie = true;
  if (extent->leased) {
    Revoke(*extent);
    return;
  }
  for (Page& page : extent->pages) {
    if (page.state == PageState::kResident && page.holds == 0) {
      Discard(page);
      if (FindExtent(id) == nullptr) return;
    }
  }
  BuryIfDone(*extent);
}

void Pager::Impl::Discard(Page& page) {
  Extent& extent = *page.extent;
  if (extent.leased || page.holds > 0) return;
  if (page.listed) Unlist(page);
  if (page.dirty) {
    --(extent.spec.evictable ? extent.job->dirty : extent.job->fixed_dirty);
    --extent.dirty;
  }
  page.dirty = false;
  Drop(page, Reason::kClosing);
  BuryIfDone(extent);
}

void Pager::Impl::BuryIfDone(Extent& extent) {
  if (!extent.zombie || extent.framed > 0 || extent.leased) return;
  Job& job = *extent.job;
  job.victims[extent.pool].Compact();
  if (extent.spec.evictable) {
    TierOf(extent.spec).Give(extent.host);
    pending.free_host.insert(pending.free_host.end(), extent.host.begin(), extent.host.end());
    CountCommitted(extent, false);
  }
  if (job.base) {
    CountParts(extent, false);
    for (Job* user : extent.users) --user->uses;
  }
  std::erase(job.extents, &extent);
  extents.erase(extent.id.value);
}

// ---- leases and commands

Status Pager::Impl::Lease(wire::ExtentId id) {
  Extent* extent = FindExtent(id);
  if (extent == nullptr || extent->zombie) return {Code::kNotFound, "no such extent"};
  if (extent->revoking)
    return {Code::kFull, "the extent's lease is being revoked; ask for a request instead"};
  if (extent->leased) return {};
  Job& job = *extent->job;
  // First: what there is no room for need not be brought in.
  if (extent->spec.evictable) {
    if (shares_stale) RecomputeShares();
    const std::uint64_t leased = job.leased + extent->spec.pages;
    const std::uint64_t wanted = leased + LeaseReserve(job, leased, extent);
    if (wanted > job.share) {
      return {Code::kFull, "the lease exceeds the job's reserve, its share less what other pages need, by " +
                               Bytes(wanted - job.share) + "; ask for a request instead"};
    }
  }
  for (const Page& page : extent->pages) {
    if (page.state != PageState::kResident || page.zero || page.undefined) {
      return {Code::kNotResident, "page " + std::to_string(page.index) + " of the extent is " +
                                      (page.zero ? "not written yet" : "not on the device")};
    }
  }
  if (extent->spec.evictable) job.leased += extent->spec.pages;
  extent->leased = true;
  extent->leased_at = ++leases;
  for (Page& page : extent->pages) {
    if (page.listed) Unlist(page);
  }
  return {};
}

void Pager::Impl::LeaseReleased(wire::ExtentId id) {
  Extent* extent = FindExtent(id);
  if (extent == nullptr || !extent->leased) return;
  extent->leased = false;
  extent->revoking = false;
  if (extent->overdue) {
    extent->overdue = false;
    extent->job->overdue -= extent->spec.pages;
    overdue -= extent->spec.pages;
    shares_stale = true;
  }
  if (extent->spec.evictable) extent->job->leased -= extent->spec.pages;
  for (Page& page : extent->pages) {
    if (page.state != PageState::kResident || page.holds > 0) continue;
    if (!extent->zombie) {
      List(page);
      continue;
    }
    Discard(page);
    if (FindExtent(id) == nullptr) return;
  }
  BuryIfDone(*extent);
}

std::uint64_t Pager::Impl::Evict(wire::JobId id, std::uint64_t count, Reason reason) {
  Job* job = FindJob(id);
  if (job == nullptr || job->base) return 0;
  ExpectNothing(*job);
  const std::uint64_t there = job->frames - job->leaving;
  job->to_evict = count == 0 ? there : std::min(there, count);
  job->evict_reason = reason;
  return job->to_evict;
}

// What leaves by command would come right back.
void Pager::Impl::ExpectNothing(Job& job) {
  for (Request* request : job.queue) {
    request->alone = true;
    if ((request->born != 0 || request->is_sure_hint()) && !request->cancelled) EndRequest(*request);
  }
}

void Pager::Impl::EvictExtent(wire::ExtentId id, Reason reason) {
  Extent* extent = FindExtent(id);
  if (extent == nullptr) return;
  ExpectNothing(*extent->job);
  for (Page& page : extent->pages) {
    if (page.listed) StartEvict(page, reason);
  }
}

}  // namespace bitpager::paging
