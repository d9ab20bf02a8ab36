// Text in the fixed char arrays of messages and records. The other side may have left out the terminator or
// cut a character: readers are bounded, writers always terminate. Pure functions, any thread.
#pragma once

#include <cstddef>
#include <cstring>
#include <string_view>

namespace bitpager::wire {

// Copies `text` into `to`, terminated and zero-filled. False when it had to be cut (at a UTF-8 border).
template <std::size_t N>
bool CopyText(char (&to)[N], std::string_view text) {
  std::size_t bytes = text.size();
  const bool fits = bytes < N;
  if (!fits) {
    bytes = N - 1;
    while (bytes > 0 && (static_cast<unsigned char>(text[bytes]) & 0xC0U) == 0x80U) --bytes;
  }
  std::memset(to, 0, N);
  if (bytes > 0) std::memcpy(to, text.data(), bytes);
  return fits;
}

// The text up to its terminator, or the whole array where there is none. Views `from`.
template <std::size_t N>
[[nodiscard]] std::string_view TextOf(const char (&from)[N]) {
  return {from, ::strnlen(from, N)};
}

template <std::size_t N>
[[nodiscard]] bool IsTerminated(const char (&from)[N]) {
  return ::strnlen(from, N) < N;
}

// Names of jobs: not empty, [A-Za-z0-9._-] only.
[[nodiscard]] inline bool IsPlainName(std::string_view name) {
  for (const char c : name) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '.' || c == '_' || c == '-';
    if (!plain) return false;
  }
  return !name.empty();
}

}  // namespace bitpager::wire
