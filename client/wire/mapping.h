// A shared mapping of a memory file, made by Boost.Interprocess over an fd. A forked child does not inherit
// it. The fd may be closed afterwards. Move-only, any thread.
#pragma once

#include <boost/interprocess/mapped_region.hpp>
#include <cstddef>
#include <cstdint>

#include "client/wire/status.h"

namespace bitpager::wire {

enum class MapMode : std::uint8_t { kReadOnly, kReadWrite };

class Mapping {
 public:
  Mapping() = default;
  // Maps the first `bytes` of `fd`. kProtocol: the file is shorter. kOutOfMemory: no address space or memory.
  [[nodiscard]] static Result<Mapping> Map(int fd, std::uint64_t bytes, MapMode mode);

  [[nodiscard]] std::byte* base() const { return static_cast<std::byte*>(region_.get_address()); }
  [[nodiscard]] std::uint64_t bytes() const { return region_.get_size(); }

 private:
  boost::interprocess::mapped_region region_;
};

// The seals of a memory file (fcntl F_GET_SEALS); 0 where there are none.
[[nodiscard]] unsigned SealsOf(int fd);

}  // namespace bitpager::wire
