#include "daemon/lifecycle.h"

#include <algorithm>
#include <cmath>

#include "client/wire/text.h"

namespace bitpager::daemon {

using wire::Code;
using wire::Status;

Status Lifecycle::CheckRoom(const Peer& peer) const {
  if (core_.draining) {
    return {Code::kDraining, kDrainsText};
  }
  if (core_.registry.sessions().size() >= core_.settings.max_sessions) {
    return {Code::kBudgetExceeded, "the daemon serves " + std::to_string(core_.settings.max_sessions) +
                                       " sessions already. Hint: raise max_sessions."};
  }
  if (peer.uid == 0 || peer.uid == core_.settings.owner_uid) return {};
  std::uint32_t held = 0;
  for (const auto& [id, session] : core_.registry.sessions()) {
    held += session->identity().peer.uid == peer.uid ? 1 : 0;
  }
  if (held >= core_.settings.max_sessions_of_user) {
    return {Code::kBudgetExceeded, "uid " + std::to_string(peer.uid) + " has " + std::to_string(held) +
                                       " sessions, as many as one user may. Hint: end some, or raise "
                                       "max_sessions_of_user."};
  }
  return {};
}

Status Lifecycle::CheckHello(const wire::HelloBody& hello) const {
  if (!wire::IsTerminated(hello.job) || !wire::IsPlainName(wire::TextOf(hello.job))) {
    return {Code::kInvalidArgument,
            "a job's name has 1 to 63 characters, of letters, digits, '.', '_' and '-'."};
  }
  if (!wire::IsTerminated(hello.client))
    return {Code::kInvalidArgument, "the client's name is not terminated."};
  if (!std::isfinite(hello.weight) || hello.weight < 0 || hello.weight > 1e6) {
    return {Code::kInvalidArgument, "a job's weight is a number above 0 and at most 1e6 (0: the default)."};
  }
  constexpr std::int64_t kLongestLingerMs = std::int64_t{30} * 24 * 3600 * 1000;
  if (hello.linger_ms < -1 || hello.linger_ms > kLongestLingerMs) {
    return {Code::kInvalidArgument, "linger is 0 to 30 days in ms, or -1 for the daemon's default."};
  }
  return {};
}

wire::Result<Job*> Lifecycle::JoinJob(const Peer& peer, const wire::HelloBody& hello) {
  const std::string name(wire::TextOf(hello.job));
  const std::uint64_t page = core_.page_bytes();
  Job* job = core_.registry.FindJob(peer.uid, name);
  const bool fresh = job == nullptr;
  paging::JobSpec spec;
  if (!fresh) spec = job->spec;
  const Settings& settings = core_.settings;
  if (fresh) {
    spec.name = name;
    spec.weight = settings.job_weight;
    spec.device_quota_frames = settings.job_device_quota_bytes / page;
    spec.host_quota_frames = settings.job_host_quota_bytes / page;
  }
  if (hello.weight > 0) spec.weight = hello.weight;
  if (hello.device_quota_bytes > 0)
    spec.device_quota_frames = std::max<std::uint64_t>(1, hello.device_quota_bytes / page);
  if (hello.host_quota_bytes > 0)
    spec.host_quota_frames = std::max<std::uint64_t>(1, hello.host_quota_bytes / page);
  if (fresh) job = &core_.registry.AddJob(peer.uid, name);
  Status taken = fresh ? core_.pager.AddJob(job->id, spec) : core_.pager.SetJob(job->id, spec);
  if (!taken.ok()) {
    if (fresh) core_.registry.RemoveJob(job->id);
    return taken;
  }
  job->spec = spec;
  if (fresh) job->linger_ms = settings.linger_ms;
  if (hello.linger_ms >= 0) job->linger_ms = hello.linger_ms;
  return job;
}

wire::Result<Session*> Lifecycle::Open(const Peer& peer, const wire::HelloBody& hello) {
  Status fine = CheckRoom(peer);
  if (fine.ok()) fine = CheckHello(hello);
  if (!fine.ok()) return fine;
  wire::Result<Job*> job = JoinJob(peer, hello);
  if (!job.ok()) return job.status();
  Session::Identity identity{core_.registry.NextSessionId(), (*job)->id, peer, hello.rank,
                             std::string(wire::TextOf(hello.client))};
  wire::Result<std::unique_ptr<Session>> session = Session::Make(std::move(identity), core_.device);
  if (!session.ok()) {
    RemoveJobIfEmpty((*job)->id);
    return session.status();
  }
  ++core_.counters.sessions_opened;
  (*job)->linger_until_ns = 0;
  // Its own: one that follows another of its job may say less before the daemon knows of that one's end.
  (*session)->linger_ms = (*job)->linger_ms;
  (*session)->asked_linger = hello.linger_ms >= 0;
  if ((*job)->sessions.empty()) (*job)->longest_linger_ms = 0;
  (*job)->longest_linger_ms = std::max((*job)->longest_linger_ms, (*job)->linger_ms);
  Session& added = core_.registry.AddSession(std::move(*session));
  core_.Tell({"attach", (*job)->name, 0, added.identity().client});
  return &added;
}

void Lifecycle::Close(wire::SessionId id, bool detached) {
  Session* session = core_.registry.FindSession(id);
  if (session == nullptr || (session->closing && !session->failed())) return;
  session->closing = true;
  session->detached = detached;
  // Records that were pushed with their inputs ready are applied, whoever is left to see it.
  static_cast<void>(session->TakeRequests());
}

int Lifecycle::Reap() {
  std::vector<Session*> gone;
  for (const auto& [id, session] : core_.registry.sessions()) {
    if (session->closing && !session->active && !session->HeadReady()) gone.push_back(session.get());
  }
  for (Session* session : gone) TearDown(*session);
  return static_cast<int>(gone.size());
}

void Lifecycle::TearDown(Session& session) {
  const wire::JobId job_id = session.identity().job;
  Job& job = *core_.registry.FindJob(job_id);
  const bool lost = !session.detached;
  if (lost) ++core_.counters.sessions_lost;
  std::uint64_t freed_bytes = 0;
  leases_.DropSession(session.identity().id);
  const auto extents = session.extents();
  const bool keeps = session.linger_ms > 0 || (!session.asked_linger && job.longest_linger_ms > 0);
  for (const auto& [id, extent] : extents) {
    if (extent->arena() != nullptr && keeps) {
      extent->owner = {};
      continue;
    }
    freed_bytes += extent->pages * core_.page_bytes();
    DropExtent(*extent);
  }
  job.buffer_bytes -= session.own_buffer_bytes();
  core_.Tell({lost ? "killed" : "detach", job.name, freed_bytes, session.identity().client});
  for (BufferRef& buffer : session.TakeBuffers()) abandoned_.push_back(std::move(buffer));
  core_.registry.RemoveSession(session.identity().id);
  if (job.sessions.empty() && !job.extents.empty()) {
    job.linger_until_ns = core_.clock.NowNs() + static_cast<std::uint64_t>(KeepMs(job)) * 1'000'000;
  }
  RemoveJobIfEmpty(job_id);
}

// The longest that any session asked for which was there with what is kept now.
std::int64_t Lifecycle::KeepMs(const Job& job) {
  std::int64_t longest = 0;
  for (const wire::ExtentId id : job.extents) {
    Extent& extent = *core_.registry.FindExtent(id);
    extent.keep_ms = std::max(extent.keep_ms, job.longest_linger_ms);
    longest = std::max(longest, extent.keep_ms);
  }
  return longest;
}

void Lifecycle::RemoveJobIfEmpty(wire::JobId id) {
  Job* job = core_.registry.FindJob(id);
  if (job == nullptr || !job->sessions.empty() || !job->extents.empty()) return;
  core_.CollectPeaks(*job);
  core_.past_jobs.Leave(id, {job->name, job->uid, job->counters, job->peaks});
  core_.pager.RemoveJob(id);
  core_.registry.RemoveJob(id);
}

wire::Status Lifecycle::ReleaseBuffer(Session& session, wire::BufferId id) {
  const std::uint64_t before_bytes = session.own_buffer_bytes();
  wire::Result<BufferRef> released = session.RemoveBuffer(id);
  if (!released.ok()) return released.status();
  core_.registry.FindJob(session.identity().job)->buffer_bytes -= before_bytes - session.own_buffer_bytes();
  if ((*released)->own()) emptying_.push_back(std::move(*released));
  return {};
}

int Lifecycle::EmptyBuffers() {
  int pieces = 0;
  std::erase_if(emptying_, [&](const BufferRef& buffer) {
    // Work under way still uses it.
    if (buffer.use_count() > 1) return false;
    ++pieces;
    return !buffer->EmptySome();
  });
  for (bool gone = false; !gone && !abandoned_.empty(); abandoned_.pop_front()) {
    gone = abandoned_.front().use_count() == 1;  // else work under way ends it
    pieces += gone ? 1 : 0;
  }
  return pieces;
}

int Lifecycle::Expire(std::uint64_t now_ns) {
  std::vector<wire::JobId> over;
  for (const auto& [id, job] : core_.registry.jobs()) {
    if (job.linger_until_ns != 0 && job.linger_until_ns <= now_ns) over.push_back(id);
  }
  for (const wire::JobId id : over) {
    Job& job = *core_.registry.FindJob(id);
    const std::set<wire::ExtentId> extents = job.extents;
    std::uint64_t bytes = 0;
    for (const wire::ExtentId extent_id : extents) {
      Extent& extent = *core_.registry.FindExtent(extent_id);
      bytes += extent.pages * core_.page_bytes();
      DropExtent(extent);
    }
    core_.Tell({"expired", job.name, bytes, "kept states were dropped"});
    RemoveJobIfEmpty(id);
  }
  const std::uint64_t timeout_ns = core_.settings.heartbeat_timeout_ms * 1'000'000;
  for (const auto& [id, session] : core_.registry.sessions()) {
    if (session->heartbeat_ns == 0 || session->closing) continue;
    const std::uint64_t beat = session->segment().header().heartbeat.word.load(std::memory_order_relaxed);
    if (beat != session->heartbeat_seen) {
      session->heartbeat_seen = beat;
      session->heartbeat_ns = now_ns;
    } else if (now_ns - session->heartbeat_ns > timeout_ns) {
      dead_.push_back(id);
    }
  }
  return static_cast<int>(over.size() + dead_.size());
}

std::optional<std::uint64_t> Lifecycle::NextDeadlineNs() const {
  std::optional<std::uint64_t> next;
  const auto earlier = [&](std::uint64_t at) { next = next ? std::min(*next, at) : at; };
  for (const auto& [id, job] : core_.registry.jobs()) {
    if (job.linger_until_ns != 0) earlier(job.linger_until_ns);
  }
  for (const auto& [id, session] : core_.registry.sessions()) {
    if (session->heartbeat_ns != 0 && !session->closing) {
      earlier(session->heartbeat_ns + core_.settings.heartbeat_timeout_ms * 1'000'000 + 1);
    }
  }
  return next;
}

}  // namespace bitpager::daemon
