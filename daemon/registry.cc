#include "daemon/registry.h"

namespace bitpager::daemon {

Job* Registry::FindJob(wire::JobId id) {
  const auto found = jobs_.find(id);
  return found == jobs_.end() ? nullptr : &found->second;
}

Job* Registry::FindJob(std::uint32_t uid, const std::string& name) {
  const auto found = job_names_.find({uid, name});
  return found == job_names_.end() ? nullptr : FindJob(found->second);
}

Job& Registry::AddJob(std::uint32_t uid, const std::string& name) {
  const wire::JobId id{++last_job_};
  Job& job = jobs_[id];
  job.id = id;
  job.uid = uid;
  job.name = name;
  job.spec.name = name;
  const auto next_domain = static_cast<paging::DomainId>(domains_.size() + 1);
  job.domain = domains_.try_emplace(uid, next_domain).first->second;
  job_names_[{uid, name}] = id;
  return job;
}

void Registry::RemoveJob(wire::JobId id) {
  const auto found = jobs_.find(id);
  if (found == jobs_.end()) return;
  job_names_.erase({found->second.uid, found->second.name});
  jobs_.erase(found);
}

Session& Registry::AddSession(std::unique_ptr<Session> session) {
  const wire::SessionId id = session->identity().id;
  jobs_.at(session->identity().job).sessions.insert(id);
  return *(sessions_[id] = std::move(session));
}

Session* Registry::FindSession(wire::SessionId id) {
  const auto found = sessions_.find(id);
  return found == sessions_.end() ? nullptr : found->second.get();
}

void Registry::RemoveSession(wire::SessionId id) {
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) return;
  if (Job* job = FindJob(found->second->identity().job); job != nullptr) job->sessions.erase(id);
  sessions_.erase(found);
}

Extent& Registry::AddExtent(Extent extent) {
  const wire::ExtentId id = extent.id;
  if (const Arena* arena = extent.arena(); arena != nullptr) arenas_[arena->key] = id;
  jobs_.at(extent.job).extents.insert(id);
  return *(extents_[id] = std::make_unique<Extent>(std::move(extent)));
}

Extent* Registry::FindExtent(wire::ExtentId id) {
  const auto found = extents_.find(id);
  return found == extents_.end() ? nullptr : found->second.get();
}

const Extent* Registry::FindExtent(wire::ExtentId id) const {
  const auto found = extents_.find(id);
  return found == extents_.end() ? nullptr : found->second.get();
}

Extent* Registry::FindArena(const ArenaKey& key) {
  const auto found = arenas_.find(key);
  return found == arenas_.end() ? nullptr : FindExtent(found->second);
}

void Registry::RemoveExtent(wire::ExtentId id) {
  const auto found = extents_.find(id);
  if (found == extents_.end()) return;
  if (const Arena* arena = found->second->arena(); arena != nullptr) arenas_.erase(arena->key);
  if (Job* job = FindJob(found->second->job); job != nullptr) job->extents.erase(id);
  extents_.erase(found);
}

std::uint64_t Registry::buffer_bytes() const {
  std::uint64_t sum = 0;
  for (const auto& [id, job] : jobs_) sum += job.buffer_bytes;
  return sum;
}

}  // namespace bitpager::daemon
