// The frames of one tier below the device, host memory or disk: which numbers are free. Dispatcher thread.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "paging/pager.h"

namespace bitpager::paging {

// Hands out host frames in runs as long as possible, so that the frames of a window lie side by side and
// move in one copy.
class HostFrames {
 public:
  // Numbers [first, first + frames).
  explicit HostFrames(std::uint64_t frames, std::uint64_t first = 0);
  // `count` <= free() frames: the smallest free run that holds them all, or else the longest runs.
  [[nodiscard]] std::vector<HostRun> Take(std::uint64_t count);
  void Give(const std::vector<HostRun>& runs);
  [[nodiscard]] std::uint64_t free() const { return free_; }
  [[nodiscard]] std::uint64_t total() const { return total_; }

 private:
  [[nodiscard]] std::map<std::uint64_t, std::uint64_t>::iterator Choose(std::uint64_t count);
  void GiveRun(HostRun run);

  std::uint64_t total_;
  std::uint64_t free_;
  std::map<std::uint64_t, std::uint64_t> runs_;  // first -> count of each free run; no two touch
};

}  // namespace bitpager::paging
