// Reading leased weights in place from a GPU's streams: mappings of the daemon's exported frames, and uses of
// a lease that streams end. Trusts nothing that it reads in the segment. One caller at a time (the
// connection's mutex); the device's context is current.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "client/cuda_driver.h"
#include "client/lease.h"
#include "client/wire/segment.h"
#include "client/wire/status.h"

namespace bitpager::client {

// Mappings of exported segments. One lasts as long as a lease that reads it, so that the daemon can give the
// memory back.
class DeviceMaps final : public FrameMaps {
 public:
  // `driver` outlives this and every hold.
  DeviceMaps(CudaDriver& driver, int ordinal) : driver_(driver), ordinal_(ordinal) {}
  [[nodiscard]] wire::Result<MappedFrame> AddressOf(SocketCalls& calls, wire::LeaseFrame frame,
                                                    std::uint64_t page_bytes) override;

 private:
  class Range;
  [[nodiscard]] wire::Result<std::shared_ptr<Range>> Map(SocketCalls& calls, std::uint64_t mapping);

  CudaDriver& driver_;
  const int ordinal_;
  std::map<std::uint64_t, std::weak_ptr<Range>> ranges_;
};

// Uses of one lease's frames by kernels. Begin, launch on the stream, End; uses follow one another even when
// they come from several streams.
class StreamUses {
 public:
  // `slot` is the lease's; its words lie at `ended` for the device.
  StreamUses(CudaDriver& driver, wire::LeaseSlot& slot, std::uint64_t generation, DeviceAddress ended)
      : driver_(driver), slot_(slot), generation_(generation), ended_(ended) {}

  // False: the lease was revoked, and nothing may be read. An error: nothing was begun.
  [[nodiscard]] wire::Result<bool> Begin(StreamHandle stream);
  // Behind what the stream holds now. When it fails the frames count as used for good.
  [[nodiscard]] wire::Status End(StreamHandle stream);
  [[nodiscard]] bool revoked() const;
  // No kernel reads the frames any more.
  [[nodiscard]] bool over() const;
  // Waits until then; false when it takes longer than `limit_ms`.
  [[nodiscard]] bool AwaitOver(int limit_ms) const;

 private:
  CudaDriver& driver_;
  wire::LeaseSlot& slot_;
  const std::uint64_t generation_;
  const DeviceAddress ended_;
  std::uint64_t last_stream_ = 0;
};

}  // namespace bitpager::client
