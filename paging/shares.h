// Fair shares of a budget: weighted water-filling. Pure; any thread.
#pragma once

#include <cstdint>
#include <vector>

namespace bitpager::paging {

struct Claimant {
  double weight = 1.0;
  std::uint64_t least = 0;  // frames it keeps whatever the others want
  std::uint64_t most = 0;   // frames it can use: its pages, its quota
};

// Frames for each claimant, at most `budget` together: in proportion to the weights, but never under `least`
// nor over `most`; what one cannot use goes to the others. When the budget is under the sum of `least`, every
// share shrinks towards one frame.
[[nodiscard]] std::vector<std::uint64_t> FairShares(std::uint64_t budget,
                                                    const std::vector<Claimant>& claimants);

}  // namespace bitpager::paging
