#include "paging/eviction_order.h"

#include <algorithm>
#include <limits>

namespace bitpager::paging {
namespace {

// Pages that come and go leave before all others.
constexpr std::uint64_t kStreams = std::uint64_t{1} << 62;
constexpr std::size_t kSearch = 8;  // pages looked at for one that leaves without a copy

// What leaving costs: 0 nothing at all, 1 a copy when it comes back, 2 a copy now too.
int CostOf(const Page& page) {
  return page.dirty ? 2 : (page.zero ? 0 : 1);
}

}  // namespace

std::uint64_t ExpectedUse(const Page& page, const JobClock& clock) {
  if (page.last_use == 0) {
    const std::uint64_t waited = clock.now - page.arrived;
    return waited <= clock.usual_gap ? page.arrived : clock.now + waited;
  }
  const std::uint64_t gap = page.history.empty() ? clock.usual_gap : page.history.Predict();
  const std::uint64_t expected = page.last_use + gap;
  if (expected + gap >= clock.now) return expected;
  return clock.now + (clock.now - page.last_use);
}

std::uint64_t EvictionOrder::KeyOf(const Page& page, const JobClock& clock) const {
  constexpr std::uint64_t kLast = std::numeric_limits<std::uint64_t>::max();
  switch (policy_) {
    case Policy::kScanAware:
      return ExpectedUse(page, clock) + (page.streams ? kStreams : 0);
    case Policy::kLru:
      return kLast - std::max(page.last_use, page.arrived);
    case Policy::kClock:
      return kLast - page.arrived;
  }
  return 0;
}

void EvictionOrder::Add(Page& page) {
  page.listed = true;
  ++page.version;
  ++size_;
  if (heap_.size() + added_.size() > 2 * size_ + 256) Compact();
  added_.push_back({0, &page, page.version});
}

void EvictionOrder::Remove(Page& page) {
  page.listed = false;
  ++page.version;
  --size_;
}

void EvictionOrder::Compact() {
  const auto stale = [](const Entry& entry) { return entry.stale(); };
  std::erase_if(added_, stale);
  if (std::erase_if(heap_, stale) > 0) std::make_heap(heap_.begin(), heap_.end());
}

void EvictionOrder::Push(const Entry& entry) {
  heap_.push_back(entry);
  std::push_heap(heap_.begin(), heap_.end());
}

// Sorts in what was added. Once in a while all keys are computed anew, because a page that did not come when
// expected is expected later: after as many visits as the job has pages, so the cost of it stays constant
// per visit.
void EvictionOrder::Settle(const JobClock& clock) {
  const bool rekey = policy_ == Policy::kScanAware && clock.now - rekeyed_at_ > clock.usual_gap + 64;
  if (rekey || added_.size() > heap_.size()) {
    std::erase_if(heap_, [](const Entry& entry) { return entry.stale(); });
    std::erase_if(added_, [](const Entry& entry) { return entry.stale(); });
    heap_.insert(heap_.end(), added_.begin(), added_.end());
    for (Entry& entry : heap_) entry.key = KeyOf(*entry.page, clock);
    std::make_heap(heap_.begin(), heap_.end());
    rekeyed_at_ = clock.now;
  } else {
    for (Entry& entry : added_) {
      if (entry.stale()) continue;
      entry.key = KeyOf(*entry.page, clock);
      Push(entry);
    }
  }
  added_.clear();
}

bool EvictionOrder::PopFresh(const JobClock& clock, Entry& entry) {
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end());
    entry = heap_.back();
    heap_.pop_back();
    if (entry.stale()) continue;
    if (policy_ == Policy::kClock && entry.page->referenced) {  // second chance
      entry.page->referenced = false;
      entry.page->arrived = clock.now + 1;
      entry.key = KeyOf(*entry.page, clock);
      Push(entry);
      continue;
    }
    return true;
  }
  return false;
}

Page* EvictionOrder::PreferClean(const Entry& top, const JobClock& clock) {
  Entry best = top;
  const std::uint64_t distance = top.key > clock.now ? top.key - clock.now : 0;
  near_.clear();
  near_.push_back(top);
  Entry entry;
  while (near_.size() < kSearch && CostOf(*best.page) == 2 && PopFresh(clock, entry)) {
    near_.push_back(entry);
    if (entry.key + distance / 8 < top.key) break;
    if (CostOf(*entry.page) < CostOf(*best.page)) best = entry;
  }
  for (const Entry& looked_at : near_) Push(looked_at);
  return best.page;
}

Page* EvictionOrder::Next(const JobClock& clock, bool mixed) {
  if (size_ == 0) return nullptr;
  Settle(clock);
  Entry top;
  if (!PopFresh(clock, top)) return nullptr;
  if (policy_ == Policy::kScanAware && mixed && top.page->dirty) return PreferClean(top, clock);
  Push(top);
  return top.page;
}

}  // namespace bitpager::paging
