// When one page was used, and the guess of when it will be used next. Pure; any thread, no sharing.
#pragma once

#include <array>
#include <cstdint>

namespace bitpager::paging {

// The last gaps between uses, in visits of the page's job. Training repeats itself: an optimizer arena is
// visited in the same order each step (one constant gap), weights forward and backward (two alternating
// gaps), forward, again and backward under gradient checkpointing (three). So the next gap is guessed to be
// the one `period` uses ago, for the period from 1 to 4 that would have guessed the known gaps best.
class GapHistory {
 public:
  static constexpr std::uint32_t kGaps = 8;
  static constexpr std::uint32_t kPeriods = 4;

  void Record(std::uint64_t gap);
  [[nodiscard]] bool empty() const { return count_ == 0; }
  // The next gap; only when not empty.
  [[nodiscard]] std::uint64_t Predict() const;

 private:
  // The gap `ago` uses back; 0 is the latest.
  [[nodiscard]] std::uint32_t Gap(std::uint32_t ago) const { return gaps_[(next_ - 1 - ago) % kGaps]; }
  [[nodiscard]] double ErrorOf(std::uint32_t period) const;

  std::array<std::uint32_t, kGaps> gaps_{};
  std::uint8_t next_ = 0;   // where the next gap goes, modulo kGaps
  std::uint8_t count_ = 0;  // known gaps, at most kGaps
};

}  // namespace bitpager::paging
