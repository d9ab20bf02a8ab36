// Extents with several uses: who answers for them, and the bases that hold what several jobs use. Dispatcher
// thread.
//
// A base is a job that nobody asks for by name: one for each domain, there while it holds an extent. It
// queues the requests on its extents, so that no job waits behind another's step, and takes part in shares
// and evictions like any job. What it gets of them is taken from its users, never from jobs that share
// nothing.
#include <algorithm>

#include "paging/pager_impl.h"

namespace bitpager::paging {

using wire::Code;
using wire::Status;

namespace {

// Of `count`, what use `index` of `uses` answers for. The parts of all uses sum to `count`.
std::uint64_t Part(std::uint64_t count, std::uint64_t uses, std::uint64_t index) {
  return count / uses + (index < count % uses ? 1 : 0);
}

// Calls `each` with the index of every use of `extent` by `job`.
template <typename Each>
void ForUses(const Extent& extent, const Job& job, Each each) {
  for (std::size_t i = 0; i < extent.users.size(); ++i) {
    if (extent.users[i] == &job) each(i);
  }
}

std::uint64_t PartOf(std::uint64_t count, const Extent& extent, const Job& job) {
  std::uint64_t sum = 0;
  ForUses(extent, job, [&](std::size_t i) { sum += Part(count, extent.users.size(), i); });
  return sum;
}

// Pages of the base that the job answers for.
std::uint64_t PagesLentTo(const Job& base, const Job& job) {
  std::uint64_t sum = 0;
  for (const Extent* extent : base.extents) {
    if (!extent->zombie) sum += PartOf(extent->spec.pages, *extent, job);
  }
  return sum;
}

bool UsesAny(const Job& base, const Job& job) {
  return std::any_of(base.extents.begin(), base.extents.end(), [&](const Extent* extent) {
    return std::find(extent->users.begin(), extent->users.end(), &job) != extent->users.end();
  });
}

bool Names(const Request& request, wire::ExtentId id) {
  return std::any_of(request.spec.ranges.begin(), request.spec.ranges.end(),
                     [&](const PageRange& range) { return range.extent == id; });
}

}  // namespace

bool Pager::Impl::Uses(const Extent& extent, const Job& job) {
  return std::find(extent.users.begin(), extent.users.end(), &job) != extent.users.end();
}

Status Pager::Impl::AddUse(wire::ExtentId id, wire::JobId user) {
  Extent* extent = FindExtent(id);
  Job* job = user.value < kBases ? FindJob(user) : nullptr;
  if (extent == nullptr || extent->zombie) return {Code::kNotFound, "no such extent to share"};
  if (job == nullptr || job->closing) return {Code::kNotFound, "no such job to share with"};
  if (!extent->spec.evictable || extent->spec.on_disk || extent->spec.domain == kPrivateDomain) {
    return {Code::kInvalidArgument,
            "only what may leave the device for the host, of a share domain, is shared"};
  }
  if (extent->job != job && !extent->job->base) {
    if (Busy(*extent)) return {Code::kPending, "a request works on the extent"};
    if (Status moved = Rehome(*extent, BaseOf(extent->spec.domain)); !moved.ok()) return moved;
  }
  CountParts(*extent, false);
  extent->users.push_back(job);
  CountParts(*extent, true);
  NotePeak(*job);
  if (extent->job->base) ++job->uses;
  shares_stale = true;
  return {};
}

void Pager::Impl::RemoveUse(wire::ExtentId id, wire::JobId user) {
  Extent* extent = FindExtent(id);
  Job* job = FindJob(user);
  if (extent == nullptr || extent->zombie || job == nullptr || !Uses(*extent, *job)) return;
  if (extent->users.size() == 1) {
    RemoveExtent(id);
    return;
  }
  CountParts(*extent, false);
  extent->users.erase(std::find(extent->users.begin(), extent->users.end(), job));
  CountParts(*extent, true);
  for (Job* each : extent->users) NotePeak(*each);
  if (!Uses(*extent, *job)) EndRequestsOn(*extent->job, id, job, false);
  shares_stale = true;
  if (!extent->job->base) return;
  --job->uses;
  unsettled = true;
  SettleHomes();
}

void Pager::Impl::RemoveUses(Job& job) {
  for (auto& [id, base] : jobs) {
    if (!base->base) continue;
    for (Extent* extent : std::vector<Extent*>(base->extents)) {
      const wire::ExtentId extent_id = extent->id;
      const auto uses = std::count(extent->users.begin(), extent->users.end(), &job);
      for (std::ptrdiff_t i = 0; i < uses; ++i) RemoveUse(extent_id, job.id);
    }
    for (Request* request : base->queue) {
      if (request->by == &job) request->by = nullptr;
    }
  }
}

bool Pager::Impl::Busy(const Extent& extent) const {
  for (const Request* request : extent.job->queue) {
    if (!request->cancelled && !request->spec.prefetch && Names(*request, extent.id)) return true;
  }
  return std::any_of(extent.pages.begin(), extent.pages.end(),
                     [](const Page& page) { return page.holds > 0; });
}

void Pager::Impl::EndRequestsOn(Job& queue, wire::ExtentId extent, const Job* by, bool hints_only) {
  for (Request* request : queue.queue) {
    if (request->cancelled || (by != nullptr && request->by != by)) continue;
    if (hints_only && !request->spec.prefetch) continue;
    if (Names(*request, extent)) EndRequest(*request);
  }
}

Job& Pager::Impl::BaseOf(DomainId domain) {
  const std::uint64_t id = kBases | domain;
  std::unique_ptr<Job>& base = jobs[id];
  if (base != nullptr) return *base;
  base = std::make_unique<Job>();
  base->id = {id};
  base->spec.name = "shared weights";
  base->base = true;
  base->pages_in.resize(frames.pools());
  base->victims.resize(frames.pools(), EvictionOrder(config.policy));
  return *base;
}

Status Pager::Impl::Rehome(Extent& extent, Job& to) {
  Job& from = *extent.job;
  if (extent.overdue) {
    return {Code::kBudgetExceeded, "the extent lies in leases that are not given back"};
  }
  const std::uint64_t before = MissingFrames(frames.budget(), 0);
  const std::uint64_t missing = MissingIfMoved(extent, to);
  if (missing > before) {  // nothing of the extent has changed: this is asked again and again
    return {Code::kBudgetExceeded,
            "shared pages need a window of their own on the device; missing " + Bytes(missing)};
  }
  EndRequestsOn(from, extent.id, nullptr, true);
  MoveCounts(extent, to);
  return {};
}

// With the extent, which is in no overdue lease, among the other job's pages.
std::uint64_t Pager::Impl::MissingIfMoved(const Extent& extent, Job& to) {
  Job& from = *extent.job;
  const auto count = extent.spec.evictable ? &Job::pages : &Job::fixed_pages;
  const auto move = [&](Job& less, Job& more) {
    for (auto* const of : {&less, &more}) {
      const std::uint64_t by = of == &more ? extent.spec.pages : ~extent.spec.pages + 1;
      of->pages_in[extent.pool] += by;
      of->*count += by;
    }
  };
  move(from, to);
  const std::uint64_t missing = MissingFrames(frames.budget(), 0);
  move(to, from);
  return missing;
}

void Pager::Impl::MoveCounts(Extent& extent, Job& to) {
  Job& from = *extent.job;
  std::uint64_t leaving = 0;
  for (Page& page : extent.pages) {
    Require(page.holds == 0 && !page.claimed, "an extent that moves is not busy");
    if (page.listed) Unlist(page);
    leaving += page.state == PageState::kEvicting && !page.rescued ? 1 : 0;
    // Times are by the job's clock.
    page.last_use = 0;
    page.arrived = to.clock.now;
    page.history = {};
    page.streams = false;
  }
  from.victims[extent.pool].Compact();
  CountPages(extent, false);
  CountParts(extent, false);
  extent.job = &to;
  CountParts(extent, true);
  CountPages(extent, true);
  const auto move = [&](std::uint64_t Job::*count, std::uint64_t by) {
    from.*count -= by;
    to.*count += by;
  };
  const auto kind = static_cast<std::size_t>(extent.spec.kind);
  move(&Job::frames, extent.framed);
  move(&Job::leaving, leaving);
  move(&Job::dirty, extent.dirty);
  move(&Job::host_frames, extent.spec.pages);
  if (extent.leased) move(&Job::leased, extent.spec.pages);
  from.frames_by_kind[kind] -= extent.framed;
  to.frames_by_kind[kind] += extent.framed;
  from.host_by_kind[kind] -= extent.spec.pages;
  to.host_by_kind[kind] += extent.spec.pages;
  from.moved -= static_cast<std::int64_t>(extent.framed);
  to.moved += static_cast<std::int64_t>(extent.framed);
  for (Job* user : extent.users) user->uses = user->uses + (to.base ? 1 : 0) - (from.base ? 1 : 0);
  std::erase(from.extents, &extent);
  to.extents.push_back(&extent);
  for (Page& page : extent.pages) {
    if (page.state == PageState::kResident) List(page);
  }
}

void Pager::Impl::SettleHomes() {
  unsettled = false;
  for (auto& [id, base] : jobs) {
    if (!base->base) continue;
    for (Extent* extent : std::vector<Extent*>(base->extents)) {
      Job* user = extent->users.front();
      const auto same = std::count(extent->users.begin(), extent->users.end(), user);
      if (extent->zombie || user->closing || same != std::ssize(extent->users)) continue;
      unsettled |= Busy(*extent) || !Rehome(*extent, *user).ok();
    }
  }
}

// ---- who answers for what

void Pager::Impl::LendToBases() {
  bool any = false;
  for (auto& [id, job] : jobs) {
    any |= job->base;
    job->weight = job->base ? 0.0 : job->spec.weight;
    const std::uint64_t quota = job->spec.device_quota_frames;
    job->cap = job->base ? 0 : (quota == 0 ? ~0ULL : quota - job->fixed_pages);
  }
  if (!any) return;
  for (auto& [id, job] : jobs) {
    if (!job->base && job->uses > 0) LendOf(*job);
  }
  for (auto& [id, job] : jobs) {
    if (!job->base) continue;
    if (!(job->weight > 0)) job->weight = 1.0;  // it holds only what is on its way out
    job->cap = std::max(job->cap, std::min<std::uint64_t>(config.window_pages, job->pages));
  }
}

// Gives bases their parts of the job's weight and quota.
void Pager::Impl::LendOf(Job& job) {
  std::uint64_t lent = 0;
  for (const auto& [id, base] : jobs) lent += base->base ? PagesLentTo(*base, job) : 0;
  const std::uint64_t own = job.pages;
  const std::uint64_t quota = job.cap;
  const double all = static_cast<double>(std::max<std::uint64_t>(1, own + lent));
  if (own > 0) {
    job.weight = job.spec.weight * static_cast<double>(own) / all;
    if (quota != ~0ULL) {
      const std::uint64_t least = std::min<std::uint64_t>({config.window_pages, own, quota});
      job.cap = std::clamp(quota * own / (own + lent), least, quota);
    }
  }
  const std::uint64_t rest = own > 0 ? quota - job.cap : quota;
  for (auto& [id, base] : jobs) {
    if (!base->base || !UsesAny(*base, job)) continue;
    const std::uint64_t part = PagesLentTo(*base, job);
    base->weight += job.spec.weight * static_cast<double>(part) / all;
    if (quota == ~0ULL || base->cap == ~0ULL) {
      base->cap = ~0ULL;
    } else if (lent > 0) {
      base->cap += rest * part / lent;
    }
  }
}

void Pager::Impl::CountParts(const Extent& extent, bool add) {
  if (!extent.job->base) return;
  const std::uint64_t uses = extent.users.size();
  const auto change = [&](std::uint64_t& count, std::uint64_t by) { count = add ? count + by : count - by; };
  for (std::uint64_t i = 0; i < uses; ++i) {
    change(extent.users[i]->lent_frames, Part(extent.framed, uses, i));
    change(extent.users[i]->lent_host_frames, Part(extent.spec.pages, uses, i));
  }
}

void Pager::Impl::AddParts(const Job& job, JobUsage& usage) const {
  for (const Extent* extent : job.extents) {
    if (!extent->zombie && extent->users.size() > 1) usage.shared_pages += extent->spec.pages;
  }
  if (job.uses == 0) return;
  for (const auto& [id, base] : jobs) {
    if (!base->base) continue;
    for (const Extent* extent : base->extents) {
      if (!Uses(*extent, job)) continue;
      const auto kind = static_cast<std::size_t>(extent->spec.kind);
      const std::uint64_t pages = extent->zombie ? 0 : PartOf(extent->spec.pages, *extent, job);
      const std::uint64_t framed = PartOf(extent->framed, *extent, job);
      usage.pages += pages;
      usage.pages_by_kind[kind] += pages;
      usage.resident_by_kind[kind] += framed;
      usage.dirty_pages += PartOf(extent->dirty, *extent, job);
      usage.host_by_kind[kind] += PartOf(extent->spec.pages, *extent, job);
      if (extent->leased) usage.leased_frames += PartOf(extent->spec.pages, *extent, job);
      if (!extent->zombie && extent->users.size() > 1) usage.shared_pages += extent->spec.pages;
    }
    if (base->pages > 0) usage.share_frames += base->share * PagesLentTo(*base, job) / base->pages;
  }
}

}  // namespace bitpager::paging
