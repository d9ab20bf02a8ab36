#include "client/table_ring.h"

#include <algorithm>

namespace bitpager::client {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

constexpr std::uint64_t kLeastBytes = 1U << 20;
constexpr std::uint64_t kNowhere = ~0ULL;
// Tables of the largest size so far that find room side by side: further ahead than that, callers wait.
constexpr std::uint64_t kTables = 8;

}  // namespace

Status TableRing::Reclaim(std::uint64_t oldest_open) {
  while (!used_.empty() && used_.front().ticket < oldest_open) used_.pop_front();
  while (!retired_.empty() && retired_.front().after < oldest_open) {
    const std::uint64_t buffer = retired_.front().buffer;
    retired_.erase(retired_.begin());
    if (Status released = source_.Release(buffer); !released.ok()) return released;
  }
  return {};
}

std::uint64_t TableRing::PlaceFor(std::uint64_t bytes) const {
  const std::uint64_t capacity = mapping_.bytes();
  if (used_.empty()) return bytes <= capacity ? 0 : kNowhere;
  const std::uint64_t first = used_.front().begin;
  const std::uint64_t next = used_.back().end;
  if (next > first) {
    if (bytes <= capacity - next) return next;
    return bytes <= first ? 0 : kNowhere;
  }
  return bytes <= first - next ? next : kNowhere;
}

Status TableRing::Grow(std::uint64_t bytes) {
  std::uint64_t id = 0;
  const std::uint64_t wanted = (bytes * kTables + kLeastBytes - 1) / kLeastBytes * kLeastBytes;
  Result<wire::Mapping> made = source_.Make(wanted, id);
  if (!made.ok()) return made.status();
  if (buffer_ != 0) {
    const std::uint64_t after = used_.empty() ? 0 : used_.back().ticket;
    retired_.push_back({std::move(mapping_), buffer_, after});
  }
  used_.clear();
  mapping_ = std::move(*made);
  buffer_ = id;
  return {};
}

Result<SlabPiece> TableRing::Take(std::uint64_t bytes, std::uint64_t ticket, std::uint64_t oldest_open) {
  const std::uint64_t rounded = std::max<std::uint64_t>(Slab::Rounded(bytes), 64);
  if (Status reclaimed = Reclaim(oldest_open); !reclaimed.ok()) return reclaimed;
  std::uint64_t at = PlaceFor(rounded);
  if (at == kNowhere && rounded * kTables > mapping_.bytes()) {
    if (Status grown = Grow(rounded); !grown.ok()) return grown;
    at = 0;
  }
  if (at == kNowhere) return Status(Code::kFull, "the ring of tables is full");
  used_.push_back({at, at + rounded, ticket});
  return SlabPiece{mapping_.base() + at, {buffer_, at}};
}

}  // namespace bitpager::client
