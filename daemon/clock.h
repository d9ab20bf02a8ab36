// Time as the daemon reads it; tests replace it. Any thread.
#pragma once

#include <chrono>
#include <cstdint>

namespace bitpager::daemon {

class Clock {
 public:
  virtual ~Clock() = default;
  [[nodiscard]] virtual std::uint64_t NowNs() const {
    return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                          std::chrono::steady_clock::now().time_since_epoch())
                                          .count());
  }
};

}  // namespace bitpager::daemon
