// The session's staging memory: one sealed buffer, made by the daemon, that holds the table, the gradients
// and the staged tensors of the request in hand. It only grows; growing replaces it, so its content lives for
// one request. One caller at a time (the connection's mutex).
#pragma once

#include <cstdint>

#include "client/socket_calls.h"
#include "client/wire/mapping.h"
#include "client/wire/records.h"
#include "client/wire/status.h"

namespace bitpager::client {

// A piece of the slab: where it is here, and where the daemon finds it.
struct SlabPiece {
  std::byte* at = nullptr;
  wire::Slice slice;
};

class Slab {
 public:
  // Makes room for `bytes`; pieces handed out before end. Errors: kQuotaExceeded, kBudgetExceeded,
  // kOutOfMemory with the daemon's message, or the connection's.
  [[nodiscard]] wire::Status Reserve(SocketCalls& calls, std::uint64_t bytes);
  // The next `bytes` of what was reserved, on a 64-byte border.
  [[nodiscard]] SlabPiece Take(std::uint64_t bytes);
  // Room that `bytes` take.
  [[nodiscard]] static constexpr std::uint64_t Rounded(std::uint64_t bytes) { return (bytes + 63) / 64 * 64; }

  [[nodiscard]] std::uint64_t bytes() const { return mapping_.bytes(); }

 private:
  wire::Status Create(SocketCalls& calls, std::uint64_t bytes);

  wire::Mapping mapping_;
  std::uint64_t buffer_ = 0;
  std::uint64_t taken_bytes_ = 0;
};

// Asks the daemon for a sealed buffer and maps it. Sets `buffer` to its id.
[[nodiscard]] wire::Result<wire::Mapping> MakeBuffer(SocketCalls& calls, std::uint64_t bytes,
                                                     std::uint64_t& buffer);

}  // namespace bitpager::client
