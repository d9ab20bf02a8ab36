// Jobs, sessions and extents by their names, and the limits that span them. Plain ownership; decisions about
// pages are the pager's. Dispatcher thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>

#include "client/wire/ids.h"
#include "client/wire/status.h"
#include "daemon/extent.h"
#include "daemon/past_jobs.h"
#include "daemon/session.h"
#include "paging/pager.h"

namespace bitpager::daemon {

struct Job {
  wire::JobId id;
  std::uint32_t uid = 0;
  std::string name;
  paging::JobSpec spec;
  std::int64_t linger_ms = 0;                        // what its newest session asked for
  std::int64_t longest_linger_ms = 0;                // of all its sessions since it last had none
  std::uint64_t linger_until_ns = 0;                 // when the kept arenas go; 0 while a session lives
  paging::DomainId domain = paging::kPrivateDomain;  // of its quantized weights: the share domain of its uid
  std::set<wire::SessionId> sessions;
  std::set<wire::ExtentId> extents;
  std::uint64_t buffer_bytes = 0;  // slabs that the daemon made for its sessions
  JobCounters counters;
  Peaks peaks;  // since it came, but for what the pager has seen since CollectPeaks
  std::uint64_t step_ns_last = 0;
  std::uint64_t stall_ns_last = 0;
  std::string last_event;  // name of the newest one that operators heard of
  wire::Phase phase = wire::Phase::kIdle;
};

class Registry {
 public:
  // ---- jobs. One is named by its owner's uid and its name: two users never meet.
  [[nodiscard]] Job* FindJob(wire::JobId id);
  [[nodiscard]] Job* FindJob(std::uint32_t uid, const std::string& name);
  Job& AddJob(std::uint32_t uid, const std::string& name);
  void RemoveJob(wire::JobId id);
  [[nodiscard]] std::map<wire::JobId, Job>& jobs() { return jobs_; }
  [[nodiscard]] const std::map<wire::JobId, Job>& jobs() const { return jobs_; }

  // ---- sessions
  [[nodiscard]] wire::SessionId NextSessionId() { return wire::SessionId{++last_session_}; }
  Session& AddSession(std::unique_ptr<Session> session);
  [[nodiscard]] Session* FindSession(wire::SessionId id);
  // The caller finished with it before.
  void RemoveSession(wire::SessionId id);
  [[nodiscard]] std::map<wire::SessionId, std::unique_ptr<Session>>& sessions() { return sessions_; }
  [[nodiscard]] const std::map<wire::SessionId, std::unique_ptr<Session>>& sessions() const {
    return sessions_;
  }

  // ---- extents
  Extent& AddExtent(Extent extent);
  [[nodiscard]] Extent* FindExtent(wire::ExtentId id);
  [[nodiscard]] const Extent* FindExtent(wire::ExtentId id) const;
  [[nodiscard]] Extent* FindArena(const ArenaKey& key);
  void RemoveExtent(wire::ExtentId id);

  [[nodiscard]] std::uint64_t buffer_bytes() const;

 private:
  std::map<wire::JobId, Job> jobs_;
  std::map<std::pair<std::uint32_t, std::string>, wire::JobId> job_names_;
  std::map<std::uint32_t, paging::DomainId> domains_;
  std::map<wire::SessionId, std::unique_ptr<Session>> sessions_;
  std::unordered_map<wire::ExtentId, std::unique_ptr<Extent>, wire::IdHash> extents_;
  std::map<ArenaKey, wire::ExtentId> arenas_;
  std::uint64_t last_job_ = 0;
  std::uint64_t last_session_ = 0;
};

}  // namespace bitpager::daemon
