// A job's requests and counts, as the pager keeps them. Dispatcher thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "paging/eviction_order.h"
#include "paging/page.h"
#include "paging/pager.h"

namespace bitpager::paging {

// A place in a request's ranges.
struct Cursor {
  std::size_t range = 0;
  std::uint64_t offset = 0;
};

// Pages of one run: acquired whole (every page held, and resident or promised a frame), then run, then let
// go.
struct Window {
  std::uint64_t number = 0;
  std::vector<Page*> pages;  // all of one pool
  Cursor start;              // where the request goes back to when the window is given up before it runs
  std::size_t arrived = 0;   // pages before this one are known to be resident
  bool missing = false;      // needed frames when it was acquired
  bool handed_out = false;
};

struct Request {
  wire::RequestId id;
  Job* job = nullptr;  // in whose queue it is
  Job* by = nullptr;   // who asked; null: it is gone
  RequestSpec spec;
  std::vector<Extent*> extents;  // of each range; valid while the cursor is not at the end
  Cursor cursor;                 // first page not in any window yet
  std::deque<Window> windows;    // by number; those handed out first
  std::size_t handed_out = 0;    // so many of them
  std::uint64_t next_window = 0;
  std::uint64_t in_flight = 0;          // pages of all windows that count as streaming
  std::uint64_t windows_in_flight = 0;  // those windows
  std::vector<Page*> coming;            // prefetch: claimed or loading for it
  std::uint64_t born = 0;               // prefetch of the pager's own: the decision that made it
  bool of_weight = false;               // one of those, of the weight that is read next
  std::uint64_t visited = 0;            // pages handed out
  std::uint64_t decided = 0;            // the last decision on it
  std::uint64_t visited_before = 0;     // pages handed out before that one
  bool whole = false;                   // its windows are acquired together and handed out together
  bool lacked = false;                  // pages were missing when their window was acquired
  bool started = false;
  bool cancelled = false;
  bool alone = false;  // what a command sent away while it ran does not come back behind it

  [[nodiscard]] bool is_sure_hint() const { return spec.prefetch && spec.sure; }
  [[nodiscard]] bool at_end() const { return cursor.range >= spec.ranges.size(); }
  void SkipEmptyRanges() {
    while (!at_end() && cursor.offset >= spec.ranges[cursor.range].count) cursor = {cursor.range + 1, 0};
  }
  void Advance() {
    ++cursor.offset;
    SkipEmptyRanges();
  }
};

// Extent and first page of what a request names first.
using PartKey = std::pair<std::uint64_t, std::uint64_t>;

struct Job {
  wire::JobId id;
  JobSpec spec;
  bool base = false;     // holds what several jobs of a domain share; nobody's by name
  bool closing = false;  // removed; lives until its zombies' frames are free
  std::vector<Extent*> extents;
  std::uint64_t uses = 0;      // of extents that a base holds
  std::deque<Request*> queue;  // front: the one that may run

  // Evictable pages and their frames.
  std::uint64_t pages = 0;
  std::vector<std::uint64_t> pages_in;  // by pool
  std::uint64_t frames = 0;             // held: Loading, Resident, Evicting
  std::uint64_t leaving = 0;            // of those, Evicting and not to stay
  std::uint64_t claims = 0;             // frames promised
  std::uint64_t held = 0;               // pages with holds
  std::uint64_t leased = 0;             // pages of leased extents
  std::uint64_t overdue = 0;            // of those, pages whose holders do not let go
  std::uint64_t dirty = 0;
  std::uint64_t share = 0;
  double weight = 1.0;                 // of what it holds itself: the rest of spec.weight is lent to bases
  std::uint64_t cap = ~0ULL;           // frames that its evictable pages may hold at most, by quota; likewise
  std::vector<EvictionOrder> victims;  // by pool
  // Pages that never leave.
  std::uint64_t fixed_pages = 0;
  std::uint64_t fixed_frames = 0;
  std::uint64_t fixed_dirty = 0;

  JobClock clock;
  // See Pager::Impl::Spread: of `groups` windows' pages, `streaming` come and go each step, so that
  // `streams_wanted` pages do.
  std::uint64_t groups = 0;
  std::uint64_t streams_wanted = 0;
  std::uint64_t streams_from = 0;  // shifts which groups those are
  std::uint64_t streaming = 0;
  bool prepared = false;  // the first of them came behind the last step that lacked any
  // What was stepped after a part of the job's states, by the part's first page: see Pager::Impl::Learn.
  std::map<PartKey, std::vector<PageRange>> after;
  PartKey last_part{};  // stepped last; extent 0: none
  // Which weight was read after two others: see Pager::Impl::LearnRead. 0: none.
  struct Next {
    PageRange read;
    bool again = false;  // it was that twice running
  };
  std::map<std::pair<std::uint64_t, std::uint64_t>, Next> read_after;
  std::pair<std::uint64_t, std::uint64_t> last_read{};
  std::uint64_t waiting_since =
      0;                       // decision count at which its first window found no frames; 0: it does not
  std::uint64_t to_evict = 0;  // pages that a command wants out
  Reason evict_reason = Reason::kCommand;

  std::uint64_t host_frames = 0;
  std::uint64_t disk_frames = 0;
  std::uint64_t frames_by_kind[2] = {0, 0};
  std::uint64_t pages_by_kind[2] = {0, 0};
  std::uint64_t host_by_kind[2] = {0, 0};
  std::uint64_t disk_by_kind[2] = {0, 0};
  // Its parts of what bases hold.
  std::uint64_t lent_frames = 0;
  std::uint64_t lent_host_frames = 0;
  // The most since ResetPeaks, as every Pump, admission and change of users left it.
  std::uint64_t peak_frames = 0;
  std::uint64_t peak_before = 0;  // likewise without the last Pump, which a refused segment takes back
  std::uint64_t peak_host_frames = 0;
  Traffic traffic;
  Traffic charged;         // of bases: told of the job that has used an extent longest
  std::int64_t moved = 0;  // frames that came with extents from other jobs, less those that went

  // On the device and committed in host memory: what it answers for.
  [[nodiscard]] std::uint64_t Resident() const { return frames + fixed_frames + lent_frames; }
  [[nodiscard]] std::uint64_t OnHost() const { return host_frames + lent_host_frames; }
  // Frames that its evictable pages may have: of them, those that no lease holds.
  [[nodiscard]] std::uint64_t Limit() const { return std::min(share, cap); }
  [[nodiscard]] std::uint64_t Unleased() const { return Limit() - std::min(Limit(), leased); }
  // Frames that it has or will have once every claim and every eviction under way is settled.
  [[nodiscard]] std::uint64_t Settled() const { return frames - leaving + claims; }
  [[nodiscard]] std::uint64_t Listed() const {
    std::uint64_t sum = 0;
    for (const EvictionOrder& order : victims) sum += order.size();
    return sum;
  }
  [[nodiscard]] bool Mixed() const { return dirty > 0 && dirty < frames; }
};

}  // namespace bitpager::paging
