// Which registered buffer holds a place in GPU memory: a table of intervals, filled at first sight. An
// allocation that was freed may be followed by another one at the same address, so each one's identity is
// looked at once a request. Registrations that requests stopped using are given back. One caller at a time
// (the connection's mutex).
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "client/buffer_source.h"
#include "client/cuda_driver.h"
#include "client/wire/records.h"
#include "client/wire/status.h"

namespace bitpager::client {

// An allocation that none of so many requests used, and none for so long, is given back: a step may be
// hundreds of requests, and an allocation in one of them alone; steps may be minutes apart.
inline constexpr std::uint32_t kUnseenRequests = 32;
inline constexpr std::chrono::seconds kUnseen{20};

// What a request does with a place. Gradients come and go; what else a request names stays.
enum class Use : std::uint8_t { kLasting, kGradient };

class DeviceImports {
 public:
  // Of memory on the device `uuid`, which the driver calls `ordinal`. Both references outlive this.
  DeviceImports(CudaDriver& driver, int ordinal, std::string uuid, BufferSource& source)
      : driver_(driver), ordinal_(ordinal), uuid_(std::move(uuid)), source_(source) {}

  using TimePoint = std::chrono::steady_clock::time_point;
  // Opens a request: identities are to be looked at again. Gives back what requests stopped using.
  // `oldest_open` and `newest`: tickets, as the timeline counts them.
  wire::Status BeginRequest(std::uint64_t oldest_open, std::uint64_t newest, TimePoint now);
  // The place of [at, at + bytes), registered now if it is new. kInvalidArgument: no GPU's memory, or
  // another GPU's; kUnsupported: memory that cannot be passed on; kOutOfRange: more than the allocation has,
  // or more pieces than one message takes.
  wire::Status Resolve(DeviceAddress at, std::uint64_t bytes, Use use, wire::Slice& out);
  // What only gradients used is to be given back. `newest`: the newest ticket; what it may still read goes
  // when it is complete, with GiveBack or the next request.
  void RetireGradients(std::uint64_t newest);
  // Gives back what is to be and no open ticket reads.
  wire::Status GiveBack(std::uint64_t oldest_open);

  [[nodiscard]] std::size_t size() const { return entries_.size(); }
  // Registrations so far: grows when memory is seen for the first time.
  [[nodiscard]] std::uint64_t made() const { return made_; }

 private:
  // A part of an import with an identity of its own: the allocation, or one physical handle.
  struct Piece {
    std::uint64_t id = 0;
    std::uint64_t looked_at = 0;  // request
  };
  struct Entry {
    DeviceAddress begin = 0;
    DeviceAddress end = 0;
    std::uint64_t buffer = 0;
    std::uint64_t piece_bytes = 0;
    TimePoint last_used;
    std::uint64_t last_request = 0;
    bool ipc_capable = true;
    bool only_gradients = true;
    std::vector<Piece> pieces;
  };
  struct Retired {
    std::uint64_t buffer;
    std::uint64_t after;  // ticket
  };

  // Index of the entry that holds the range; -1: none.
  [[nodiscard]] std::ptrdiff_t Find(DeviceAddress at, std::uint64_t bytes);
  [[nodiscard]] bool IsAlive(const Entry& entry) const;
  // All pieces under the range are what was registered.
  [[nodiscard]] bool StillThere(Entry& entry, DeviceAddress at, std::uint64_t bytes);
  void Retire(std::size_t index, std::uint64_t after);
  wire::Status Import(DeviceAddress at, std::uint64_t bytes, std::size_t& index);
  wire::Status ImportAllocation(const DeviceAllocation& found, Entry& entry);
  wire::Status ImportMapped(const DeviceAllocation& found, DeviceAddress at, std::uint64_t bytes,
                            Entry& entry);
  std::size_t Insert(Entry entry);
  wire::Status CheckPlace(const DeviceAllocation& found, DeviceAddress at) const;

  CudaDriver& driver_;
  const int ordinal_;
  const std::string uuid_;
  BufferSource& source_;
  std::vector<Entry> entries_;  // by begin
  std::vector<Retired> retired_;
  std::size_t last_hit_ = 0;
  std::uint64_t request_ = 0;
  std::uint64_t newest_ = 0;  // ticket before this request
  TimePoint now_;             // of this request
  TimePoint next_look_;       // for what requests stopped using
  std::uint64_t made_ = 0;
};

}  // namespace bitpager::client
