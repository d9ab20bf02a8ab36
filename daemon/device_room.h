// The device's memory over time: segments that nobody needs any more go back to the system a little after
// they came free, and memory that the device refused is asked for again, less and less often. Decides when;
// the pager decides what. Dispatcher thread.
#pragma once

#include <cstdint>
#include <optional>

#include "paging/pager.h"

namespace bitpager::daemon {

class DeviceRoom {
 public:
  explicit DeviceRoom(paging::Pager& pager) : pager_(pager), wanted_frames_(pager.config().device_frames) {}

  // Extents or jobs ended at `now_ns`.
  void Freed(std::uint64_t now_ns);
  // The device refused a segment: the pager does with what exists.
  void Refused(std::uint64_t now_ns);
  // Asks for the whole budget again at once: a request cannot be served without.
  void AskAgain();
  // Another budget than configured, until the next: kBudgetExceeded under what every job's least needs.
  [[nodiscard]] wire::Status SetWanted(std::uint64_t frames);
  // Does what is due. True when the pager has something new to decide.
  [[nodiscard]] bool Poll(std::uint64_t now_ns);
  [[nodiscard]] std::optional<std::uint64_t> NextDeadlineNs() const;

  // Long enough that a job which comes right after another finds the segments there.
  static constexpr std::uint64_t kUnusedNs = 2'000'000'000;
  static constexpr std::uint64_t kFirstRetryNs = 1'000'000'000;
  static constexpr std::uint64_t kLongestRetryNs = 60'000'000'000;

 private:
  paging::Pager& pager_;
  std::uint64_t wanted_frames_;
  std::uint64_t give_back_ns_ = 0;  // 0: nothing came free
  std::uint64_t retry_ns_ = 0;      // 0: nothing was refused, or it was asked for again
  std::uint64_t wait_ns_ = kFirstRetryNs;
  std::uint64_t refused_ns_ = 0;
};

}  // namespace bitpager::daemon
