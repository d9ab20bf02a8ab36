// Comings and goings: jobs, sessions, extents. Checks limits at each coming and gives everything back at each
// going. Dispatcher thread.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "client/wire/messages.h"
#include "client/wire/status.h"
#include "daemon/core.h"
#include "daemon/leases.h"
#include "daemon/sharing.h"

namespace bitpager::daemon {

// What a newcomer is told with kDraining.
inline constexpr const char* kDrainsText =
    "the daemon is draining and takes no new sessions. Hint: wait for its successor.";

class Lifecycle {
 public:
  Lifecycle(Core& core, Leases& leases, Sharing& sharing) : core_(core), leases_(leases), sharing_(sharing) {}

  // ---- sessions
  [[nodiscard]] wire::Result<Session*> Open(const Peer& peer, const wire::HelloBody& hello);
  // Its client is gone (or said goodbye): what is ready is still applied, then Reap takes it down.
  void Close(wire::SessionId id, bool detached);
  // Takes down sessions that have nothing left to do. Returns how many.
  int Reap();

  // ---- extents
  [[nodiscard]] wire::Result<Extent*> CreateArena(Session& session, const wire::CreateArenaBody& body);
  [[nodiscard]] wire::Result<Extent*> CreateWeight(Session& session, const wire::CreateWeightBody& body);
  [[nodiscard]] wire::Status Drop(Session& session, wire::ExtentId id);

  // ---- memory
  // The session releases a buffer. kNotFound. Of the daemon's own, the memory is gone soon, whoever keeps the
  // file: EmptyBuffers takes it away in pieces.
  [[nodiscard]] wire::Status ReleaseBuffer(Session& session, wire::BufferId id);
  // Returns how many pieces were taken away: at most one for each buffer. Of the buffers of sessions that
  // ended one goes each call: where a GPU reaches it, letting go waits for what the GPU runs.
  int EmptyBuffers();

  // ---- time. Kept arenas whose time is over go; clients without a pidfd whose heartbeat stopped are dead.
  // Returns how many of both there were.
  int Expire(std::uint64_t now_ns);
  // When Expire should be called next; none when nothing waits for time.
  [[nodiscard]] std::optional<std::uint64_t> NextDeadlineNs() const;
  // Sessions that Expire found dead since the last call.
  [[nodiscard]] std::vector<wire::SessionId> TakeDead() { return std::move(dead_); }

 private:
  [[nodiscard]] wire::Status CheckRoom(const Peer& peer) const;
  [[nodiscard]] wire::Status CheckHello(const wire::HelloBody& hello) const;
  [[nodiscard]] wire::Result<Job*> JoinJob(const Peer& peer, const wire::HelloBody& hello);
  [[nodiscard]] wire::Result<Arena> MakeArena(Session& session, const wire::CreateArenaBody& body);
  [[nodiscard]] wire::Result<Extent*> Continue(Session& session, Extent* kept, const Arena& wanted,
                                               const wire::CreateArenaBody& body);
  // Whether an arena of `pages` would be admitted once `kept` were dropped.
  [[nodiscard]] wire::Status CheckReplace(const Extent& kept, std::uint64_t pages,
                                          const paging::ExtentSpec& spec) const;
  [[nodiscard]] wire::Result<Extent*> Admit(Session& session, Extent extent, const paging::ExtentSpec& spec,
                                            const char* what);
  void TearDown(Session& session);
  [[nodiscard]] std::int64_t KeepMs(const Job& job);
  void DropExtent(Extent& extent);
  void RemoveJobIfEmpty(wire::JobId id);

  Core& core_;
  Leases& leases_;
  Sharing& sharing_;
  std::vector<wire::SessionId> dead_;
  std::deque<BufferRef> emptying_;   // released by their sessions
  std::deque<BufferRef> abandoned_;  // of sessions that ended
};

}  // namespace bitpager::daemon
