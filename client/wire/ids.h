// Identifiers that cannot be mixed up. 0 is never a valid identifier.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace bitpager::wire {

template <typename Tag>
struct Id {
  std::uint64_t value = 0;
  auto operator<=>(const Id&) const = default;
  [[nodiscard]] explicit operator bool() const { return value != 0; }
};

using JobId = Id<struct JobTag>;
using SessionId = Id<struct SessionTag>;
using ExtentId = Id<struct ExtentTag>;
using BufferId = Id<struct BufferTag>;
using RequestId = Id<struct RequestTag>;

struct IdHash {
  template <typename Tag>
  std::size_t operator()(Id<Tag> id) const {
    return std::hash<std::uint64_t>{}(id.value);
  }
};

}  // namespace bitpager::wire
