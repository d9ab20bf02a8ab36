// Reading leased weights in place: the mappings of share domains, and the protocol of a lease slot. Trusts
// nothing that it reads in the segment. One caller at a time (the connection's mutex).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "client/socket_calls.h"
#include "client/wire/mapping.h"
#include "client/wire/segment.h"
#include "client/wire/status.h"

namespace bitpager::client {

// Where a leased page lies here, and what keeps it mapped; null: as long as the session.
struct MappedFrame {
  const std::byte* at = nullptr;
  std::shared_ptr<const void> hold;
};

// The mappings through which leased frames are read.
class FrameMaps {
 public:
  virtual ~FrameMaps() = default;
  // The place of `frame`, whose page has `page_bytes`.
  [[nodiscard]] virtual wire::Result<MappedFrame> AddressOf(SocketCalls& calls, wire::LeaseFrame frame,
                                                            std::uint64_t page_bytes) = 0;
};

// Read-only mappings of share domains in host memory, each made once. A mapping that was replaced by a longer
// one stays: leases may still point into it.
class DomainMaps final : public FrameMaps {
 public:
  [[nodiscard]] wire::Result<MappedFrame> AddressOf(SocketCalls& calls, wire::LeaseFrame frame,
                                                    std::uint64_t page_bytes) override;

 private:
  wire::Status Map(SocketCalls& calls, std::uint64_t mapping);

  std::map<std::uint64_t, wire::Mapping> maps_;
  std::vector<wire::Mapping> replaced_;
};

// A granted lease: the pages of one weight, until revoked.
struct Lease {
  std::uint32_t slot = 0;
  std::uint64_t generation = 0;
  std::vector<const std::byte*> pages;
  std::vector<std::shared_ptr<const void>> holds;  // of the mappings that the pages lie in
};

// Reads what the daemon wrote at a granted lease. `extent` and `pages` are what this side knows of the
// weight; anything else in the slot is kProtocol. kNotResident: revoked already.
struct LeaseGrant {
  std::uint64_t slot = 0;
  std::uint64_t generation = 0;
  std::uint64_t extent = 0;
  std::uint64_t pages = 0;
  std::uint64_t page_bytes = 0;
};
[[nodiscard]] wire::Result<Lease> TakeLease(wire::SegmentView view, SocketCalls& calls, FrameMaps& maps,
                                            const LeaseGrant& grant);

// A use of the lease by the processor, for its lifetime. valid() false: it was revoked, and nothing may be
// read.
class LeaseUse {
 public:
  LeaseUse(wire::LeaseSlot& slot, std::uint64_t generation);
  ~LeaseUse();
  LeaseUse(const LeaseUse&) = delete;
  LeaseUse& operator=(const LeaseUse&) = delete;
  [[nodiscard]] bool valid() const { return valid_; }

 private:
  wire::LeaseSlot& slot_;
  const std::uint64_t before_;
  bool valid_;
};

}  // namespace bitpager::client
