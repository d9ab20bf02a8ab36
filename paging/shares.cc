#include "paging/shares.h"

#include <algorithm>
#include <cmath>

namespace bitpager::paging {
namespace {

std::uint64_t Level(const Claimant& c, double level, bool keep_least) {
  const std::uint64_t least = keep_least ? std::min(c.least, c.most) : std::min<std::uint64_t>(1, c.most);
  const double wanted = std::floor(c.weight * level);
  if (wanted >= static_cast<double>(c.most)) return c.most;
  return std::clamp(static_cast<std::uint64_t>(wanted), least, c.most);
}

std::uint64_t Sum(const std::vector<Claimant>& claimants, double level, bool keep_least) {
  std::uint64_t sum = 0;
  for (const Claimant& c : claimants) sum += Level(c, level, keep_least);
  return sum;
}

}  // namespace

std::vector<std::uint64_t> FairShares(std::uint64_t budget, const std::vector<Claimant>& claimants) {
  double lightest = 1.0;
  std::uint64_t widest = 0;
  for (const Claimant& c : claimants) {
    lightest = std::min(lightest, c.weight);
    widest = std::max(widest, c.most);
  }
  const bool keep_least = Sum(claimants, 0.0, true) <= budget;
  double low = 0.0;
  double high = (static_cast<double>(widest) + 1.0) / lightest;
  for (int i = 0; i < 80; ++i) {
    const double middle = (low + high) / 2;
    (Sum(claimants, middle, keep_least) <= budget ? low : high) = middle;
  }
  std::vector<std::uint64_t> shares;
  std::uint64_t sum = 0;
  for (const Claimant& c : claimants) {
    shares.push_back(Level(c, low, keep_least));
    sum += shares.back();
  }
  // What rounding down left over, one frame each in the claimants' order.
  for (bool given = true; given && sum < budget;) {
    given = false;
    for (std::size_t i = 0; i < claimants.size() && sum < budget; ++i) {
      if (shares[i] >= claimants[i].most) continue;
      ++shares[i];
      ++sum;
      given = true;
    }
  }
  return shares;
}

}  // namespace bitpager::paging
