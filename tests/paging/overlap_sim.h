// A device by the clock: two copy engines and one that steps, each in order, and a caller that looks at them
// once in a while. Tells how long a step takes beside what its bytes need. Test only; one thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <vector>

#include "paging/pager.h"

namespace bitpager::paging {

// Microseconds, as an accelerator on a fast link has them with pages of 512 KiB.
struct Timing {
  double page_copy_us = 10.45;  // a page either way, both ways busy
  double copy_us = 3;           // beside, for each copy
  double page_step_us = 0.85;
  double launch_us = 6;
  double look_us = 10;  // between two looks of the caller
  double turn_us = 0;   // from a step's beginning to the first launch that the device begins
};

class OverlapSim {
 public:
  struct Step {
    double us = 0;  // until the last run is done
    std::uint64_t pages_in = 0;
    std::uint64_t pages_out = 0;  // trailing ones included
    std::uint64_t copies = 0;     // of pages next to each other on both sides, each
    double in_us = 0;             // that the loads alone need
  };

  // small_pages: of an extent besides, which a step visits first, in a request of its own.
  OverlapSim(const PagerConfig& config, std::uint64_t pages, const Timing& timing = {},
             std::uint64_t quota_frames = 0, std::uint64_t small_pages = 0)
      : pager(config), timing_(timing), pages_(pages), small_pages_(small_pages) {
    (void)pager.AddJob(job_, {.name = "job", .device_quota_frames = quota_frames});
    extent_ = *pager.AddExtent({.job = job_, .pages = pages});
    if (small_pages > 0) small_ = *pager.AddExtent({.job = job_, .pages = small_pages});
  }

  // `during(look)` is called before each look, `looks` of them at most; false: the step has not ended by
  // then.
  template <typename Call>
  bool RunStep(int looks, const Call& during) {
    Step ignored;
    request_ = *pager.Submit({.job = job_, .ranges = {{extent_, 0, pages_}}});
    finished_ = false;
    for (int look = 0; !finished_ && look < looks; ++look) {
      during(look);
      Look(ignored);
      now_ += timing_.look_us;
    }
    return finished_;
  }

  // `pause`: what still moves behind the step ends before the next one.
  Step RunStep(bool pause = true) {
    Step step;
    const double begun = now_;
    step_free_ = std::max(step_free_, begun + timing_.turn_us);
    if (small_pages_ > 0) RunRequest({small_, 0, small_pages_}, step);
    RunRequest({extent_, 0, pages_}, step);
    step.us = step_done_ - begun;
    for (int quiet = 0; pause && quiet < 2;) {
      now_ += timing_.look_us;
      Look(step);
      quiet = loads_.empty() && stores_.empty() ? quiet + 1 : 0;
    }
    step.in_us = static_cast<double>(step.pages_in) * timing_.page_copy_us;
    return step;
  }

  void EvictAll() {
    Step ignored;
    pager.Evict(job_, 0, Reason::kCommand);
    do {
      Look(ignored);
      now_ += timing_.look_us;
    } while (!stores_.empty() || !loads_.empty());
  }

  // The job ends; another one of as many pages takes its place.
  void Replace(std::uint64_t quota_frames) {
    Step ignored;
    pager.RemoveJob(job_);
    Look(ignored);
    ++job_.value;
    (void)pager.AddJob(job_, {.name = "job", .device_quota_frames = quota_frames});
    extent_ = *pager.AddExtent({.job = job_, .pages = pages_});
  }

  Pager pager;

 private:
  void RunRequest(const PageRange& range, Step& step) {
    request_ = *pager.Submit({.job = job_, .ranges = {range}});
    for (finished_ = false; !finished_; now_ += timing_.look_us) Look(step);
  }

  struct Copy {
    double end = 0;
    std::vector<PageRef> pages;
  };
  struct Launch {
    double end = 0;
    std::vector<std::uint64_t> windows;
  };
  struct Half {
    PageRef page;
    std::uint64_t frame = 0;
    std::uint64_t host = 0;
    std::uint32_t group = 0;
    bool empty = false;
  };

  void Look(Step& step) {
    Complete();
    Actions actions;
    pager.Pump(actions);
    std::vector<Half> halves;
    for (const StoreAction& s : actions.stores)
      halves.push_back({s.page, Place(s.frame), s.host_frame, s.group, false});
    step.pages_out += halves.size();
    Copies(halves, stores_, store_free_, step);
    halves.clear();
    for (const LoadAction& l : actions.loads) {
      if (!l.zero) ++step.pages_in;
      halves.push_back({l.page, Place(l.frame), l.host_frame, l.group, l.zero});
    }
    Copies(halves, loads_, load_free_, step);
    Launch launch;
    for (const RunAction& run : actions.runs) {
      if (launch.windows.empty()) launch.end = std::max(step_free_, now_) + timing_.launch_us;
      launch.windows.push_back(run.window);
      launch.end += static_cast<double>(run.pages.size()) * timing_.page_step_us;
      step_free_ = launch.end;
      if (!run.leaves && &run != &actions.runs.back()) continue;
      launches_.push_back(launch);
      launch = {};
    }
    for (const wire::RequestId id : actions.finished) finished_ = finished_ || id == request_;
  }

  void Copies(const std::vector<Half>& halves, std::deque<Copy>& queue, double& free, Step& step) {
    for (std::size_t i = 0; i < halves.size();) {
      Copy copy;
      const std::size_t first = i;
      do copy.pages.push_back(halves[i++].page);
      while (i < halves.size() && halves[i].group == halves[i - 1].group && !halves[i].empty &&
             !halves[first].empty && halves[i].frame == halves[i - 1].frame + 1 &&
             halves[i].host == halves[i - 1].host + 1);
      const double us = timing_.copy_us + static_cast<double>(copy.pages.size()) * timing_.page_copy_us;
      copy.end = std::max(free, now_) + (halves[first].empty ? 0 : us);
      if (!halves[first].empty) {
        free = copy.end;
        ++step.copies;
      }
      queue.push_back(copy);
    }
  }

  void Complete() {
    for (; !loads_.empty() && loads_.front().end <= now_; loads_.pop_front()) {
      for (const PageRef page : loads_.front().pages) pager.LoadDone(page);
    }
    for (; !stores_.empty() && stores_.front().end <= now_; stores_.pop_front()) {
      for (const PageRef page : stores_.front().pages) pager.StoreDone(page);
    }
    for (; !launches_.empty() && launches_.front().end <= now_; launches_.pop_front()) {
      for (const std::uint64_t window : launches_.front().windows) pager.RunDone(request_, window);
      step_done_ = launches_.front().end;
    }
  }
  [[nodiscard]] std::uint64_t Place(FrameRef frame) const {
    return std::uint64_t{frame.segment} * pager.config().segment_frames + frame.slot;
  }

  Timing timing_;
  std::uint64_t pages_;
  std::uint64_t small_pages_;
  wire::JobId job_{1};
  wire::ExtentId extent_;
  wire::ExtentId small_;
  wire::RequestId request_;
  double now_ = 0;
  double load_free_ = 0;
  double store_free_ = 0;
  double step_free_ = 0;
  double step_done_ = 0;
  bool finished_ = false;
  std::deque<Copy> loads_;
  std::deque<Copy> stores_;
  std::deque<Launch> launches_;
};

}  // namespace bitpager::paging
