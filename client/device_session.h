// The GPU's side of a session: imports of the caller's memory, tables of requests under way, the words that
// streams use, and the watch over the daemon's life. Made for sessions whose device is a GPU, and only there.
// One caller at a time (the connection's mutex).
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "client/buffer_source.h"
#include "client/cuda_driver.h"
#include "client/daemon_watcher.h"
#include "client/device_imports.h"
#include "client/device_lease.h"
#include "client/stream_gate.h"
#include "client/table_ring.h"
#include "client/timeline.h"
#include "client/wire/status.h"

namespace bitpager::client {

// What stream requests of a session get whose device has no streams.
[[nodiscard]] wire::Status NoStreams(const std::string& device_kind);

class DeviceSession {
 public:
  struct Options {
    CudaDriver* driver = nullptr;
    std::string uuid;
    bool daemon_is_synchronous = false;  // it says that streams do not wait for it
  };
  // `timeline`, `source` and what `view` and `socket` name outlive it. kNotFound: this process does not see
  // the device.
  [[nodiscard]] static wire::Result<std::unique_ptr<DeviceSession>> Make(const Options& options,
                                                                         wire::SegmentView view, int socket,
                                                                         Timeline& timeline,
                                                                         BufferSource& source);

  // ---- one request: Begin, then Resolve and Table as needed, then Submit ----
  // Whether a request may be made on `stream`, and room for it. kInterrupted: a signal came while waiting
  // for room; nothing happened.
  [[nodiscard]] wire::Status Begin(StreamHandle stream);
  [[nodiscard]] wire::Status Resolve(const void* at, std::uint64_t bytes, Use use, wire::Slice& out) {
    return imports_.Resolve(reinterpret_cast<DeviceAddress>(at), bytes, use, out);
  }
  // Room for a table, which stays until the request is done.
  [[nodiscard]] wire::Result<SlabPiece> Table(std::uint64_t bytes);
  // Hands the request over and returns its ticket, without waiting unless synchronous(). When it fails the
  // stream holds no wait for it. follows: the caller enqueued nothing on the stream since its last request.
  template <typename Body>
  [[nodiscard]] wire::Result<std::uint64_t> Submit(StreamHandle stream, wire::Op op, const Body& body,
                                                   const TicketNote& note, bool follows = false) {
    if (synchronous_) return SubmitAndWait(stream, op, body, note);
    const std::uint64_t ticket = timeline_.next_ticket();
    std::uint64_t ready = follows ? gate_.ShareMark(stream, ticket) : 0;
    if (ready == 0) {
      if (wire::Status marked = gate_.MarkReady(stream, ticket); !marked.ok()) return marked;
      ready = ticket;
    }
    // Room was made, so only a session that is over refuses, and then nothing waits for the ticket.
    if (wire::Status pushed = timeline_.PushBehindStream(op, body, note, ready); !pushed.ok()) return pushed;
    if (wire::Status waits = gate_.WaitDone(stream, ticket); !waits.ok()) return timeline_.Fail(waits);
    return ticket;
  }

  // Tells the daemon that a request comes in a moment, if neither `stream` nor the daemon has work for the
  // device until then: it wakes up, and so does its part of the device. Free of errors, as a hint is.
  void Expect(StreamHandle stream);

  // ---- leases ----
  // Whether the frames of a lease may be read on `stream` now: see StreamGate::Check.
  [[nodiscard]] wire::Status CheckStream(StreamHandle stream) { return gate_.Check(stream); }
  [[nodiscard]] wire::Result<std::unique_ptr<StreamUses>> UsesOf(const Lease& lease);
  [[nodiscard]] FrameMaps& maps() { return maps_; }

  // Ends the daemon's mappings of what only gradients used: now, or for what an open ticket reads, at a later
  // call or request.
  [[nodiscard]] wire::Status ReleaseGradients();
  // Waits for every open stream ticket as long as the daemon lives, then takes the words back from CUDA.
  void Close();

  // step() waits on the processor, for the device or the daemon cannot do otherwise.
  [[nodiscard]] bool synchronous() const { return synchronous_; }
  [[nodiscard]] const DeviceImports& imports() const { return imports_; }

 private:
  DeviceSession(CudaDriver& driver, int ordinal, const std::string& uuid, bool synchronous,
                wire::SegmentView view, Timeline& timeline, BufferSource& source)
      : driver_(driver),
        synchronous_(synchronous),
        view_(view),
        timeline_(timeline),
        imports_(driver, ordinal, uuid, source),
        tables_(source),
        gate_(driver, ordinal, uuid, view),
        maps_(driver, ordinal) {}

  template <typename Body>
  wire::Result<std::uint64_t> SubmitAndWait(StreamHandle stream, wire::Op op, const Body& body,
                                            const TicketNote& note) {
    if (wire::Status waited = driver_.Synchronize(stream); !waited.ok()) return waited;
    const wire::Result<wire::CompletionRecord> done = timeline_.Run(op, body, Patience::kUntilDone);
    if (!done.ok()) return done.status();
    timeline_.Note(note, *done);
    return done->ticket;
  }

  CudaDriver& driver_;
  const bool synchronous_;
  const wire::SegmentView view_;
  Timeline& timeline_;
  DeviceImports imports_;
  TableRing tables_;
  StreamGate gate_;
  DeviceMaps maps_;
  DaemonWatcher watcher_;  // last: its thread ends first
};

}  // namespace bitpager::client
