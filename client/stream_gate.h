// The two words through which streams and the daemon order their work: on the caller's stream, `ready` is
// written behind what made the inputs, and what comes after a request waits for `done`. Makes the segment's
// words known to CUDA at the first request. Never waits. One caller at a time (the connection's mutex); the
// device's context is current.
#pragma once

#include <cstdint>

#include "client/cuda_driver.h"
#include "client/wire/segment.h"
#include "client/wire/status.h"

namespace bitpager::client {

class StreamGate {
 public:
  // `driver` and the segment outlive this.
  StreamGate(CudaDriver& driver, int ordinal, std::string uuid, wire::SegmentView view)
      : driver_(driver), ordinal_(ordinal), uuid_(std::move(uuid)), view_(view) {}

  // Whether a request may be made on `stream` now. A thread without a current context, as threads of
  // PyTorch's autograd can be, gets the device's. kInvalidArgument: another device is current; kUnsupported:
  // the stream captures a graph. Nothing was enqueued.
  [[nodiscard]] wire::Status Check(StreamHandle stream);
  // `ready` becomes `ticket` behind what the stream holds, and behind the last ticket when that was another
  // stream's, so that `ready` only grows: at once where the stream holds nothing, for a GPU that has turned
  // to the daemon's context turns back for a write; else enqueued. Makes the words known to CUDA the first
  // time.
  [[nodiscard]] wire::Status MarkReady(StreamHandle stream, std::uint64_t ticket);
  // For a caller who enqueued nothing since its last request on `stream`: the mark of the ticket before
  // serves `ticket` too when that was the same stream's, and is returned; nothing is enqueued. 0: mark it.
  [[nodiscard]] std::uint64_t ShareMark(StreamHandle stream, std::uint64_t ticket);
  // Enqueues: the stream goes on when `ticket` is done.
  [[nodiscard]] wire::Status WaitDone(StreamHandle stream, std::uint64_t ticket);
  // Makes the words known to CUDA, once. The address of a word of the segment on the device.
  [[nodiscard]] wire::Result<DeviceAddress> WordOnDevice(const wire::Word& word);
  // Waits for what was enqueued and takes the words back from CUDA. Everything it waits for is released
  // already: all tickets are done, or the session is over.
  void Close();
  [[nodiscard]] bool open() const { return base_ != 0; }

 private:
  [[nodiscard]] wire::Status Open();
  [[nodiscard]] DeviceAddress AddressOf(const wire::LineWord& word) const;

  CudaDriver& driver_;
  const int ordinal_;
  const std::string uuid_;
  const wire::SegmentView view_;
  DeviceAddress base_ = 0;  // of the segment, on the device; 0: not known yet
  std::uint64_t last_stream_ = 0;
  std::uint64_t last_ticket_ = 0;
  std::uint64_t last_mark_ = 0;  // what `ready` becomes on that stream
};

}  // namespace bitpager::client
