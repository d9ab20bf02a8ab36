// Room for the tables of requests that nobody waits for: pieces of one sealed buffer, in a ring, each kept
// until its ticket is complete. Grows by taking a larger buffer. One caller at a time (the connection's
// mutex).
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "client/buffer_source.h"
#include "client/slab.h"
#include "client/wire/mapping.h"
#include "client/wire/status.h"

namespace bitpager::client {

class TableRing {
 public:
  explicit TableRing(BufferSource& source) : source_(source) {}

  // `bytes` for the request that will be `ticket`; every ticket below `oldest_open` is complete. kFull: the
  // ring is as large as it gets for such tables, wait for a ticket. Errors of the daemon otherwise.
  [[nodiscard]] wire::Result<SlabPiece> Take(std::uint64_t bytes, std::uint64_t ticket,
                                             std::uint64_t oldest_open);
  // The ticket to wait for when it is full.
  [[nodiscard]] std::uint64_t oldest_ticket() const { return used_.empty() ? 0 : used_.front().ticket; }
  [[nodiscard]] std::uint64_t bytes() const { return mapping_.bytes(); }

 private:
  struct Used {
    std::uint64_t begin;
    std::uint64_t end;
    std::uint64_t ticket;
  };
  struct Retired {
    wire::Mapping mapping;
    std::uint64_t buffer;
    std::uint64_t after;  // ticket
  };

  wire::Status Reclaim(std::uint64_t oldest_open);
  // Where `bytes` fit; ~0: nowhere.
  [[nodiscard]] std::uint64_t PlaceFor(std::uint64_t bytes) const;
  wire::Status Grow(std::uint64_t bytes);

  BufferSource& source_;
  wire::Mapping mapping_;
  std::uint64_t buffer_ = 0;
  std::deque<Used> used_;  // in ticket order
  std::vector<Retired> retired_;
};

}  // namespace bitpager::client
