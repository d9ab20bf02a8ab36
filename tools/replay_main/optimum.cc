#include "tools/replay_main/optimum.h"

#include <algorithm>
#include <queue>

namespace bitpager::replay {
namespace {

struct PageNow {
  bool resident = false;
  bool dirty = false;
  bool written = false;  // ever
  std::size_t next = 0;  // visit
};

// For each visit, the next visit of the same page; visits.size() when there is none.
std::vector<std::size_t> NextVisits(const std::vector<Visit>& visits, std::size_t pages) {
  std::vector<std::size_t> next(visits.size());
  std::vector<std::size_t> seen(pages, visits.size());
  for (std::size_t i = visits.size(); i-- > 0;) {
    next[i] = seen[visits[i].page];
    seen[visits[i].page] = i;
  }
  return next;
}

}  // namespace

Moves Optimum(const std::vector<Visit>& visits, std::uint64_t frames) {
  std::size_t pages = 0;
  for (const Visit& visit : visits) pages = std::max<std::size_t>(pages, visit.page + 1U);
  const std::vector<std::size_t> next = NextVisits(visits, pages);
  std::vector<PageNow> table(pages);
  std::priority_queue<std::pair<std::size_t, std::uint32_t>>
      farthest;  // entries go stale when a page is visited
  std::uint64_t resident = 0;
  Moves moves;
  for (std::size_t i = 0; i < visits.size(); ++i) {
    PageNow& page = table[visits[i].page];
    if (!page.resident) {
      while (resident >= frames && !farthest.empty()) {
        const auto [when, which] = farthest.top();
        farthest.pop();
        PageNow& victim = table[which];
        if (!victim.resident || victim.next != when) continue;
        moves.out += victim.dirty ? 1 : 0;
        victim.resident = victim.dirty = false;
        --resident;
      }
      moves.in += page.written && visits[i].access != paging::Access::kOverwrite ? 1 : 0;
      page.resident = true;
      ++resident;
    }
    if (visits[i].access != paging::Access::kRead) page.dirty = page.written = true;
    page.next = next[i];
    farthest.emplace(next[i], visits[i].page);
  }
  return moves;
}

}  // namespace bitpager::replay
