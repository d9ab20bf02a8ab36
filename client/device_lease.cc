#include "client/device_lease.h"

#include <chrono>
#include <string>
#include <thread>

#include "client/wire/messages.h"

namespace bitpager::client {

using wire::Code;
using wire::Result;
using wire::Status;

// One mapped segment. Whoever lets go last has no kernel on it any more.
class DeviceMaps::Range {
 public:
  Range(CudaDriver& driver, DeviceRange range) : driver_(driver), range_(range) {}
  ~Range() { driver_.UnmapShared(range_); }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
  [[nodiscard]] const DeviceRange& range() const { return range_; }

 private:
  CudaDriver& driver_;
  const DeviceRange range_;
};

Result<std::shared_ptr<DeviceMaps::Range>> DeviceMaps::Map(SocketCalls& calls, std::uint64_t mapping) {
  wire::MapDomainBody body;
  body.mapping = mapping;
  Result<Reply> reply = calls.Ask(wire::MessageType::kMapDomain, body);
  if (!reply.ok()) return reply.status();
  if (reply->packet.fd_count != 1) {
    return Status(Code::kProtocol, "frames of the GPU come without a descriptor");
  }
  const Result<DeviceRange> range =
      driver_.MapShared(reply->packet.fds[0].get(), reply->body.values[0], ordinal_);
  if (!range.ok()) return range.status();
  return std::make_shared<Range>(driver_, *range);
}

Result<MappedFrame> DeviceMaps::AddressOf(SocketCalls& calls, wire::LeaseFrame frame,
                                          std::uint64_t page_bytes) {
  std::shared_ptr<Range> range = ranges_[frame.mapping].lock();
  if (range == nullptr) {
    std::erase_if(ranges_, [](const auto& entry) { return entry.second.expired(); });
    Result<std::shared_ptr<Range>> made = Map(calls, frame.mapping);
    if (!made.ok()) return made.status();
    range = std::move(*made);
    ranges_[frame.mapping] = range;
  }
  const DeviceRange& place = range->range();
  if (place.bytes < page_bytes || frame.offset > place.bytes - page_bytes) {
    return Status(Code::kProtocol,
                  "the daemon granted a lease whose frame lies outside its segment (offset " +
                      std::to_string(frame.offset) + ")");
  }
  return MappedFrame{reinterpret_cast<const std::byte*>(place.at + frame.offset), std::move(range)};
}

Result<bool> StreamUses::Begin(StreamHandle stream) {
  const std::uint64_t id = driver_.StreamId(stream);
  const std::uint64_t last = slot_.in_use.load(std::memory_order_relaxed);
  if (id != last_stream_ && !over()) {
    if (Status waits = driver_.WaitWord(stream, ended_, last); !waits.ok()) return waits;
  }
  // Pairs with the daemon's store of `revoke` before its load of `in_use`: at least one sees the other.
  slot_.in_use.store(last + 1, std::memory_order_seq_cst);
  if (revoked()) {
    slot_.in_use.store(last, std::memory_order_release);
    return false;
  }
  last_stream_ = id;
  return true;
}

Status StreamUses::End(StreamHandle stream) {
  return driver_.WriteWord(stream, ended_, slot_.in_use.load(std::memory_order_relaxed));
}

bool StreamUses::revoked() const {
  return slot_.revoke.load(std::memory_order_seq_cst) >= generation_;
}

bool StreamUses::over() const {
  // Acquire pairs with the stream's write behind the kernels.
  return slot_.ended.load(std::memory_order_acquire) == slot_.in_use.load(std::memory_order_relaxed);
}

bool StreamUses::AwaitOver(int limit_ms) const {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(limit_ms);
  while (!over()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  return true;
}

}  // namespace bitpager::client
