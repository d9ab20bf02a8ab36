// What the parts of a session ask of the daemon about memory: sealed buffers, and registrations of the
// client's own. Implemented by the connection over its socket; tests give their own. One caller at a time.
#pragma once

#include <cstdint>
#include <span>

#include "client/wire/mapping.h"
#include "client/wire/messages.h"
#include "client/wire/status.h"

namespace bitpager::client {

class BufferSource {
 public:
  virtual ~BufferSource() = default;
  // A sealed buffer made by the daemon, mapped here; sets `id`.
  [[nodiscard]] virtual wire::Result<wire::Mapping> Make(std::uint64_t bytes, std::uint64_t& id) = 0;
  // Registers memory that `body` and `fds` describe; its id.
  [[nodiscard]] virtual wire::Result<std::uint64_t> Register(const wire::RegisterBufferBody& body,
                                                             std::span<const int> fds) = 0;
  [[nodiscard]] virtual wire::Status Release(std::uint64_t buffer) = 0;
};

}  // namespace bitpager::client
