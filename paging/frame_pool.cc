#include "paging/frame_pool.h"

#include <algorithm>
#include <functional>
#include <iterator>

namespace bitpager::paging {

PoolId FramePools::PoolOf(DomainId domain, bool stays) {
  for (PoolId id = 0; id < pools(); ++id) {
    if (pools_[id].domain == domain && pools_[id].stays == stays) return id;
  }
  pools_.push_back({domain, stays, {}, 0, 0, 0});
  return pools() - 1;
}

std::uint64_t FramePools::Available(PoolId id) const {
  const FramePool& p = pools_[id];
  return p.free.size() + p.leaving + p.incoming - p.claims;
}

namespace {

// Where `count` frames side by side begin in `free`, which gets sorted; else its last ones.
std::vector<std::uint32_t>::iterator FindRun(std::vector<std::uint32_t>& free, std::ptrdiff_t count) {
  std::sort(free.begin(), free.end(), std::greater<>());
  std::ptrdiff_t run = 1;
  for (auto it = free.end() - 1; it != free.begin(); --it) {
    run = *std::prev(it) == *it + 1 ? run + 1 : 1;
    if (run == count) return std::prev(it);
  }
  return free.end() - count;
}

}  // namespace

void FramePools::Take(PoolId id, const std::vector<Page*>& owners, std::vector<std::uint32_t>& frames) {
  std::vector<std::uint32_t>& free = pools_[id].free;
  const auto count = static_cast<std::ptrdiff_t>(owners.size());
  auto first = free.end() - count;
  const auto [least, most] = std::minmax_element(first, free.end());
  if (count > 1 && *most - *least >= owners.size()) first = FindRun(free, count);
  frames.assign(first, first + count);
  free.erase(first, first + count);
  std::sort(frames.begin(), frames.end());
  for (std::size_t i = 0; i < owners.size(); ++i) {
    owners_[frames[i]] = owners[i];
    ++SegmentOf(frames[i]).used;
  }
  used_ += owners.size();
}

void FramePools::Give(std::uint32_t frame, Actions& pending) {
  owners_[frame] = nullptr;
  --used_;
  Segment& segment = SegmentOf(frame);
  --segment.used;
  if (poison_) pending.poison.push_back(RefOf(frame));
  if (!segment.draining) {
    pools_[segment.pool].free.push_back(frame);
  } else if (segment.used == 0) {
    Retire(frame / per_segment_, pending);
  }
}

void FramePools::Create(std::uint32_t segment, PoolId id, Actions& pending) {
  segments_[segment] = {true, false, id, kNone, 0};
  ++existing_;
  for (std::uint32_t slot = per_segment_; slot-- > 0;) {
    pools_[id].free.push_back(segment * per_segment_ + slot);
  }
  pending.new_segments.push_back({segment, pools_[id].domain});
}

// Gives an empty draining segment back, and makes it anew in the pool that it was promised to.
void FramePools::Retire(std::uint32_t segment, Actions& pending) {
  const PoolId promised = segments_[segment].promised;
  std::erase_if(pending.poison, [&](FrameRef frame) { return frame.segment == segment; });
  // A segment that the caller has not even heard of needs no giving back.
  const auto unheard = std::erase_if(pending.new_segments,
                                     [&](const SegmentRequest& made) { return made.segment == segment; });
  if (unheard == 0) pending.free_segments.push_back(segment);
  segments_[segment] = {};
  --existing_;
  if (promised == kNone) {
    --going_;
    numbers_.push_back(segment);
    return;
  }
  pools_[promised].incoming -= per_segment_;
  Create(segment, promised, pending);
}

std::uint64_t FramePools::FreeIn(std::uint32_t segment) const {
  return segments_[segment].draining ? 0 : per_segment_ - segments_[segment].used;
}

std::uint64_t FramePools::LeavingIn(std::uint32_t segment) const {
  std::uint64_t count = 0;
  for (std::uint32_t slot = 0; slot < per_segment_; ++slot) {
    const Page* page = owners_[segment * per_segment_ + slot];
    if (page != nullptr && page->state == PageState::kEvicting && !page->rescued) ++count;
  }
  return count;
}

bool FramePools::MayDrain(std::uint32_t segment) const {
  const Segment& s = segments_[segment];
  if (!s.exists || s.draining || pools_[s.pool].stays) return false;
  return Available(s.pool) >= FreeIn(segment) + LeavingIn(segment);
}

void FramePools::ForgetFree(std::uint32_t segment) {
  std::vector<std::uint32_t>& free = pools_[segments_[segment].pool].free;
  if (per_segment_ == 1 && !free.empty() && free.back() == segment) {
    free.pop_back();
    return;
  }
  std::erase_if(free, [&](std::uint32_t frame) { return frame / per_segment_ == segment; });
}

void FramePools::Drain(std::uint32_t segment, PoolId promised, Actions& pending) {
  Segment& s = segments_[segment];
  if (FreeIn(segment) > 0) ForgetFree(segment);
  pools_[s.pool].leaving -= LeavingIn(segment);
  s.draining = true;
  s.promised = promised;
  if (promised == kNone) {
    ++going_;
  } else {
    pools_[promised].incoming += per_segment_;
  }
  if (s.used == 0) Retire(segment, pending);
}

std::uint32_t FramePools::WhollyFree(PoolId but) const {
  if (per_segment_ == 1) {
    for (PoolId id = 0; id < pools(); ++id) {
      if (id != but && Free(id) > 0 && Available(id) > 0) return pools_[id].free.back();
    }
    return kNone;
  }
  for (std::uint32_t i = 0; i < segments_.size(); ++i) {
    const Segment& s = segments_[i];
    if (s.exists && !s.draining && s.pool != but && s.used == 0 && Available(s.pool) >= per_segment_)
      return i;
  }
  return kNone;
}

bool FramePools::Grow(PoolId id, Actions& pending) {
  if (existing_ < budget_) {
    if (numbers_.empty()) {
      numbers_.push_back(static_cast<std::uint32_t>(segments_.size()));
      segments_.emplace_back();
      owners_.resize(segments_.size() * per_segment_, nullptr);
    }
    const std::uint32_t segment = numbers_.back();
    numbers_.pop_back();
    Create(segment, id, pending);
    return true;
  }
  if (Excess() > 0) return false;
  const std::uint32_t segment = WhollyFree(id);
  if (segment == kNone) return false;
  Drain(segment, id, pending);
  return true;
}

bool FramePools::Shrink(Actions& pending) {
  const std::uint32_t segment = WhollyFree(kNone);
  if (segment == kNone) return false;
  Drain(segment, kNone, pending);
  return true;
}

void FramePools::Refuse(std::uint32_t segment, Actions& pending) {
  ForgetFree(segment);
  segments_[segment] = {};
  --existing_;
  numbers_.push_back(segment);
  std::erase_if(pending.poison, [&](FrameRef frame) { return frame.segment == segment; });
}

std::uint64_t FramePools::Excess() const {
  const std::uint64_t kept = existing_ - going_;
  return kept > budget_ ? kept - budget_ : 0;
}

}  // namespace bitpager::paging
