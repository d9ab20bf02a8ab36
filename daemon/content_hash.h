// SHA-256 (FIPS 180-4) of what a quantized weight holds. One thread at a time for each hash.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace bitpager::daemon {

using Digest = std::array<std::uint8_t, 32>;

class ContentHash {
 public:
  ContentHash();
  void Add(std::span<const std::byte> bytes);
  [[nodiscard]] Digest Finish();  // once

 private:
  alignas(8) std::array<std::byte, 128> state_;  // of the library's hash
};

}  // namespace bitpager::daemon
