// The page table's entries: pages and the extents that hold them. Dispatcher thread.
#pragma once

#include <cstdint>
#include <vector>

#include "paging/history.h"
#include "paging/host_frames.h"
#include "paging/pager.h"

namespace bitpager::paging {

struct Job;
struct Extent;

using PoolId = std::uint32_t;
inline constexpr std::uint32_t kNone = ~0U;

struct Page {
  Extent* extent = nullptr;
  std::uint32_t index = 0;
  std::uint32_t frame = kNone;       // global number: segment * segment_frames + slot; kNone while HostOnly
  std::uint64_t host_frame = ~0ULL;  // ~0 in extents that are not evictable
  std::uint64_t last_use = 0;        // the job's clock at the last visit; 0: never visited
  std::uint64_t arrived = 0;         // the job's clock when the page was last given a frame
  GapHistory history;
  std::uint32_t holds = 0;    // windows that need it; held pages are never victims
  std::uint32_t version = 0;  // grows whenever it enters or leaves the victims; older heap entries are stale
  std::uint32_t mark = 0;     // of the window being cut: finds a page that occurs twice
  PageState state = PageState::kHostOnly;
  Reason reason = Reason::kDemand;  // of the last load or eviction
  bool dirty = false;               // the device copy is newer
  bool zero = true;                 // never written: no copy of it exists anywhere
  bool undefined = false;  // its frame's content means nothing: to be overwritten by the window that holds it
  bool claimed = false;    // waits for a frame (or to leave its present one first)
  bool rescued = false;    // Evicting, but stays in its frame when the store is done
  bool listed = false;     // may be a victim now
  bool streams = false;    // comes and goes each step, see Pager::Impl::Spread
  bool referenced = false;  // clock policy's bit
};

struct Extent {
  wire::ExtentId id;
  Job* job = nullptr;
  ExtentSpec spec;
  PoolId pool = kNone;
  std::vector<Page> pages;  // never resized: pages are pointed at
  std::vector<HostRun> host;
  std::vector<Job*> users;   // one for each use, oldest first; all are `job` unless that is a base
  std::uint64_t framed = 0;  // pages that have a frame
  std::uint64_t dirty = 0;   // pages whose device copy is newer
  std::uint64_t leased_at = 0;
  bool leased = false;
  bool revoking = false;  // a RevokeAction is out
  bool overdue = false;   // and its holders do not let go: its frames are nobody's to give
  bool zombie = false;    // removed, but frames are still in use
};

[[nodiscard]] inline PageRef RefOf(const Page& page) {
  return {page.extent->id, page.index};
}

}  // namespace bitpager::paging
