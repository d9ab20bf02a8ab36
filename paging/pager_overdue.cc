// What the pager counts on no more: frames of leases whose holders do not let go, segments that no page
// needs. Dispatcher thread.
#include <algorithm>
#include <set>

#include "paging/pager_impl.h"

namespace bitpager::paging {

void Pager::Impl::LeaseOverdue(wire::ExtentId id) {
  Extent* extent = FindExtent(id);
  if (extent == nullptr || !extent->leased || extent->overdue || !extent->spec.evictable) return;
  Revoke(*extent);
  extent->overdue = true;
  extent->job->overdue += extent->spec.pages;
  overdue += extent->spec.pages;
  shares_stale = true;
}

std::uint64_t Pager::Impl::OverdueSegments() const {
  if (overdue == 0) return 0;
  std::set<std::uint32_t> segments;
  for (const auto& [id, extent] : extents) {
    if (!extent->overdue) continue;
    for (const Page& page : extent->pages) segments.insert(page.frame / config.segment_frames);
  }
  return segments.size();
}

std::uint64_t Pager::Impl::NeedyPages(const Job& job, PoolId pool) const {
  std::uint64_t pages = job.pages_in[pool];
  if (job.overdue == 0) return pages;
  for (const Extent* extent : job.extents) {
    if (extent->overdue && !extent->zombie && extent->pool == pool) pages -= extent->spec.pages;
  }
  return pages;
}

std::string Pager::Impl::OverdueText() const {
  if (overdue == 0) return {};
  for (const auto& [id, job] : jobs) {
    if (job->overdue == 0) continue;
    return "; " + Bytes(overdue) + " are in leases that are not given back (job '" + job->spec.name + "')";
  }
  return {};
}

// So that a job that goes on never gets a segment anew which it has just lost, no more go than all pages of
// all jobs could leave free.
void Pager::Impl::GiveBackUnused() {
  std::uint64_t needed = 0;
  for (PoolId pool = 0; pool < frames.pools(); ++pool) {
    std::uint64_t pages = 0;
    for (const auto& [id, job] : jobs) pages += job->pages_in[pool];
    needed += (pages + config.segment_frames - 1) / config.segment_frames;
  }
  while (frames.staying() > needed && frames.Shrink(pending)) {
  }
}

}  // namespace bitpager::paging
