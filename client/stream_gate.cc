#include "client/stream_gate.h"

namespace bitpager::client {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

}  // namespace

Status StreamGate::Check(StreamHandle stream) {
  const Result<int> current = driver_.CurrentDevice();
  if (!current.ok()) {
    if (current.status().code() != Code::kInvalidArgument) return current.status();
    if (Status used = driver_.UsePrimaryContext(ordinal_); !used.ok()) return used;
  } else if (*current != ordinal_) {
    return {Code::kInvalidArgument,
            "device " + std::to_string(*current) + " is current, this session is for " + uuid_ +
                ", which is device " + std::to_string(ordinal_) + " here. Hint: with torch.cuda.device(...)"};
  }
  const Result<bool> capturing = driver_.IsCapturing(stream);
  if (!capturing.ok()) return capturing.status();
  if (*capturing) {
    return {
        Code::kUnsupported,
        "step() and reads of weights in pages cannot be captured in a CUDA graph: a replay would not ask the "
        "daemon. Hint: capture forward and backward of plain layers, and call step() after the replay"};
  }
  return {};
}

Status StreamGate::Open() {
  // The header and the words of the leases; the frame table behind them is the processor's alone.
  const Result<DeviceAddress> base = driver_.RegisterHost(view_.base, wire::kLeaseFramesOffset);
  if (!base.ok()) return base.status();
  base_ = *base;
  return {};
}

Result<DeviceAddress> StreamGate::WordOnDevice(const wire::Word& word) {
  if (!open()) {
    if (Status opened = Open(); !opened.ok()) return opened;
  }
  return base_ + static_cast<DeviceAddress>(reinterpret_cast<const std::byte*>(&word) - view_.base);
}

DeviceAddress StreamGate::AddressOf(const wire::LineWord& word) const {
  return base_ + static_cast<DeviceAddress>(reinterpret_cast<const std::byte*>(&word) - view_.base);
}

Status StreamGate::MarkReady(StreamHandle stream, std::uint64_t ticket) {
  if (!open()) {
    if (Status opened = Open(); !opened.ok()) return opened;
  }
  wire::SegmentHeader& header = view_.header();
  const std::uint64_t id = driver_.StreamId(stream);
  // Acquire: whatever was marked so far, streams hold no mark any more that would come behind this one.
  if (header.ready.word.load(std::memory_order_acquire) >= last_mark_ && driver_.IsIdle(stream)) {
    // Pairs with the daemon's acquire: what the stream did is done.
    header.ready.word.store(ticket, std::memory_order_release);
    last_stream_ = id;
    last_ticket_ = last_mark_ = ticket;
    return {};
  }
  // Acquire: a ticket that is done was ready before, so nothing is left to wait for.
  const bool idle = header.done.word.load(std::memory_order_acquire) >= last_ticket_;
  if (id != last_stream_ && !idle) {
    if (Status waits = driver_.WaitWord(stream, AddressOf(header.done), last_ticket_); !waits.ok())
      return waits;
  }
  Status marked = driver_.WriteWord(stream, AddressOf(header.ready), ticket);
  if (marked.ok()) {
    last_stream_ = id;
    last_ticket_ = last_mark_ = ticket;
  }
  return marked;
}

std::uint64_t StreamGate::ShareMark(StreamHandle stream, std::uint64_t ticket) {
  if (last_mark_ == 0 || ticket != last_ticket_ + 1 || driver_.StreamId(stream) != last_stream_) return 0;
  last_ticket_ = ticket;
  return last_mark_;
}

Status StreamGate::WaitDone(StreamHandle stream, std::uint64_t ticket) {
  return driver_.WaitWord(stream, AddressOf(view_.header().done), ticket);
}

void StreamGate::Close() {
  if (open()) driver_.UnregisterHost(view_.base);
  base_ = 0;
}

}  // namespace bitpager::client
