// Which page of one job (in one frame pool) leaves first: the three policies. Dispatcher thread.
#pragma once

#include <cstdint>
#include <vector>

#include "paging/page.h"

namespace bitpager::paging {

// What the order needs to know of the job at the time of a decision.
struct JobClock {
  std::uint64_t now = 1;        // page visits so far; prefetches are none
  std::uint64_t usual_gap = 1;  // assumed of a page visited only once: the job's pages
};

// The visit at which `page` is expected next. A page visited once is taken for part of a scan over all of
// the job's pages; one that was only prefetched is expected at once. A page that stayed away a whole gap
// longer than expected is taken for dead: the longer away, the farther.
[[nodiscard]] std::uint64_t ExpectedUse(const Page& page, const JobClock& clock);

// Victims in order, as a heap with lazy entries: Add only appends; keys are computed and entries sorted in
// when a victim is wanted, so a job that evicts nothing pays nothing. An entry is stale when its version is
// not its page's.
class EvictionOrder {
 public:
  explicit EvictionOrder(Policy policy) : policy_(policy) {}
  void Add(Page& page);
  void Remove(Page& page);
  [[nodiscard]] std::uint64_t size() const { return size_; }
  // The page to evict next; it stays listed. Null when there is none. `mixed`: clean and dirty pages are
  // resident, so that among pages of about equal distance one that leaves without a copy is worth a search.
  [[nodiscard]] Page* Next(const JobClock& clock, bool mixed);
  // Forgets every stale entry: pages may be freed after this.
  void Compact();

 private:
  struct Entry {
    std::uint64_t key = 0;  // greatest leaves first
    Page* page = nullptr;
    std::uint32_t version = 0;
    bool operator<(const Entry& other) const { return key < other.key; }
    [[nodiscard]] bool stale() const { return !page->listed || page->version != version; }
  };
  [[nodiscard]] std::uint64_t KeyOf(const Page& page, const JobClock& clock) const;
  void Settle(const JobClock& clock);
  [[nodiscard]] bool PopFresh(const JobClock& clock, Entry& entry);
  void Push(const Entry& entry);
  [[nodiscard]] Page* PreferClean(const Entry& top, const JobClock& clock);

  Policy policy_;
  std::uint64_t size_ = 0;
  std::uint64_t rekeyed_at_ = 0;  // clock of the last computing of every key
  std::vector<Entry> heap_;
  std::vector<Entry> added_;  // not in the heap yet; keys not computed
  std::vector<Entry> near_;   // scratch of PreferClean
};

}  // namespace bitpager::paging
