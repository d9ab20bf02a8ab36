// Bytes of one fuzz input, read as choices: what runs out reads as zero. One thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace bitpager::testing {

class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

  [[nodiscard]] bool empty() const { return left_ == 0; }
  template <typename T>
  T Take() {
    T value{};
    const std::size_t bytes = sizeof(T) < left_ ? sizeof(T) : left_;
    std::memcpy(&value, data_, bytes);
    data_ += bytes;
    left_ -= bytes;
    return value;
  }
  // Below `end`.
  std::uint64_t Below(std::uint64_t end) { return Take<std::uint16_t>() % end; }
  void Fill(void* to, std::size_t bytes) {
    auto* at = static_cast<std::uint8_t*>(to);
    for (std::size_t i = 0; i < bytes; ++i) at[i] = Take<std::uint8_t>();
  }
  // A number of the kind that breaks checks, or any.
  std::uint64_t Nasty() {
    static constexpr std::array<std::uint64_t, 20> kNasty = {
        0,    1,    2,     3,        7,        8,          63,         64,         255,        256,
        4095, 4096, 65536, 1U << 20, 1U << 31, 0xFFFFFFFF, 1ULL << 32, 1ULL << 48, 1ULL << 63, ~0ULL};
    const std::uint8_t pick = Take<std::uint8_t>();
    if (pick < 192) return kNasty[pick % kNasty.size()] + (pick >= 160 ? ~0ULL : 0);  // or one less
    return Take<std::uint64_t>();
  }
  // Overwrites 1 to `most` fields of `bytes` bytes at `at`, each of 1, 2, 4 or 8 bytes, aligned.
  void Mutate(void* at, std::size_t bytes, std::uint64_t most) {
    auto* base = static_cast<std::uint8_t*>(at);
    for (std::uint64_t count = 1 + Below(most); count > 0; --count) {
      std::size_t width = std::size_t{1} << (Take<std::uint8_t>() % 4);
      if (width > bytes) width = 1;
      const std::size_t offset = Below(bytes / width) * width;
      const std::uint64_t value = Nasty();
      std::memcpy(base + offset, &value, width);
    }
  }

 private:
  const std::uint8_t* data_;
  std::size_t left_;
};

}  // namespace bitpager::testing
