// A clock that stands still until a test moves it, or goes a little with each look. One thread.
#pragma once

#include <cstdint>

#include "daemon/core.h"

namespace bitpager::testing {

class FakeClock final : public daemon::Clock {
 public:
  [[nodiscard]] std::uint64_t NowNs() const override { return now_ns_ += tick_ns; }
  void AdvanceMs(std::uint64_t ms) { now_ns_ += ms * 1'000'000; }

  std::uint64_t tick_ns = 0;  // for loops that wait for time to pass

 private:
  mutable std::uint64_t now_ns_ = 1'000'000'000;
};

}  // namespace bitpager::testing
