#include "client/device_session.h"

namespace bitpager::client {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

}  // namespace

Status NoStreams(const std::string& device_kind) {
  return {Code::kUnsupported, "this session's device is \"" + device_kind +
                                  "\", which has no streams. Hint: connect for a GPU (device), or make the "
                                  "request that waits"};
}

Result<std::unique_ptr<DeviceSession>> DeviceSession::Make(const Options& options, wire::SegmentView view,
                                                           int socket, Timeline& timeline,
                                                           BufferSource& source) {
  const Result<int> ordinal = options.driver->OrdinalOf(options.uuid);
  if (!ordinal.ok()) return ordinal.status();
  const bool synchronous = options.daemon_is_synchronous || !options.driver->HasStreamWords(*ordinal);
  std::unique_ptr<DeviceSession> made(
      new DeviceSession(*options.driver, *ordinal, options.uuid, synchronous, view, timeline, source));
  if (synchronous) return made;
  timeline.UseStreams([driver = options.driver, host = view.base] { return driver->ContextFault(host); });
  if (Status started = made->watcher_.Start(view.header(), socket); !started.ok()) return started;
  return made;
}

Status DeviceSession::Begin(StreamHandle stream) {
  if (Status fine = gate_.Check(stream); !fine.ok()) return fine;
  if (Status room = timeline_.AwaitRoom(); !room.ok()) return room;
  return imports_.BeginRequest(timeline_.oldest_open_stream(), timeline_.next_ticket() - 1,
                               std::chrono::steady_clock::now());
}

void DeviceSession::Expect(StreamHandle stream) {
  if (synchronous_) return;
  // Takes what is done, without waiting.
  if (!timeline_.AwaitStreams(0, Patience::kUntilSignal).ok()) return;
  if (timeline_.oldest_open_stream() != ~0ULL) return;
  if (!gate_.Check(stream).ok() || !driver_.IsIdle(stream)) return;
  [[maybe_unused]] const Status hinted = timeline_.Hint(wire::Op::kExpect);
}

Status DeviceSession::ReleaseGradients() {
  // A step that is done but was not looked at would keep what it read.
  if (Status seen = timeline_.AwaitStreams(0, Patience::kUntilSignal); !seen.ok()) return seen;
  imports_.RetireGradients(timeline_.next_ticket() - 1);
  return imports_.GiveBack(timeline_.oldest_open_stream());
}

Result<std::unique_ptr<StreamUses>> DeviceSession::UsesOf(const Lease& lease) {
  wire::LeaseSlot& slot = view_.leases()[lease.slot];
  const Result<DeviceAddress> ended = gate_.WordOnDevice(slot.ended);
  if (!ended.ok()) return ended.status();
  return std::make_unique<StreamUses>(driver_, slot, lease.generation, *ended);
}

Result<SlabPiece> DeviceSession::Table(std::uint64_t bytes) {
  for (;;) {
    Result<SlabPiece> piece = tables_.Take(bytes, timeline_.next_ticket(), timeline_.oldest_open_stream());
    if (piece.ok() || piece.status().code() != Code::kFull) return piece;
    const Status waited = timeline_.AwaitStreams(tables_.oldest_ticket(), Patience::kUntilSignal);
    if (!waited.ok()) return waited;
  }
}

void DeviceSession::Close() {
  // Whatever is marked ready will be done, or the daemon's end is noticed. A daemon that hangs would keep us
  // for ever, but so it keeps the streams.
  if (timeline_.failure().ok()) {
    [[maybe_unused]] const Status waited = timeline_.AwaitStreams(~0ULL, Patience::kUntilSignal);
  }
  watcher_.Stop();
  ReleaseStreams(view_.header());
  gate_.Close();
}

}  // namespace bitpager::client
