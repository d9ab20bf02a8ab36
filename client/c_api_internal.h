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

// Structs only grow at their end. `least_bytes` is the first version's size, the current one's its sizeof: a
// caller passes one of both, and what the first lacks stays as it is in `to`. A caller built against a later
// version may pass a longer one, whose additional fields must then be zero (not used).
template <typename T>
wire::Status CopyIn(const T* from, T& to, const char* name, std::size_t least_bytes = sizeof(T)) {
  static_assert(std::is_trivially_copyable_v<T>);
  if (from == nullptr) return InvalidArgument(std::string(name) + " is NULL");
  std::uint32_t bytes = 0;
  std::memcpy(&bytes, from, sizeof(bytes));
  if ((bytes < sizeof(T) && bytes != least_bytes) || bytes > 4096) {
    return InvalidArgument(std::string(name) + " says struct_bytes " + std::to_string(bytes) +
                           "; set it to sizeof(" + name + "), " + std::to_string(sizeof(T)) + " here");
  }
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

// Fills what the caller's struct has room for; its struct_bytes stays. older_bytes: what it was before it
// grew.
template <typename T>
wire::Status CopyOut(const T& from, T* to, const char* name,
                     std::initializer_list<std::size_t> older_bytes = {}) {
  static_assert(std::is_trivially_copyable_v<T>);
  if (to == nullptr) return InvalidArgument(std::string(name) + " is NULL");
  std::uint32_t bytes = 0;
  std::memcpy(&bytes, to, sizeof(bytes));
  const bool older = std::find(older_bytes.begin(), older_bytes.end(), bytes) != older_bytes.end();
  if ((bytes < sizeof(T) && !older) || bytes > 4096) {
    return InvalidArgument(std::string(name) + " says struct_bytes " + std::to_string(bytes) +
                           "; set it to sizeof(" + name + "), " + std::to_string(sizeof(T)) + " here");
  }
  const std::size_t room = bytes < sizeof(T) ? bytes : sizeof(T);
  std::memcpy(reinterpret_cast<char*>(to) + sizeof(bytes),
              reinterpret_cast<const char*>(&from) + sizeof(bytes), room - sizeof(bytes));
  return {};
}

}  // namespace bitpager::client::internal
