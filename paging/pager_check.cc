// The pager's invariants, counted anew from the page table. Dispatcher thread; for tests and debug settings.
#include <algorithm>
#include <numeric>

#include "paging/pager_impl.h"

namespace bitpager::paging {

void Pager::Impl::CheckPage(const Page& page) const {
  const Extent& extent = *page.extent;
  const bool framed = page.state != PageState::kHostOnly;
  Require(framed == (page.frame != kNone), "a page has a frame exactly when it is not HostOnly");
  if (framed) Require(frames.owner(page.frame) == &page, "a page's frame is its own");
  if (framed) {
    const Segment& segment = frames.segments()[page.frame / config.segment_frames];
    Require(segment.exists && segment.pool == extent.pool, "a page's frame is of its extent's domain");
  }
  Require(!page.dirty || (framed && !page.zero), "a dirty page was written and is on the device");
  Require(page.state != PageState::kLoading || !page.dirty, "a loading page is clean");
  Require(!page.rescued || page.state == PageState::kEvicting, "only an evicting page is rescued");
  const bool may_leave = page.state == PageState::kResident && page.holds == 0 && extent.spec.evictable &&
                         !extent.leased && !extent.zombie;
  Require(page.listed == may_leave, "a page is among the victims exactly when it may leave");
  Require(!page.claimed || !extent.zombie, "a zombie's page waits for nothing");
  if (extent.leased) Require(page.state == PageState::kResident, "a leased page is resident");
  Require(!page.undefined || page.holds > 0 || page.state == PageState::kLoading,
          "a page of undefined content is to be overwritten or dropped");
}

void Pager::Impl::CheckFrames() const {
  std::uint64_t framed = 0;
  for (const auto& [id, extent] : extents) {
    std::uint64_t count = 0;
    for (const Page& page : extent->pages) {
      CheckPage(page);
      count += page.frame != kNone ? 1 : 0;
    }
    Require(count == extent->framed, "an extent counts its frames");
    framed += count;
  }
  Require(framed == frames.used_frames(), "every used frame has a page");
}

void Pager::Impl::CheckPools() const {
  std::vector<FramePool> seen(frames.pools());
  std::uint64_t existing = 0;
  std::uint64_t going = 0;
  for (std::uint32_t i = 0; i < frames.segments().size(); ++i) {
    const Segment& segment = frames.segments()[i];
    if (!segment.exists) continue;
    ++existing;
    going += segment.draining && segment.promised == kNone ? 1 : 0;
    if (segment.draining && segment.promised != kNone)
      seen[segment.promised].incoming += config.segment_frames;
    std::uint32_t used = 0;
    for (std::uint32_t slot = 0; slot < config.segment_frames; ++slot) {
      const Page* page = frames.owner(i * config.segment_frames + slot);
      if (page == nullptr) continue;
      ++used;
      Require(page->frame == i * config.segment_frames + slot, "a frame's owner is in it");
      const bool leaves = page->state == PageState::kEvicting && !page->rescued;
      if (leaves && !segment.draining) ++seen[segment.pool].leaving;
    }
    Require(used == segment.used, "a segment counts its used frames");
    Require(!segment.draining || used > 0, "a drained segment is gone");
    if (!segment.draining)
      seen[segment.pool].free.resize(seen[segment.pool].free.size() + config.segment_frames - used);
  }
  Require(existing == frames.existing(), "the segments add up");
  Require(frames.used_frames() <= existing * config.segment_frames && going <= existing,
          "frames are in segments");
  for (PoolId id = 0; id < frames.pools(); ++id) {
    const FramePool& pool = frames.pool(id);
    Require(pool.free.size() == seen[id].free.size(), "a pool lists its free frames");
    Require(pool.leaving == seen[id].leaving, "a pool counts the frames that will be free");
    Require(pool.incoming == seen[id].incoming, "a pool counts the frames promised to it");
    Require(pool.claims == claims[id].size(), "a pool counts its claims");
    Require(pool.claims <= pool.free.size() + pool.leaving + pool.incoming,
            "every claim is certain of a frame");
    for (const Page* page : claims[id]) Require(page->claimed, "a waiting page knows it");
  }
}

void Pager::Impl::CheckJobs() const {
  for (const auto& [id, job] : jobs) {
    std::uint64_t held = 0, leaving = 0, count = 0, fixed = 0, dirty = 0, open = 0, pages = 0, leased = 0;
    std::uint64_t late = 0;
    for (const Extent* extent : job->extents) {
      if (!extent->zombie && extent->spec.evictable) pages += extent->spec.pages;
      if (extent->leased && extent->spec.evictable) leased += extent->spec.pages;
      if (extent->overdue) late += extent->spec.pages;
      Require(!extent->overdue || (extent->leased && extent->revoking), "an overdue lease was revoked");
      for (const Page& page : extent->pages) {
        if (!extent->spec.evictable) {
          fixed += page.frame != kNone ? 1 : 0;
          continue;
        }
        held += page.holds > 0 ? 1 : 0;
        count += page.frame != kNone ? 1 : 0;
        leaving += page.state == PageState::kEvicting && !page.rescued ? 1 : 0;
        dirty += page.dirty ? 1 : 0;
        open += page.claimed ? 1 : 0;
      }
    }
    Require(held == job->held && leaving == job->leaving && count == job->frames, "a job counts its frames");
    Require(fixed == job->fixed_frames && pages == job->pages, "a job counts its pages");
    Require(dirty == job->dirty && open == job->claims, "a job counts its dirty pages and claims");
    Require(leased == job->leased && late == job->overdue, "a job counts its leased pages");
    Require(job->host_by_kind[0] + job->host_by_kind[1] == job->host_frames, "a job counts its host frames");
    Require(job->disk_by_kind[0] + job->disk_by_kind[1] == job->disk_frames,
            "a job counts its frames on disk");
    std::uint64_t holds = 0;
    for (const Request* request : job->queue) {
      Require(request == job->queue.front() || request->windows.empty(),
              "one request of a job runs at a time");
      for (const Window& window : request->windows) holds += window.pages.size();
    }
    for (const Extent* extent : job->extents) {
      for (const Page& page : extent->pages) holds -= page.holds;
    }
    Require(holds == 0, "every hold is a window's");
  }
}

void Pager::Impl::CheckTraffic() const {
  const auto sum_of = [](const ByReason& counts) {
    return std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
  };
  Traffic sum = past_traffic;
  for (const auto& [id, job] : jobs) {
    const Traffic& own = job->traffic;
    const std::uint64_t came = own.arrived - sum_of(own.evicted) + static_cast<std::uint64_t>(job->moved);
    Require(came == job->frames + job->fixed_frames, "what came to the device and did not leave it is there");
    if (!job->base) Add(sum, own), Add(sum, job->charged);
  }
  for (std::size_t r = 0; r < kReasons; ++r) {
    Require(traffic.dropped[r] <= traffic.evicted[r] &&
                traffic.evicted[r] <= traffic.dropped[r] + traffic.to_host[r],
            "what left the device was dropped or copied");
  }
  Require(sum.arrived == traffic.arrived && sum.to_device == traffic.to_device &&
              sum.to_host == traffic.to_host && sum.dropped == traffic.dropped &&
              sum.evicted == traffic.evicted,
          "the traffic of all jobs adds up");
}

void Pager::Impl::CheckHost() const {
  std::vector<bool> taken(host.total() + disk.total(), false);
  std::uint64_t count[2] = {0, 0};
  for (const auto& [id, extent] : extents) {
    if (!extent->spec.evictable) continue;
    for (const Page& page : extent->pages) {
      Require(page.host_frame < taken.size() && !taken[page.host_frame], "every host frame has one owner");
      Require(extent->spec.on_disk == (page.host_frame >= host.total()), "a page lies in its extent's tier");
      taken[page.host_frame] = true;
      ++count[extent->spec.on_disk ? 1 : 0];
    }
  }
  Require(count[0] == host.total() - host.free(), "the host frames add up");
  Require(count[1] == disk.total() - disk.free(), "the frames on disk add up");
}

void Pager::Impl::CheckUses() const {
  std::map<const Job*, std::uint64_t> uses;
  std::uint64_t lent[2] = {0, 0};
  for (const auto& [id, extent] : extents) {
    Require(!extent->users.empty(), "an extent has a user");
    const auto dirty = std::count_if(extent->pages.begin(), extent->pages.end(),
                                     [](const Page& page) { return page.dirty; });
    Require(static_cast<std::uint64_t>(dirty) == extent->dirty, "an extent counts its dirty pages");
    Require(extent->users.size() == 1 || extent->spec.evictable, "what is shared may leave");
    if (extent->job->base) lent[0] += extent->framed, lent[1] += extent->spec.pages;
    for (const Job* user : extent->users) {
      Require(!user->base, "a base uses nothing");
      if (extent->job->base) ++uses[user];
      if (!extent->job->base) Require(user == extent->job, "what one job uses is its own");
    }
  }
  for (const auto& [id, job] : jobs) {
    Require(uses[job.get()] == job->uses, "a job counts its uses");
    Require(job->uses > 0 || (job->lent_frames == 0 && job->lent_host_frames == 0),
            "who uses nothing of a base answers for none of it");
    lent[0] -= job->lent_frames, lent[1] -= job->lent_host_frames;
    Require(job->base == (id >= kBases), "bases have names of their own");
    for (const Request* request : job->queue) {
      Require(request->job == job.get(), "a request knows its queue");
      Require(request->by == job.get() || job->base || request->by == nullptr, "a job asks for itself");
    }
  }
  Require(lent[0] == 0 && lent[1] == 0, "what bases hold is answered for");
}

void Pager::Impl::CheckInvariants() const {
  CheckFrames();
  CheckPools();
  CheckJobs();
  CheckUses();
  CheckTraffic();
  CheckHost();
}

}  // namespace bitpager::paging
