// A shared mapping of a memory file, made by Boost.Interprocess over an fd. A forked child does not inherit
// it. The fd may be closed afterwards. Move-only, any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "client/wire/status.h"

namespace boost::interprocess {
class mapped_region;
}

namespace bitpager::wire {

enum class MapMode : std::uint8_t { kReadOnly, kReadWrite };

class Mapping {
 public:
  Mapping();
  ~Mapping();
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  // Maps the first `bytes` of `fd`. kProtocol: the file is shorter. kOutOfMemory: no address space or memory.
  [[nodiscard]] static Result<Mapping> Map(int fd, std::uint64_t bytes, MapMode mode);

  [[nodiscard]] std::byte* base() const { return base_; }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }

 private:
  explicit Mapping(std::unique_ptr<boost::interprocess::mapped_region> region);

  // Behind a pointer, so that users of the client's headers need no Boost.
  std::unique_ptr<boost::interprocess::mapped_region> region_;
  std::byte* base_ = nullptr;
  std::uint64_t bytes_ = 0;
};

// The seals of a memory file (fcntl F_GET_SEALS); 0 where there are none.
[[nodiscard]] unsigned SealsOf(int fd);

}  // namespace bitpager::wire
