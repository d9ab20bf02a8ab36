#include "paging/host_frames.h"

#include <algorithm>
#include <iterator>

namespace bitpager::paging {

HostFrames::HostFrames(std::uint64_t frames, std::uint64_t first) : total_(frames), free_(frames) {
  if (frames > 0) runs_.emplace(first, frames);
}

std::map<std::uint64_t, std::uint64_t>::iterator HostFrames::Choose(std::uint64_t count) {
  auto longest = runs_.begin();
  auto fitting = runs_.end();
  for (auto it = runs_.begin(); it != runs_.end(); ++it) {
    if (it->second > longest->second) longest = it;
    if (it->second >= count && (fitting == runs_.end() || it->second < fitting->second)) fitting = it;
  }
  return fitting != runs_.end() ? fitting : longest;
}

std::vector<HostRun> HostFrames::Take(std::uint64_t count) {
  std::vector<HostRun> taken;
  while (count > 0) {
    auto it = Choose(count);
    const HostRun run{it->first, std::min(count, it->second)};
    const std::uint64_t left = it->second - run.count;
    runs_.erase(it);
    if (left > 0) runs_.emplace(run.first + run.count, left);
    taken.push_back(run);
    free_ -= run.count;
    count -= run.count;
  }
  std::sort(taken.begin(), taken.end(), [](HostRun a, HostRun b) { return a.first < b.first; });
  return taken;
}

void HostFrames::GiveRun(HostRun run) {
  free_ += run.count;
  auto after = runs_.lower_bound(run.first);
  if (after != runs_.begin()) {
    auto before = std::prev(after);
    if (before->first + before->second == run.first) {
      run = {before->first, before->second + run.count};
      runs_.erase(before);
    }
  }
  if (after != runs_.end() && run.first + run.count == after->first) {
    run.count += after->second;
    runs_.erase(after);
  }
  runs_.emplace(run.first, run.count);
}

void HostFrames::Give(const std::vector<HostRun>& runs) {
  for (const HostRun run : runs) GiveRun(run);
}

}  // namespace bitpager::paging
