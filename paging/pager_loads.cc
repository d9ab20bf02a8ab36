// Claims become frames, frames get loads; prefetches. Dispatcher thread.
#include <algorithm>
#include <utility>
#include <vector>

#include "paging/pager_impl.h"

namespace bitpager::paging {

void Pager::Impl::Claim(Page& page) {
  page.claimed = true;
  claims[page.extent->pool].push_back(&page);
  ++frames.pool(page.extent->pool).claims;
  ++claims_open;
  if (page.extent->spec.evictable) ++page.extent->job->claims;
}

void Pager::Impl::Unclaim(Page& page) {
  std::erase(claims[page.extent->pool], &page);
  page.claimed = false;
  --frames.pool(page.extent->pool).claims;
  --claims_open;
  if (page.extent->spec.evictable) --page.extent->job->claims;
}

// Whether the job's quota lets it have `count` frames more now: others of its pages may be on their way out
// still, or in a lease that was revoked, and a removed extent keeps its frames until their loads are done.
// Pages that stay were admitted, so they wait for no overdue lease.
bool Pager::Impl::QuotaLets(const Job& job, bool evictable, std::uint64_t count) const {
  if (evictable && job.frames + count > job.cap) return false;
  const std::uint64_t quota = job.spec.device_quota_frames;
  const std::uint64_t others = evictable ? job.frames : job.frames - std::min(job.frames, job.overdue);
  return quota == 0 || others + job.fixed_frames + count <= quota;
}

// Oldest first; a page that has not left its old frame yet, or whose job is at its quota until a store is
// done, is passed over. Where few large copies are better, a window's pages wait for each other.
void Pager::Impl::FillClaims(PoolId pool) {
  std::deque<Page*>& queue = claims[pool];
  filled.clear();
  passed_over.clear();
  for (std::size_t at = 0; at < queue.size() && filled.size() < frames.Free(pool);) {
    std::size_t end = at;
    const std::size_t most = config.loads_over_resident ? queue.size() : at + 1;
    while (end < most && queue[end]->mark == queue[at]->mark && queue[end]->state == PageState::kHostOnly)
      ++end;
    const std::size_t count = end - at;
    const Job& job = *queue[at]->extent->job;
    const bool evictable = queue[at]->extent->spec.evictable;
    const bool later = std::find(passed_over.begin(), passed_over.end(), &job) != passed_over.end();
    if (later || count == 0 || filled.size() + count > frames.Free(pool) ||
        !QuotaLets(job, evictable, count)) {
      // A job's windows run in order, so nothing of it may take what an earlier one waits for.
      if (count > 1 && !later) passed_over.push_back(&job);
      at = std::max(end, at + 1);
      continue;
    }
    for (std::size_t i = at; i < end; ++i) Fill(*queue[i], pool);
    queue.erase(queue.begin() + static_cast<std::ptrdiff_t>(at),
                queue.begin() + static_cast<std::ptrdiff_t>(end));
  }
  frames.Take(pool, filled, taken_frames);
  for (std::size_t i = 0; i < filled.size(); ++i) StartLoad(*filled[i], taken_frames[i]);
}

void Pager::Impl::Fill(Page& page, PoolId pool) {
  Job& job = *page.extent->job;
  page.claimed = false;
  --frames.pool(pool).claims;
  --claims_open;
  if (page.extent->spec.evictable) --job.claims;
  ++(page.extent->spec.evictable ? job.frames : job.fixed_frames);
  filled.push_back(&page);
}

void Pager::Impl::StartLoad(Page& page, std::uint32_t frame) {
  Extent& extent = *page.extent;
  Job& job = *extent.job;
  const bool overwrite =
      page.holds > 0 && !job.queue.empty() && job.queue.front()->spec.access == Access::kOverwrite;
  page.state = PageState::kLoading;
  page.frame = frame;
  page.arrived = job.clock.now;
  page.undefined = overwrite && !page.zero;
  if (job.base) ++extent.users[extent.framed % extent.users.size()]->lent_frames;
  ++extent.framed;
  ++job.frames_by_kind[static_cast<int>(extent.spec.kind)];
  const bool empty = page.zero || overwrite;
  page.reason = page.holds > 0 ? Reason::kDemand : Reason::kPrefetch;
  TallyArrival(page, empty, false);
  pending.loads.push_back({RefOf(page), frames.RefOf(frame), page.host_frame, page.mark, empty, page.reason});
}

// ---- prefetch

void Pager::Impl::Prefetch(Job& job, Request& request) {
  const std::uint64_t most = static_cast<std::uint64_t>(config.window_pages) * config.windows_in_flight;
  std::erase_if(request.coming,
                [](const Page* page) { return !page->claimed && page->state != PageState::kLoading; });
  while (!request.at_end() && request.coming.size() < most) {
    Page& page = *PageAt(request);
    if (page.state == PageState::kHostOnly && !page.claimed) {
      if (!PrefetchPage(job, page, request.is_sure_hint())) {
        request.cursor = {request.spec.ranges.size(), 0};
        return;
      }
      request.coming.push_back(&page);
    }
    request.Advance();
  }
}

// Who leaves for a page that is asked for next: nobody of the same extent, and nobody who came by a hint and
// was not looked at since. Of those that leave first, a few are looked at.
Page* Pager::Impl::SureVictim(Job& job, const Page& page) {
  constexpr std::size_t kMostSpared = 64;
  const auto spared = [&](const Page& other) {
    return other.extent == page.extent ||
           (other.reason == Reason::kPrefetch && other.last_use <= other.arrived);
  };
  std::vector<Page*> set_aside;
  Page* victim = nullptr;
  while (set_aside.size() < kMostSpared) {
    victim = job.victims[page.extent->pool].Next(job.clock, job.Mixed());
    if (victim == nullptr || !spared(*victim)) break;
    Unlist(*victim);
    set_aside.push_back(std::exchange(victim, nullptr));
  }
  for (Page* other : set_aside) List(*other);
  return victim;
}

// Into a free frame up to the job's share; beyond it, or where no frame can be had, only in place of an own
// page of the same pool that is expected later; `sure`: of any that SureVictim finds.
bool Pager::Impl::PrefetchPage(Job& job, Page& page, bool sure) {
  const PoolId pool = page.extent->pool;
  const auto room = [&] { return frames.Available(pool) > 0 || frames.Grow(pool, pending); };
  if ((page.extent->spec.evictable && job.Settled() >= job.Limit()) || !room()) {
    Page* victim = sure ? SureVictim(job, page) : job.victims[pool].Next(job.clock, job.Mixed());
    if (victim == nullptr) return false;
    const bool is_later =
        !page.history.empty() && ExpectedUse(*victim, job.clock) > ExpectedUse(page, job.clock);
    if (!sure && !is_later) return false;
    StartEvict(*victim, Reason::kPrefetch);
  }
  if (!room()) return false;
  Claim(page);
  return true;
}

}  // namespace bitpager::paging
