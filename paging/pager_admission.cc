// Admission: jobs, extents, budgets and the shares that follow from them. Dispatcher thread.
#include <algorithm>
#include <cmath>
#include <limits>

#include "paging/pager_impl.h"
#include "paging/shares.h"

namespace bitpager::paging {
namespace {

using wire::Code;
using wire::Status;

std::uint64_t UpTo(std::uint64_t count, std::uint64_t unit) {
  return (count + unit - 1) / unit;
}

}  // namespace

std::string Pager::Impl::Bytes(std::uint64_t count) const {
  const std::uint64_t bytes = count * config.page_bytes;
  return std::to_string(bytes) + " bytes (" + std::to_string(count) + " pages)";
}

std::uint64_t Pager::Impl::MissingFrames(std::uint64_t segments, std::uint64_t newcomers) const {
  const std::uint64_t window = config.window_pages;
  std::uint64_t needed = 0;
  for (PoolId pool = 0; pool < frames.pools(); ++pool) {
    std::uint64_t need = pool == 0 ? newcomers * window : 0;
    for (const auto& [id, job] : jobs) {
      const std::uint64_t pages = NeedyPages(*job, pool);
      if (frames.pool(pool).stays) {
        need += pages;
      } else if (pages > 0) {
        need += std::min(window, pages);
      } else if (pool == 0 && job->pages == 0 && !job->closing && !job->base) {
        need += window;  // it has no evictable pages yet
      }
    }
    needed += UpTo(need, config.segment_frames);
  }
  needed += OverdueSegments();
  return needed > segments ? (needed - segments) * config.segment_frames : 0;
}

Status Pager::Impl::CheckJob(const JobSpec& spec, const Job* job) const {
  if (!(spec.weight > 0) || !std::isfinite(spec.weight)) {
    return {Code::kInvalidArgument, "job '" + spec.name + "': its weight must be a positive number"};
  }
  if (spec.device_quota_frames == 0) return {};
  std::uint64_t least = config.window_pages;
  std::uint64_t fixed = 0;
  if (job != nullptr) {
    fixed = job->fixed_pages;
    if (job->pages > 0) least = std::min(least, job->pages);
  }
  if (spec.device_quota_frames >= least + fixed) return {};
  return {Code::kInvalidArgument,
          "job '" + spec.name + "': a device quota of " + Bytes(spec.device_quota_frames) +
              " is less than one window and the pages that stay, " + Bytes(least + fixed) +
              "; raise the quota by " + Bytes(least + fixed - spec.device_quota_frames)};
}

Status Pager::Impl::AddJob(wire::JobId id, const JobSpec& spec) {
  if (!id || id.value >= kBases) {
    return {Code::kInvalidArgument, std::to_string(id.value) + " is not a job"};
  }
  if (FindJob(id) != nullptr) return {Code::kAlreadyExists, "job '" + spec.name + "' is already there"};
  if (Status status = CheckJob(spec, nullptr); !status.ok()) return status;
  (void)frames.PoolOf(kPrivateDomain, false);  // pool 0
  claims.resize(std::max<std::size_t>(claims.size(), 1));
  if (const std::uint64_t missing = MissingFrames(frames.budget(), 1); missing > 0) {
    return {Code::kBudgetExceeded, "job '" + spec.name + "': not every job could keep one window of " +
                                       Bytes(config.window_pages) + " on the device; missing " +
                                       Bytes(missing) + OverdueText() +
                                       ": raise the device budget or use smaller windows"};
  }
  auto job = std::make_unique<Job>();
  job->id = id;
  job->spec = spec;
  job->pages_in.resize(frames.pools());
  job->victims.resize(frames.pools(), EvictionOrder(config.policy));
  jobs.emplace(id.value, std::move(job));
  shares_stale = true;
  return {};
}

Status Pager::Impl::SetJob(wire::JobId id, const JobSpec& spec) {
  Job* job = FindJob(id);
  if (job == nullptr || job->closing) return {Code::kNotFound, "no such job"};
  if (Status status = CheckJob(spec, job); !status.ok()) return status;
  if (spec.host_quota_frames != 0 && spec.host_quota_frames < job->host_frames) {
    return {Code::kQuotaExceeded, "job '" + spec.name + "' already has " + Bytes(job->host_frames) +
                                      " on the host; a host quota cannot be lowered under what is committed"};
  }
  job->spec = spec;
  shares_stale = true;
  return {};
}

void Pager::Impl::RemoveJob(wire::JobId id) {
  Job* job = FindJob(id);
  if (job == nullptr) return;
  job->closing = true;
  RemoveUses(*job);
  for (Extent* extent : std::vector<Extent*>(job->extents)) RemoveExtent(extent->id);
  for (Request* request : std::vector<Request*>(job->queue.begin(), job->queue.end())) Cancel(request->id);
  shares_stale = true;
}

Status Pager::Impl::SetDeviceFrames(std::uint64_t count) {
  const std::uint64_t segments = count / config.segment_frames;
  if (segments < frames.budget()) {
    if (const std::uint64_t missing = MissingFrames(segments, 0); missing > 0) {
      return {Code::kBudgetExceeded,
              "a device budget of " + Bytes(count) +
                  " cannot hold one window of every job and the pages that stay; missing " + Bytes(missing)};
    }
  }
  config.device_frames = count;
  frames.SetBudget(segments);
  shares_stale = true;
  return {};
}

Status Pager::Impl::CheckExtent(const ExtentSpec& spec, const Job* job, std::uint64_t freed) const {
  if (job == nullptr || job->closing) return {Code::kNotFound, "no such job"};
  if (spec.pages == 0 || spec.pages > std::numeric_limits<std::uint32_t>::max()) {
    return {Code::kInvalidArgument, "an extent has at least one and less than 2^32 pages"};
  }
  if (spec.on_disk && !spec.evictable) {
    return {Code::kInvalidArgument, "pages that stay on the device lie on no disk"};
  }
  const JobSpec& limits = job->spec;
  if (!spec.evictable) {
    const std::uint64_t least =
        std::min<std::uint64_t>(config.window_pages, std::max<std::uint64_t>(1, job->pages));
    const std::uint64_t wanted = job->fixed_pages + job->overdue + spec.pages + least;
    if (limits.device_quota_frames == 0 || wanted <= limits.device_quota_frames) return {};
    return {Code::kQuotaExceeded, "job '" + limits.name + "': " + Bytes(spec.pages) +
                                      " that stay on the device exceed its quota by " +
                                      Bytes(wanted - limits.device_quota_frames)};
  }
  const std::uint64_t charge = job->OnHost() + spec.pages;
  if (!spec.on_disk && limits.host_quota_frames != 0 && charge > limits.host_quota_frames) {
    return {Code::kQuotaExceeded, "job '" + limits.name + "': " + Bytes(spec.pages) +
                                      " exceed its host quota by " +
                                      Bytes(charge - limits.host_quota_frames)};
  }
  const std::uint64_t free = TierOf(spec).free() + freed;
  if (spec.pages > free) {
    const std::string budget = spec.on_disk ? "disk budget" : "host budget";
    return {Code::kBudgetExceeded, "job '" + limits.name + "': " + Bytes(spec.pages) + " exceed the " +
                                       budget + "; missing " + Bytes(spec.pages - free) + ": raise the " +
                                       budget};
  }
  return {};
}

// Adds (or takes away) the extent's pages in its job's counts.
void Pager::Impl::CountPages(Extent& extent, bool add) {
  Job& job = *extent.job;
  const auto change = [&](std::uint64_t& count) {
    count = add ? count + extent.spec.pages : count - extent.spec.pages;
  };
  change(job.pages_in[extent.pool]);
  change(job.pages_by_kind[static_cast<int>(extent.spec.kind)]);
  change(extent.spec.evictable ? job.pages : job.fixed_pages);
  job.clock.usual_gap = std::max<std::uint64_t>(1, job.pages + job.fixed_pages);
  job.groups = 0;  // which of them stream is to be found anew
  shares_stale = true;
}

void Pager::Impl::PlaceOnHost(Extent& extent) {
  extent.host = TierOf(extent.spec).Take(extent.spec.pages);
  std::uint64_t index = 0;
  for (const HostRun run : extent.host) {
    for (std::uint64_t i = 0; i < run.count; ++i) extent.pages[index++].host_frame = run.first + i;
  }
  CountCommitted(extent, true);
}

// Adds (or takes away) what the extent's pages take of their tier in its job's counts.
void Pager::Impl::CountCommitted(Extent& extent, bool add) {
  Job& job = *extent.job;
  const auto kind = static_cast<std::size_t>(extent.spec.kind);
  const auto change = [&](std::uint64_t& count) {
    count = add ? count + extent.spec.pages : count - extent.spec.pages;
  };
  change(extent.spec.on_disk ? job.disk_frames : job.host_frames);
  change(extent.spec.on_disk ? job.disk_by_kind[kind] : job.host_by_kind[kind]);
  NotePeak(job);
}

// Ok leaves the extent's pages counted.
Status Pager::Impl::CheckDevice(Extent& extent) {
  const ExtentSpec& spec = extent.spec;
  extent.pool = frames.PoolOf(spec.domain, !spec.evictable);
  claims.resize(frames.pools());
  for (auto& [id, each] : jobs) {
    each->pages_in.resize(frames.pools());
    each->victims.resize(frames.pools(), EvictionOrder(config.policy));
  }
  CountPages(extent, true);
  const std::uint64_t missing = MissingFrames(frames.budget(), 0);
  if (missing == 0) return {};
  CountPages(extent, false);
  return {Code::kBudgetExceeded, "job '" + extent.job->spec.name + "': " + Bytes(spec.pages) +
                                     (spec.evictable ? " need a window of their own" : " that stay") +
                                     " exceed the device budget; missing " + Bytes(missing) + OverdueText() +
                                     ": raise the device budget or let the pages be evictable"};
}

Status Pager::Impl::CheckReplace(wire::ExtentId old, const ExtentSpec& spec) {
  Extent* extent = FindExtent(old);
  if (extent == nullptr || extent->zombie) return {Code::kNotFound, "no such extent to replace"};
  Job* job = extent->job;
  // Pages that are on their way, or used, keep the extent's host frames beyond its end.
  const bool at_once =
      !extent->leased && std::all_of(extent->pages.begin(), extent->pages.end(), [](const Page& p) {
        return p.holds == 0 && (p.state == PageState::kHostOnly || p.state == PageState::kResident);
      });
  CountPages(*extent, false);
  const bool same_tier = !extent->spec.on_disk && !spec.on_disk;
  const std::uint64_t freed = at_once && same_tier && extent->spec.evictable ? extent->spec.pages : 0;
  job->host_frames -= freed;
  Status status = CheckExtent(spec, job, freed);
  if (status.ok()) {
    Extent fresh;
    fresh.job = job;
    fresh.spec = spec;
    status = CheckDevice(fresh);
    if (status.ok()) CountPages(fresh, false);
  }
  job->host_frames += freed;
  CountPages(*extent, true);
  return status;
}

wire::Result<wire::ExtentId> Pager::Impl::AddExtent(const ExtentSpec& spec) {
  Job* job = spec.job.value < kBases ? FindJob(spec.job) : nullptr;
  if (Status status = CheckExtent(spec, job, 0); !status.ok()) return status;
  auto extent = std::make_unique<Extent>();
  extent->job = job;
  extent->spec = spec;
  if (Status status = CheckDevice(*extent); !status.ok()) return status;
  extent->users.push_back(job);
  extent->id = {++last_extent};
  extent->pages.resize(spec.pages);
  for (std::uint64_t i = 0; i < spec.pages; ++i) {
    extent->pages[i].extent = extent.get();
    extent->pages[i].index = static_cast<std::uint32_t>(i);
  }
  if (spec.evictable) PlaceOnHost(*extent);
  job->extents.push_back(extent.get());
  const wire::ExtentId id = extent->id;
  extents.emplace(id.value, std::move(extent));
  return id;
}

std::uint64_t Pager::Impl::EvictableFrames() const {
  std::uint64_t segments = frames.budget();
  for (PoolId pool = 0; pool < frames.pools(); ++pool) {
    if (!frames.pool(pool).stays) continue;
    std::uint64_t pages = 0;
    for (const auto& [id, job] : jobs) pages += job->pages_in[pool];
    segments -= std::min(segments, UpTo(pages, config.segment_frames));
  }
  segments -= std::min(segments, OverdueSegments());
  return segments * config.segment_frames;
}

bool Pager::Impl::Servable(const Request& request) const {
  const std::uint64_t evictable = EvictableFrames();
  std::uint64_t fixed = 0;
  for (const auto& [id, job] : jobs) fixed += job->fixed_pages;
  for (const PageRange& range : request.spec.ranges) {
    const auto it = extents.find(range.extent.value);
    if (it == extents.end()) continue;
    const bool leaves = it->second->spec.evictable;
    if (it->second->overdue) continue;  // its pages are all there
    const std::uint64_t needed = leaves ? std::min<std::uint64_t>(range.count, config.window_pages) : fixed;
    const std::uint64_t there = leaves ? evictable : frames.budget() * config.segment_frames;
    if (needed > there) return false;
    const Job& job = *request.job;
    if (leaves && job.overdue > 0 && needed > job.cap - std::min(job.cap, job.overdue)) return false;
  }
  return true;
}

void Pager::Impl::RecomputeShares() {
  LendToBases();
  std::vector<Claimant> claimants;
  const std::uint64_t budget = EvictableFrames();
  std::uint64_t least_sum = 0;
  for (const auto& [id, job] : jobs) {
    Claimant c;
    c.weight = job->weight;
    std::uint64_t needy = 0;
    for (PoolId pool = 0; pool < frames.pools(); ++pool) {
      if (frames.pool(pool).stays) continue;
      const std::uint64_t pages = NeedyPages(*job, pool);
      needy += pages;
      c.least += std::min<std::uint64_t>(pages, config.window_pages);
    }
    c.most = std::min({needy, job->cap - std::min(job->cap, job->overdue), budget});
    c.least = std::min(c.least, c.most);
    least_sum += c.least;
    claimants.push_back(c);
  }
  const std::vector<std::uint64_t> shares = FairShares(budget, claimants);
  std::size_t i = 0;
  for (auto& [id, job] : jobs) job->share = shares[i++] + job->overdue;
  short_of_least = least_sum > budget || MissingFrames(frames.budget(), 0) > 0;
  shares_stale = false;
}

}  // namespace bitpager::paging
