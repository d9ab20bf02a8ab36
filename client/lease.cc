#include "client/lease.h"

#include <string>

namespace bitpager::client {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

Status BadSlot(const std::string& what) {
  return {Code::kProtocol, "the daemon granted a lease whose " + what +
                               ". Hint: check that client and daemon are of one version"};
}

}  // namespace

Status DomainMaps::Map(SocketCalls& calls, std::uint64_t mapping) {
  wire::MapDomainBody body;
  body.mapping = mapping;
  Result<Reply> reply = calls.Ask(wire::MessageType::kMapDomain, body);
  if (!reply.ok()) return reply.status();
  if (reply->packet.fd_count != 1) return BadSlot("frames come without their file");
  Result<wire::Mapping> map =
      wire::Mapping::Map(reply->packet.fds[0].get(), reply->body.values[0], wire::MapMode::kReadOnly);
  if (!map.ok()) return map.status();
  wire::Mapping& place = maps_[mapping];
  if (place.bytes() != 0) replaced_.push_back(std::move(place));
  place = std::move(*map);
  return {};
}

Result<MappedFrame> DomainMaps::AddressOf(SocketCalls& calls, wire::LeaseFrame frame,
                                          std::uint64_t page_bytes) {
  for (int attempt = 0; attempt < 2; ++attempt) {
    const auto at = maps_.find(frame.mapping);
    if (at != maps_.end() && at->second.bytes() >= page_bytes &&
        frame.offset <= at->second.bytes() - page_bytes) {
      return MappedFrame{at->second.base() + frame.offset, nullptr};
    }
    // Not mapped yet, or its file has grown since.
    if (attempt == 0) {
      if (Status mapped = Map(calls, frame.mapping); !mapped.ok()) return mapped;
    }
  }
  return BadSlot("frame lies outside its file (offset " + std::to_string(frame.offset) + ")");
}

namespace {

// The frame table of a lease that is in use, copied once and checked.
Result<std::vector<wire::LeaseFrame>> CopyFrames(wire::SegmentView view, const LeaseGrant& grant) {
  const wire::LeaseSlot& slot = view.leases()[grant.slot];
  // Acquire pairs with the daemon's release of the generation: extent and frames are written before.
  const std::uint64_t generation = slot.generation.load(std::memory_order_acquire);
  const std::uint64_t first = slot.first_frame;
  const std::uint64_t frames = slot.frames;
  if (generation != grant.generation || slot.extent != grant.extent)
    return BadSlot("slot holds another lease");
  if (frames != grant.pages || first >= wire::kLeaseFrames || frames > wire::kLeaseFrames - first) {
    return BadSlot("frame table is impossible: " + std::to_string(frames) + " frames from " +
                   std::to_string(first));
  }
  const wire::LeaseFrame* table = view.lease_frames() + first;
  return std::vector<wire::LeaseFrame>(table, table + frames);
}

}  // namespace

Result<Lease> TakeLease(wire::SegmentView view, SocketCalls& calls, FrameMaps& maps,
                        const LeaseGrant& grant) {
  if (grant.slot >= wire::kLeaseSlots || grant.generation == 0) {
    return BadSlot("slot is number " + std::to_string(grant.slot) + ", generation " +
                   std::to_string(grant.generation));
  }
  Result<std::vector<wire::LeaseFrame>> frames = std::vector<wire::LeaseFrame>();
  {
    const LeaseUse use(view.leases()[grant.slot], grant.generation);
    if (!use.valid()) return Status(Code::kNotResident, "the lease was revoked as soon as it was granted");
    frames = CopyFrames(view, grant);
  }
  if (!frames.ok()) return frames.status();
  Lease lease{static_cast<std::uint32_t>(grant.slot), grant.generation, {}, {}};
  lease.pages.reserve(frames->size());
  for (const wire::LeaseFrame& frame : *frames) {
    Result<MappedFrame> mapped = maps.AddressOf(calls, frame, grant.page_bytes);
    if (!mapped.ok()) return mapped.status();
    lease.pages.push_back(mapped->at);
    const bool held = mapped->hold == nullptr || (!lease.holds.empty() && lease.holds.back() == mapped->hold);
    if (!held) lease.holds.push_back(std::move(mapped->hold));
  }
  return lease;
}

LeaseUse::LeaseUse(wire::LeaseSlot& slot, std::uint64_t generation)
    : slot_(slot), before_(slot.in_use.load(std::memory_order_relaxed)) {
  // Pairs with the daemon's store of `revoke` before its load of `in_use`: at least one sees the other.
  slot_.in_use.store(before_ + 1, std::memory_order_seq_cst);
  valid_ = slot_.revoke.load(std::memory_order_seq_cst) < generation;
}

LeaseUse::~LeaseUse() {
  // Pairs with the daemon's load of `in_use`: all reads of the frames are over.
  slot_.in_use.store(before_, std::memory_order_release);
}

}  // namespace bitpager::client
