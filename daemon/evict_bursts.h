// Pages that are made to leave, told as one event a burst: who lost how much, and why. A job's own streaming
// is no burst. Dispatcher thread.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <utility>

#include "client/wire/ids.h"
#include "daemon/core.h"

namespace bitpager::daemon {

class EvictBursts {
 public:
  explicit EvictBursts(Core& core) : core_(core) {}

  // What the pager has decided at `now_ns`.
  void Note(const paging::Actions& actions, std::uint64_t now_ns);
  // Tells the bursts that are over. Returns how many.
  int Poll(std::uint64_t now_ns);
  [[nodiscard]] std::optional<std::uint64_t> NextDeadlineNs() const;

  // A burst is over when nothing more left for so long, or it has lasted as long as one may.
  static constexpr std::uint64_t kQuietNs = 200'000'000;
  static constexpr std::uint64_t kLongestNs = 5'000'000'000;

 private:
  struct Burst {
    std::uint64_t pages = 0;
    std::uint64_t since_ns = 0;
    std::uint64_t last_ns = 0;
    [[nodiscard]] std::uint64_t EndNs() const {
      return last_ns + kQuietNs < since_ns + kLongestNs ? last_ns + kQuietNs : since_ns + kLongestNs;
    }
  };
  void Note(paging::PageRef page, paging::Reason reason, std::uint64_t now_ns);

  Core& core_;
  std::map<std::pair<wire::JobId, paging::Reason>, Burst> bursts_;
};

}  // namespace bitpager::daemon
