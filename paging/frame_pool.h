// Device frames: which segments exist, whose they are, which frames are free, and which are promised.
// Dispatcher thread. It knows pages only as owners of frames; what to evict is decided above.
//
// Promises. A pool is the frames of one domain (those that never leave are pooled apart, so that they do not
// keep other segments from moving). A claim is a right to one frame of a pool. A pool never has more claims
// than frames that are free or certain to come: being stored (`leaving`) or in segments on their way to it
// (`incoming`). So whoever holds a claim gets its frame without anybody else's good will, and nobody ever
// holds some frames while waiting for more than it was promised.
#pragma once

#include <cstdint>
#include <vector>

#include "paging/page.h"

namespace bitpager::paging {

struct Segment {
  bool exists = false;
  bool draining = false;  // its pages leave; no frame of it is handed out again
  PoolId pool = kNone;
  PoolId promised = kNone;  // pool that receives it when drained; kNone: it is given back
  std::uint32_t used = 0;   // frames with an owner
};

struct FramePool {
  DomainId domain = kPrivateDomain;
  bool stays = false;               // frames of extents that are not evictable
  std::vector<std::uint32_t> free;  // frames, none in draining segments
  std::uint64_t leaving = 0;        // frames being stored that will be free; none in draining segments
  std::uint64_t incoming = 0;       // frames of segments promised to this pool
  std::uint64_t claims = 0;
};

class FramePools {
 public:
  FramePools(std::uint32_t segment_frames, bool poison) : per_segment_(segment_frames), poison_(poison) {}

  [[nodiscard]] PoolId PoolOf(DomainId domain, bool stays);  // made when new
  [[nodiscard]] FramePool& pool(PoolId id) { return pools_[id]; }
  [[nodiscard]] const FramePool& pool(PoolId id) const { return pools_[id]; }
  [[nodiscard]] PoolId pools() const { return static_cast<PoolId>(pools_.size()); }
  [[nodiscard]] const std::vector<Segment>& segments() const { return segments_; }
  [[nodiscard]] Segment& SegmentOf(std::uint32_t frame) { return segments_[frame / per_segment_]; }
  [[nodiscard]] Page* owner(std::uint32_t frame) const { return owners_[frame]; }
  [[nodiscard]] FrameRef RefOf(std::uint32_t frame) const {
    return {frame / per_segment_, frame % per_segment_};
  }
  [[nodiscard]] std::uint32_t per_segment() const { return per_segment_; }

  // Frames that a new claim could have without any eviction; never negative.
  [[nodiscard]] std::uint64_t Available(PoolId id) const;
  [[nodiscard]] std::uint64_t Free(PoolId id) const { return pools_[id].free.size(); }
  // Frames for these pages, as many as are free at least: ascending, those given back last, so that pages
  // that leave and come in groups lie side by side.
  void Take(PoolId id, const std::vector<Page*>& owners, std::vector<std::uint32_t>& frames);
  void Give(std::uint32_t frame, Actions& pending);  // its owner has left

  // A new segment for the pool: one that the budget still allows, or a wholly free one of another pool.
  [[nodiscard]] bool Grow(PoolId id, Actions& pending);
  // Gives back one wholly free segment; false when there is none.
  [[nodiscard]] bool Shrink(Actions& pending);
  // Whether `segment` could be emptied without taking promised frames from its pool.
  [[nodiscard]] bool MayDrain(std::uint32_t segment) const;
  // Hands out nothing of it any more; its used frames are the caller's to evict. `promised` may be kNone.
  void Drain(std::uint32_t segment, PoolId promised, Actions& pending);
  // The device refused a new segment: it does not exist. Its owners were taken off before.
  void Refuse(std::uint32_t segment, Actions& pending);

  void SetBudget(std::uint64_t segments) { budget_ = segments; }
  [[nodiscard]] std::uint64_t budget() const { return budget_; }
  [[nodiscard]] std::uint64_t existing() const { return existing_; }
  // Segments that are not on their way out.
  [[nodiscard]] std::uint64_t staying() const { return existing_ - going_; }
  // Segments over the budget that are not yet on their way out.
  [[nodiscard]] std::uint64_t Excess() const;
  [[nodiscard]] std::uint64_t used_frames() const { return used_; }

 private:
  void Create(std::uint32_t segment, PoolId id, Actions& pending);
  void Retire(std::uint32_t segment, Actions& pending);
  void ForgetFree(std::uint32_t segment);
  [[nodiscard]] std::uint32_t WhollyFree(PoolId but) const;
  [[nodiscard]] std::uint64_t FreeIn(std::uint32_t segment) const;
  [[nodiscard]] std::uint64_t LeavingIn(std::uint32_t segment) const;

  std::uint32_t per_segment_;
  bool poison_;
  std::vector<FramePool> pools_;
  std::vector<Segment> segments_;
  std::vector<Page*> owners_;           // of each frame; null: free
  std::vector<std::uint32_t> numbers_;  // of segments that do not exist, below segments_.size()
  std::uint64_t budget_ = 0;            // segments
  std::uint64_t existing_ = 0;
  std::uint64_t going_ = 0;  // draining, promised to nobody
  std::uint64_t used_ = 0;
};

}  // namespace bitpager::paging
