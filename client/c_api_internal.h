// What the files of the C ABI share: the per-thread error text, the exception border, structs that say their
// own size.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <new>
#include <string>
#include <type_traits>
#include <utility>

#include "client/wire/status.h"

namespace bitpager::client::internal {

// Sets this thread's error text and returns the code. Ok clears it.
int Record(const wire::Status& status) noexcept;
int RecordText(wire::Code code, const char* text) noexcept;

// Runs `call`, which returns a Status; no exception passes.
template <typename Call>
int Guarded(Call&& call) noexcept {
  try {
    return Record(std::forward<Call>(call)());
  } catch (const std::bad_alloc&) {
    return RecordText(wire::Code::kOutOfMemory, "this process is out of memory");
  } catch (const std::exception& error) {
    return RecordText(wire::Code::kInternal, error.what());
  }
}

inline wire::Status InvalidArgument(std::string what) {
  return {wire::Code::kInvalidArgument, std::move(what)};
}

// The sizes that a struct had before it grew; structs only grow at their end.
using OlderBytes = std::initializer_list<std::size_t>;

// What the caller's struct says of its size, into `bytes`: the present one, an older one, or a later one's.
template <typename T>
wire::Status ReadSize(const T* at, const char* name, OlderBytes older, std::uint32_t& bytes) {
  static_assert(std::is_trivially_copyable_v<T>);
  if (at == nullptr) return InvalidArgument(std::string(name) + " is NULL");
  std::memcpy(&bytes, at, sizeof(bytes));
  const bool known = bytes >= sizeof(T) || std::find(older.begin(), older.end(), bytes) != older.end();
  if (known && bytes <= 4096) return {};
  return InvalidArgument(std::string(name) + " says struct_bytes " + std::to_string(bytes) +
                         "; set it to sizeof(" + name + "), " + std::to_string(sizeof(T)) + " here");
}

// What an older struct lacks stays as it is in `to`. A caller built against a later version may pass a longer
// one, whose additional fields must then be zero (not used).
template <typename T>
wire::Status CopyIn(const T* from, T& to, const char* name, OlderBytes older = {}) {
  std::uint32_t bytes = 0;
  if (wire::Status known = ReadSize(from, name, older, bytes); !known.ok()) return known;
  const auto* raw = reinterpret_cast<const unsigned char*>(from);
  for (std::size_t i = sizeof(T); i < bytes; ++i) {
    if (raw[i] != 0) {
      return {wire::Code::kUnsupported, std::string(name) +
                                            " uses fields that this library does not know. "
                                            "Hint: install a newer bitpager"};
    }
  }
  std::memcpy(&to, from, bytes < sizeof(T) ? bytes : sizeof(T));
  return {};
}

// Fills what the caller's struct has room for; its struct_bytes stays.
template <typename T>
wire::Status CopyOut(const T& from, T* to, const char* name, OlderBytes older = {}) {
  std::uint32_t bytes = 0;
  if (wire::Status known = ReadSize(to, name, older, bytes); !known.ok()) return known;
  const std::size_t room = bytes < sizeof(T) ? bytes : sizeof(T);
  std::memcpy(reinterpret_cast<char*>(to) + sizeof(bytes),
              reinterpret_cast<const char*>(&from) + sizeof(bytes), room - sizeof(bytes));
  return {};
}

}  // namespace bitpager::client::internal
