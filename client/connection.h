// What one session shares among its handles: the socket, the mapped segment, the timeline, the slab, the
// mappings. Every call enters through Enter, which takes the one mutex, so the parts know one caller at a
// time. In a forked child everything here is dead: Enter says so without touching a lock, and the destructor
// leaks the parts (their threads and mappings exist only in the parent).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "client/buffer_source.h"
#include "client/copy_pool.h"
#include "client/device_session.h"
#include "client/fork_guard.h"
#include "client/heartbeat.h"
#include "client/lease.h"
#include "client/slab.h"
#include "client/socket_calls.h"
#include "client/timeline.h"
#include "client/wire/mapping.h"
#include "client/wire/messages.h"
#include "client/wire/status.h"

namespace bitpager::client {

class Weight;

struct SessionInfo {
  std::uint64_t session = 0;
  std::uint64_t job = 0;
  std::uint64_t page_bytes = 0;
  std::uint64_t linger_ms = 0;
  std::uint64_t heartbeat_ms = 0;  // 0: none wanted
  std::string socket;
  std::string job_name;
  std::string device_kind;  // "cpu", "cuda"; empty: the daemon did not say
  std::string device_uuid;  // "cpu-0", "GPU-..."
  bool synchronous = true;  // requests are waited for on the processor
  bool leases = true;       // false: weights are read by request alone
};

// What every use of a session in a forked child gets.
[[nodiscard]] wire::Status ForkedChild();

class Connection {
 public:
  // Takes over a socket whose hello was answered with `hello`. kProtocol, kUnknownVersion: what came with the
  // answer is not a session's segment and bells.
  [[nodiscard]] static wire::Result<std::shared_ptr<Connection>> Make(SocketCalls calls, Reply hello,
                                                                      SessionInfo info, int threads,
                                                                      CudaDriver* driver = nullptr);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  using Lock = std::unique_lock<std::mutex>;
  // Opens a call: kForkedChild, kUnreachable (detached), the failure that ended the session, kInterrupted
  // (an interrupted request still runs). The caller keeps the lock while it uses anything below.
  [[nodiscard]] wire::Result<Lock> Enter();

  // ---- under the lock ----
  [[nodiscard]] Timeline& timeline() { return parts_->timeline; }
  [[nodiscard]] Slab& slab() { return parts_->slab; }
  [[nodiscard]] CopyPool& copies() { return parts_->copies; }
  [[nodiscard]] wire::SegmentView view() const { return {parts_->segment.base()}; }
  // One question over the socket. A socket that fails ends the session.
  template <typename Body>
  [[nodiscard]] wire::Result<Reply> Ask(wire::MessageType type, const Body& body,
                                        std::span<const int> fds = {}) {
    return Judged(parts_->calls.Ask(type, body, fds));
  }
  [[nodiscard]] wire::Result<Reply> AskBare(wire::MessageType type) {
    return Judged(parts_->calls.AskBare(type));
  }
  // A sealed buffer made by the daemon, mapped; sets `id`.
  [[nodiscard]] wire::Result<wire::Mapping> MakeBuffer(std::uint64_t bytes, std::uint64_t& id);
  // Room in the slab for `bytes`.
  [[nodiscard]] wire::Status ReserveSlab(std::uint64_t bytes);
  // Asks for a lease that was granted at `grant`.
  [[nodiscard]] wire::Result<Lease> TakeLease(const LeaseGrant& grant);
  // Weights that hold leases on a GPU, so that those that were revoked are let go of.
  void Remember(Weight* weight) { parts_->leased.insert(weight); }
  void Forget(Weight* weight) { parts_->leased.erase(weight); }
  void LetGoOfRevoked();
  // Drops an extent: at once where nothing is under way, else at a later call that finds it so.
  void DropLater(std::uint64_t extent);
  // Waits until those can be dropped, and does it: before memory for others is asked for. kInterrupted:
  // again.
  [[nodiscard]] wire::Status DropForgotten();
  // Under the lock, whatever became of the session; false, and nothing was done, in a forked child.
  template <typename Work>
  bool Locked(const Work& work) {
    if (forked()) return false;
    const Lock lock(mutex_);
    work();
    return true;
  }
  // Mappings of this session's own buffers, by id.
  [[nodiscard]] std::map<std::uint64_t, wire::Mapping>& buffers() { return parts_->buffers; }
  // The GPU's side; null when the session's device is none.
  [[nodiscard]] DeviceSession* device() { return parts_->device.get(); }
  [[nodiscard]] std::uint64_t imports() {
    const Lock lock(mutex_);
    return parts_->device == nullptr ? 0 : parts_->device->imports().made();
  }
  // Scratch for lists of copies.
  [[nodiscard]] std::vector<CopyRange>& ranges() { return parts_->ranges; }

  // Ends the session cleanly; later calls get kUnreachable. Mappings live on until the last handle ends.
  void Detach();

  [[nodiscard]] const SessionInfo& info() const { return info_; }
  [[nodiscard]] bool forked() const { return parts_->guard.forked(); }

 private:
  void AskForDrops();

  struct Parts {
    Parts(SocketCalls attached, wire::Mapping segment_map, Reply& hello, int threads);
    ForkGuard guard;
    SocketCalls calls;
    wire::Mapping segment;
    Timeline timeline;
    Slab slab;
    CopyPool copies;
    DomainMaps domains;
    std::map<std::uint64_t, wire::Mapping> buffers;
    std::set<Weight*> leased;
    std::vector<CopyRange> ranges;
    std::vector<std::uint64_t> forgotten;  // extents to be dropped
    std::unique_ptr<BufferSource> source;
    std::unique_ptr<DeviceSession> device;
    std::unique_ptr<Heartbeat> heartbeat;  // last: its thread ends before what it writes to
  };
  class Source;
  // Of a session whose device is a GPU. `driver` null: the machine's.
  wire::Status OpenDevice(CudaDriver* driver);
  explicit Connection(SessionInfo info) : info_(std::move(info)) {}
  // The outcome of something that used the socket: one that broke it ends the session.
  template <typename Outcome>
  [[nodiscard]] Outcome Judged(Outcome outcome) {
    if (parts_->calls.broken()) return parts_->timeline.Fail(StatusIn(outcome));
    return outcome;
  }
  static wire::Status StatusIn(const wire::Status& status) { return status; }
  template <typename T>
  static wire::Status StatusIn(const wire::Result<T>& result) {
    return result.status();
  }

  SessionInfo info_;  // constant once made
  std::unique_ptr<Parts> parts_;
  std::mutex mutex_;  // guards parts_' parts and detached_
  bool detached_ = false;
};

}  // namespace bitpager::client
