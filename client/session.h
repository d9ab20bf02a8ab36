// A session with bitpagerd: one process's access to its job. Any thread; calls are serialised inside. Arenas,
// weights and buffers keep their session alive.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "client/connection.h"
#include "client/wire/records.h"
#include "client/wire/status.h"

namespace bitpager::client {

struct ConnectOptions {
  std::string socket;                    // empty: the search order of FindDaemon
  std::string job;                       // [A-Za-z0-9._-]; empty: BITPAGER_JOB, or "<program>-<pid>"
  std::string client;                    // shown to people; empty: the program's name
  std::string daemon_path;               // bitpagerd to start; empty: looked for
  std::uint32_t rank = 0;                // of this process in the job
  double weight = 0;                     // share among jobs; 0: the daemon's default
  std::uint64_t device_quota_bytes = 0;  // 0: the daemon's default
  std::uint64_t host_quota_bytes = 0;    // 0: the daemon's default
  std::int64_t linger_ms = -1;           // -1: the daemon's default; 0: pages go when the session ends
  // UUID of the device that the pages are for ("GPU-...", "cpu-0"); empty: the daemon's first.
  std::string device;
  CudaDriver* driver = nullptr;  // null: the machine's
  bool spawn = true;             // start a private daemon when none answers
  int threads = 0;               // for copies on this side; 0: the usable processors
};

// Of the session's job. Bytes count whole pages.
struct Usage {
  std::uint64_t resident_bytes = 0;
  std::uint64_t host_bytes = 0;
  std::uint64_t state_bytes = 0;
  std::uint64_t weight_bytes = 0;
  std::uint64_t resident_state_bytes = 0;
  std::uint64_t resident_weight_bytes = 0;
  std::uint64_t leased_bytes = 0;
  std::uint64_t loaded_bytes = 0;
  std::uint64_t stored_bytes = 0;
  std::uint64_t dropped_bytes = 0;
  std::uint64_t pages = 0;
  std::uint64_t share_bytes = 0;
  std::uint64_t stall_ns = 0;
  std::uint64_t steps = 0;
  std::uint64_t nonfinite_blocks = 0;
  std::uint64_t device_budget_bytes = 0;
  std::uint64_t shared_bytes = 0;  // of weights that others have too, in full; its part is in the others
  std::uint64_t buffer_bytes = 0;
  std::uint64_t disk_bytes = 0;
  std::uint64_t disk_budget_bytes = 0;  // of the daemon; 0: it keeps no pages on disk
  // The most at any moment since this session came or reset them; and since the job came.
  std::uint64_t peak_resident_bytes = 0;
  std::uint64_t peak_host_bytes = 0;
  std::uint64_t job_peak_resident_bytes = 0;
  std::uint64_t job_peak_host_bytes = 0;
};

class Session {
 public:
  // kUnreachable, kPermissionDenied, kUnknownVersion, kInvalidArgument, or the daemon's refusal.
  [[nodiscard]] static wire::Result<std::shared_ptr<Session>> Connect(const ConnectOptions& options);
  explicit Session(std::shared_ptr<Connection> connection) : connection_(std::move(connection)) {}
  ~Session() = default;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Ends the session cleanly and waits for nothing; handles of it get kUnreachable from then on. The end of
  // the last handle does it too.
  void Disconnect() { connection_->Detach(); }

  [[nodiscard]] const SessionInfo& info() const { return connection_->info(); }
  // reset_peaks: before it is told, this session's peaks begin anew at what the job has.
  [[nodiscard]] wire::Result<Usage> GetUsage(bool reset_peaks = false);
  // Has pages leave the device until `bytes` of it are free for what this process is about to allocate there,
  // and waits for it. Ok sets `free_bytes` to what is free now. kBudgetExceeded when all that can leave has
  // left and it is not enough; kPending when `limit_ms` passed first: pages are still leaving. Errors of the
  // connection.
  [[nodiscard]] wire::Status MakeRoom(std::uint64_t bytes, std::uint64_t limit_ms, std::uint64_t* free_bytes);
  // A request that does nothing, through ring, admission and dispatcher.
  [[nodiscard]] wire::Status Noop();
  // Makes an extent's pages resident as far as the job's share has room. Returns at once; kFull when too many
  // hints are open.
  [[nodiscard]] wire::Status Prefetch(std::uint64_t extent);
  // Tells the phase of training. As Prefetch.
  [[nodiscard]] wire::Status HintPhase(wire::Phase phase);

  // Requests made so far.
  [[nodiscard]] wire::Result<std::uint64_t> RequestCount();

  // ---- stream requests (Arena::StepOnStream and the like) ----
  // A step on `stream` comes in a moment: if the stream is idle, the daemon and the device make ready for it
  // while the caller still prepares it. Otherwise, and on devices without streams, nothing happens. As
  // Prefetch.
  [[nodiscard]] wire::Status ExpectStep(StreamHandle stream);
  // Waits until all are done. kInterrupted: some go on. What they found, TakeFinished tells.
  [[nodiscard]] wire::Status Synchronize();
  // The oldest failure that was not taken yet, with kNonFinite among them; else the newest that is done. Does
  // not wait. An error is the session's own end.
  [[nodiscard]] wire::Result<Finished> TakeFinished();
  // Registrations of GPU memory so far.
  [[nodiscard]] std::uint64_t imports() const { return connection_->imports(); }
  // Gives the daemon's mappings of memory that only gradients used back, once requests under way are done.
  [[nodiscard]] wire::Status ReleaseGradients();

  [[nodiscard]] const std::shared_ptr<Connection>& connection() const { return connection_; }

 private:
  const std::shared_ptr<Connection> connection_;
};

}  // namespace bitpager::client
