// One connected process of a job: its shared segment, rings, buffers, and the tickets it has outstanding.
// Tickets are taken in order, one at a time. Dispatcher thread, but for the connection's fd, which the
// listener reads.
#pragma once

#include <sys/types.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>

#include "client/wire/ids.h"
#include "client/wire/mapping.h"
#include "client/wire/ring.h"
#include "client/wire/segment.h"
#include "client/wire/status.h"
#include "client/wire/unique_fd.h"
#include "daemon/admission.h"
#include "daemon/past_jobs.h"
#include "kernels/device.h"

namespace bitpager::daemon {

// Who is at the other end of a socket, as the kernel says.
struct Peer {
  std::uint32_t uid = ~0U;
  std::uint32_t gid = ~0U;
  std::int64_t pid = 0;  // 0 where it is hidden
};

// A request that is being worked on.
struct ActiveTask {
  std::uint64_t ticket = 0;
  wire::Op op = wire::Op::kNoop;
  std::unique_ptr<Work> work;  // none for a lease
  wire::RequestId request;
  wire::ExtentId lease_extent;  // kLease: the extent that is made resident
  wire::Status refused;         // not Ok: it was cancelled before it started, and why
  std::uint64_t taken_ns = 0;   // its inputs were ready and it was its turn
  std::uint64_t admitted_ns = 0;
  std::uint64_t idle_since_ns = 0;  // no run in flight since then
  std::uint64_t stall_ns = 0;
  std::uint64_t launch_ns = 0;  // from taken_ns until the device had its first kernel
  std::uint32_t runs_in_flight = 0;
  bool continues = false;  // kStep: a further part of a step that was counted
  bool settling = false;   // done, but for the shared base (sharing.h): then it completes with this
  wire::CompletionRecord completion;
  wire::ExtentId counted;           // copies of pages that are counted with its own
  std::uint64_t loaded_before = 0;  // when it was admitted
  std::uint64_t stored_before = 0;
};

class Session final : public SessionScope {
 public:
  struct Identity {
    wire::SessionId id;
    wire::JobId job;
    Peer peer;
    std::uint32_t rank = 0;
    std::string client;
  };

  // Makes the sealed segment and the bells. kOutOfMemory with the reason.
  [[nodiscard]] static wire::Result<std::unique_ptr<Session>> Make(Identity identity,
                                                                   kernels::Device& device);
  ~Session() override;

  [[nodiscard]] const Identity& identity() const { return identity_; }
  [[nodiscard]] wire::SegmentView segment() const { return view_; }
  [[nodiscard]] int segment_fd() const { return segment_fd_.get(); }
  [[nodiscard]] int request_bell() const { return request_bell_.get(); }
  [[nodiscard]] int completion_bell() const { return completion_bell_.get(); }

  // ---- rings
  // Takes new records into `pending`. False when the client wrote what no client writes.
  [[nodiscard]] bool TakeRequests();
  [[nodiscard]] bool HasRequests() const { return !requests_.Empty(); }
  // TakeRequests would take some: a client that fills its rings must not keep the loop from sleeping.
  [[nodiscard]] bool CanTakeRequests() const {
    return HasRequests() && !closing && outstanding() < wire::kCompletionSlots;
  }
  // Writes a completion and wakes the client. False when its ring is full or corrupt: end the session.
  [[nodiscard]] bool Complete(const wire::CompletionRecord& completion);
  // The head of `pending` may start: the client says that its inputs are ready.
  [[nodiscard]] bool HeadReady() const;
  // Tells the client that its session is over; later calls change nothing.
  void Fail(wire::Code code);
  // Again after a run of a failed session has ended: whoever waits for any ticket goes on, and sees `failed`.
  void ReleaseWaiters();
  [[nodiscard]] bool failed() const { return failed_; }

  // Has `epoll` watch the request bell until the session ends: its client holds the bell too, so closing ours
  // would not end the watch, and a later fd of the same number would be taken for the bell.
  [[nodiscard]] bool WatchBell(int epoll);

  // Doorbell protocol: Sleep, look at the rings once more, wait on the bell, Wake.
  void AnnounceSleep(bool sleeping);

  // ---- memory
  [[nodiscard]] BufferRef FindBuffer(wire::BufferId id) const override;
  [[nodiscard]] Extent* FindExtent(wire::ExtentId id) const override;
  wire::BufferId AddBuffer(const kernels::Import& import, bool writable, bool own);
  // Whether `bytes` more may be mapped for this session: no client takes the addresses that all live on.
  [[nodiscard]] bool HasRoomFor(std::uint64_t bytes) const {
    constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 42;
    constexpr std::size_t kMostBuffers = std::size_t{1} << 14;
    return buffers_.size() < kMostBuffers && bytes <= kMostBytes - std::min(kMostBytes, buffer_bytes_);
  }
  // kNotFound. Its last user, perhaps the caller, ends it.
  [[nodiscard]] wire::Result<BufferRef> RemoveBuffer(wire::BufferId id);
  // All of them, for whoever lets go of them one by one. The session is over.
  [[nodiscard]] std::deque<BufferRef> TakeBuffers();
  [[nodiscard]] std::uint64_t own_buffer_bytes() const { return own_buffer_bytes_; }
  void AddExtent(Extent* extent) { extents_[extent->id] = extent; }
  void RemoveExtent(wire::ExtentId id) { extents_.erase(id); }
  [[nodiscard]] const std::unordered_map<wire::ExtentId, Extent*, wire::IdHash>& extents() const {
    return extents_;
  }
  [[nodiscard]] std::size_t outstanding() const { return pending.size() + (active ? 1U : 0U); }

  // ---- work, driven by the dispatcher
  std::deque<wire::RequestRecord> pending;
  std::uint64_t looked_ahead = 0;  // ticket at the head of `pending` whose pages were made to come
  Peaks peaks;  // of its job, since it came or asked for them to begin anew; see Job::peaks
  std::optional<ActiveTask> active;
  bool closing = false;        // its client is gone: finish what is ready, then tear down
  bool detached = false;       // its client said goodbye
  std::int64_t linger_ms = 0;  // that its arenas are kept behind it, at least
  bool asked_linger = false;   // by itself; else it goes by what others of its job asked for too
  std::uint64_t heartbeat_seen = 0;
  std::uint64_t heartbeat_ns = 0;  // when it last moved; 0: the client has a pidfd, none is wanted

 private:
  Session(Identity identity, kernels::Device& device) : identity_(std::move(identity)), device_(device) {}
  [[nodiscard]] wire::Status MapSegment();

  Identity identity_;
  kernels::Device& device_;
  wire::UniqueFd segment_fd_;
  wire::UniqueFd request_bell_;
  wire::UniqueFd completion_bell_;
  int epoll_ = -1;  // that watches request_bell_; outlives the session
  wire::Mapping mapping_;
  wire::SegmentView view_;
  wire::RingConsumer<wire::RequestRecord> requests_;
  wire::RingProducer<wire::CompletionRecord> completions_;
  std::uint64_t next_ticket_ = 1;
  std::uint64_t next_buffer_ = 1;
  std::uint64_t own_buffer_bytes_ = 0;
  std::uint64_t buffer_bytes_ = 0;  // of all buffers
  bool failed_ = false;
  std::unordered_map<wire::BufferId, BufferRef, wire::IdHash> buffers_;
  std::unordered_map<wire::ExtentId, Extent*, wire::IdHash> extents_;
};

}  // namespace bitpager::daemon
