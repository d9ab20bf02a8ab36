// What the copies of one direction achieve. A copy queue works in order, so from the moment a copy is issued
// to an idle queue until a later one is seen to have ended, its bytes took no longer than that: each such
// stretch gives a speed that the link has at least. The best one is told. Plain members; the dispatcher
// thread.
#pragma once

#include <algorithm>
#include <cstdint>

namespace bitpager::daemon {

class LinkMeter {
 public:
  // Less says more about the calls than about the link, or about caches.
  static constexpr std::uint64_t kLeastBytes = std::uint64_t{8} << 20;

  [[nodiscard]] bool idle() const { return issued_ == ended_; }
  // `now_ns` counts only when idle.
  void Issued(std::uint64_t bytes, std::uint64_t now_ns) {
    if (idle()) {
      begun_ns_ = now_ns;
      issued_ = ended_ = 0;
    }
    issued_ += bytes;
  }
  void Ended(std::uint64_t bytes, std::uint64_t now_ns) {
    ended_ += bytes;
    if (ended_ < kLeastBytes || now_ns <= begun_ns_) return;
    best_ = std::max(best_, static_cast<double>(ended_) * 1e9 / static_cast<double>(now_ns - begun_ns_));
  }
  // 0: not measured yet.
  [[nodiscard]] std::uint64_t bytes_per_s() const { return static_cast<std::uint64_t>(best_); }

 private:
  std::uint64_t begun_ns_ = 0;  // of the stretch
  std::uint64_t issued_ = 0;    // bytes of it
  std::uint64_t ended_ = 0;
  double best_ = 0;
};

}  // namespace bitpager::daemon
