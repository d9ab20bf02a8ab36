// What the pager counts and tells of itself: usage of jobs and of the device, traffic, the pages' states, the
// last counts of jobs that end. Dispatcher thread.
#include <algorithm>
#include <numeric>

#include "paging/pager_impl.h"

namespace bitpager::paging {
namespace {

std::uint64_t SumOf(const ByReason& counts) {
  return std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
}

}  // namespace

void Add(Traffic& to, const Traffic& more) {
  to.arrived += more.arrived;
  for (std::size_t i = 0; i < kReasons; ++i) {
    to.to_device[i] += more.to_device[i];
    to.to_host[i] += more.to_host[i];
    to.dropped[i] += more.dropped[i];
    to.evicted[i] += more.evicted[i];
  }
}

void Pager::Impl::Tally(const Extent& extent, ByReason Traffic::*what, Reason reason) {
  const auto at = static_cast<std::size_t>(reason);
  ++(extent.job->traffic.*what)[at];
  ++(traffic.*what)[at];
  if (extent.job->base) ++(extent.users.front()->charged.*what)[at];
}

void Pager::Impl::TallyArrival(const Page& page, bool empty, bool refused) {
  const auto reason = static_cast<std::size_t>(page.reason);
  const Extent& extent = *page.extent;
  Traffic* const charged = extent.job->base ? &extent.users.front()->charged : nullptr;
  for (Traffic* counts : {&extent.job->traffic, &traffic, charged}) {
    if (counts == nullptr) continue;
    refused ? --counts->arrived : ++counts->arrived;
    if (!empty) refused ? --counts->to_device[reason] : ++counts->to_device[reason];
  }
}

// Jobs that were removed and hold nothing any more.
void Pager::Impl::BuryJobs() {
  for (auto it = jobs.begin(); it != jobs.end();) {
    const Job& job = *it->second;
    const bool gone = job.closing || job.base;
    if (!gone || !job.extents.empty() || !job.queue.empty() || job.uses > 0) {
      ++it;
      continue;
    }
    if (!job.base) {
      Add(past_traffic, job.traffic);
      Add(past_traffic, job.charged);
      pending.ended.push_back({job.id, UsageOf(job)});
    }
    it = jobs.erase(it);
  }
}

void Pager::Impl::NotePeak(Job& job) {
  job.peak_frames = std::max(job.peak_frames, job.Resident());
  job.peak_host_frames = std::max(job.peak_host_frames, job.OnHost());
}

void Pager::Impl::NotePeaks() {
  for (auto& [id, job] : jobs) {
    job->peak_before = job->peak_frames;
    NotePeak(*job);
  }
}

void Pager::Impl::RetakePeaks() {
  for (auto& [id, job] : jobs) job->peak_frames = std::max(job->peak_before, job->Resident());
}

JobUsage Pager::Impl::UsageOf(const Job& job) const {
  JobUsage usage;
  usage.name = job.spec.name;
  usage.pages = job.pages + job.fixed_pages;
  usage.resident_frames = job.Resident();
  usage.leased_frames = job.leased;
  usage.host_frames = job.OnHost();
  usage.disk_frames = job.disk_frames;
  usage.dirty_pages = job.dirty + job.fixed_dirty;
  for (int kind = 0; kind < 2; ++kind) {
    usage.resident_by_kind[kind] = job.frames_by_kind[kind];
    usage.pages_by_kind[kind] = job.pages_by_kind[kind];
    usage.host_by_kind[kind] = job.host_by_kind[kind];
    usage.disk_by_kind[kind] = job.disk_by_kind[kind];
  }
  usage.traffic = job.traffic;
  Add(usage.traffic, job.charged);
  usage.loaded_pages = SumOf(usage.traffic.to_device);
  usage.stored_pages = SumOf(usage.traffic.to_host);
  usage.dropped_pages = SumOf(usage.traffic.dropped);
  usage.share_frames = job.share + job.fixed_pages;
  usage.peak_resident_frames = std::max(job.peak_frames, job.Resident());
  usage.peak_host_frames = std::max(job.peak_host_frames, job.OnHost());
  AddParts(job, usage);
  return usage;
}

DeviceUsage Pager::Impl::Usage() const {
  DeviceUsage usage;
  usage.used_frames = frames.used_frames();
  usage.host_frames = host.total() - host.free();
  usage.disk_frames = disk.total() - disk.free();
  usage.traffic = traffic;
  for (const auto& [id, job] : jobs) {
    usage.leased_frames += job->leased;
    usage.dirty_pages += job->dirty + job->fixed_dirty;
  }
  return usage;
}

void Pager::Impl::ReadPages(wire::ExtentId id, PageCells& out) const {
  const Extent* extent = FindExtent(id);
  if (extent == nullptr) return;
  for (const Page& page : extent->pages) {
    if (out.in_last == 0) out.cells.emplace_back();
    PageCounts& cell = out.cells.back();
    switch (page.state) {
      case PageState::kHostOnly:
        cell.host += page.zero ? 0 : 1;
        cell.disk += !page.zero && extent->spec.on_disk ? 1 : 0;
        break;
      case PageState::kResident:
        ++cell.resident;
        break;
      case PageState::kLoading:
      case PageState::kEvicting:
        ++cell.streaming;
        break;
    }
    cell.dirty += page.dirty ? 1 : 0;
    if (++out.in_last == out.pages_per_cell) out.in_last = 0;
  }
}

std::optional<JobUsage> Pager::Usage(wire::JobId id) const {
  const Job* job = impl_->FindJob(id);
  if (job == nullptr || job->base) return std::nullopt;
  if (impl_->shares_stale) impl_->RecomputeShares();
  return impl_->UsageOf(*job);
}

Pager::Moves Pager::MovesWith(wire::ExtentId id) const {
  const Extent* extent = impl_->FindExtent(id);
  if (extent == nullptr) return {};
  return {SumOf(extent->job->traffic.to_device), SumOf(extent->job->traffic.to_host)};
}

std::uint64_t Pager::FramesOf(wire::ExtentId id) const {
  const Extent* extent = impl_->FindExtent(id);
  return extent == nullptr ? 0 : extent->framed;
}

void Pager::ResetPeaks(wire::JobId id) {
  Job* job = impl_->FindJob(id);
  if (job == nullptr) return;
  job->peak_frames = job->peak_before = job->Resident();
  job->peak_host_frames = job->OnHost();
}

DeviceUsage Pager::Usage() const {
  return impl_->Usage();
}

void Pager::ReadPages(wire::ExtentId id, PageCells& cells) const {
  impl_->ReadPages(id, cells);
}

}  // namespace bitpager::paging
