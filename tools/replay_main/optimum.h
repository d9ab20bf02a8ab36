// The least that any policy could move for given visits: Belady's MIN, computed with the future known.
#pragma once

#include <cstdint>
#include <vector>

#include "paging/pager.h"

namespace bitpager::replay {

struct Visit {
  std::uint32_t page = 0;
  paging::Access access = paging::Access::kUpdate;
};

struct Moves {
  std::uint64_t in = 0;   // pages copied to the device
  std::uint64_t out = 0;  // pages copied to the host
};

// `in` is a lower bound: no policy with `frames` frames copies fewer pages in (a page never written, or about
// to be overwritten, costs no copy). `out` is what that same schedule writes back: a page that is evicted
// after it was written since its last copy; it is not a bound of its own, since MIN chooses by next use
// alone. Pages left on the device at the end are not written back.
[[nodiscard]] Moves Optimum(const std::vector<Visit>& visits, std::uint64_t frames);

}  // namespace bitpager::replay
