// Belady's optimum for a list of visits, written apart from the pager. Test only.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <vector>

namespace bitpager::paging {

// Least pages brought in by visits[from..] when `frames` pages fit and every visited page must be there:
// evicts the page whose next visit is farthest. Visits before `from` warm it up.
inline std::uint64_t BeladyMisses(const std::vector<std::uint32_t>& visits, std::uint64_t frames,
                                  std::size_t from = 0) {
  std::vector<std::size_t> next(visits.size());
  std::map<std::uint32_t, std::size_t> seen;
  for (std::size_t i = visits.size(); i-- > 0;) {
    const auto it = seen.find(visits[i]);
    next[i] = it == seen.end() ? visits.size() + visits[i] : it->second;
    seen[visits[i]] = i;
  }
  std::set<std::pair<std::size_t, std::uint32_t>> there;  // (next visit, page)
  std::map<std::uint32_t, std::size_t> at;
  std::uint64_t misses = 0;
  for (std::size_t i = 0; i < visits.size(); ++i) {
    const auto it = at.find(visits[i]);
    if (it != at.end()) {
      there.erase({it->second, visits[i]});
    } else {
      if (i >= from) ++misses;
      if (there.size() == frames) {
        at.erase(there.rbegin()->second);
        there.erase(std::prev(there.end()));
      }
    }
    at[visits[i]] = next[i];
    there.emplace(next[i], visits[i]);
  }
  return misses;
}

}  // namespace bitpager::paging
