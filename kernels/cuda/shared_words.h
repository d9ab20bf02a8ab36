// The ranges of memory whose words queues write, and the newest write of each queue to each of them, so that
// a range that goes waits for its own writes alone. No CUDA. The device thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <map>

#include "kernels/device.h"

namespace bitpager::kernels::cuda {

class SharedWords {
 public:
  void Add(const void* at, std::uint64_t bytes) { ranges_[at] = {bytes, {}}; }
  // `event` is behind a write of `word`. Of no range: nothing waits for it.
  void Wrote(const void* word, Event event) {
    auto found = ranges_.upper_bound(word);
    if (found == ranges_.begin()) return;
    --found;
    const auto inside = static_cast<const std::byte*>(word) - static_cast<const std::byte*>(found->first);
    if (static_cast<std::uint64_t>(inside) >= found->second.bytes) return;
    found->second.newest[static_cast<std::size_t>(event.queue)] = event;
  }
  // Forgets the range at `at`; what must be done before its memory may go.
  [[nodiscard]] std::array<Event, kQueues> Take(const void* at) {
    const auto found = ranges_.find(at);
    if (found == ranges_.end()) return {};
    const std::array<Event, kQueues> newest = found->second.newest;
    ranges_.erase(found);
    return newest;
  }

 private:
  struct Range {
    std::uint64_t bytes = 0;
    std::array<Event, kQueues> newest{};
  };
  std::map<const void*, Range, std::less<>> ranges_;
};

}  // namespace bitpager::kernels::cuda
