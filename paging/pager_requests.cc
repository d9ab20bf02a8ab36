// Requests: cut into windows, acquired whole, loaded, handed out to run, let go. Dispatcher thread.
//
// A window is acquired whole or not at all: its resident pages are held and its missing ones get claims,
// which are certain to become frames (frame_pool.h). A job's windows run in order and a window that is
// complete needs nothing more, so no mix of jobs can wait in a circle. Windows ahead of the one that runs are
// acquired early: their loads, and the stores of the pages that make room for them, overlap with it.
#include <algorithm>

#include "paging/pager_impl.h"

namespace bitpager::paging {

using wire::Code;
using wire::Status;

namespace {

constexpr std::uint64_t kStages = 3;  // of a streaming window: load, step, write back

}  // namespace

wire::Result<wire::RequestId> Pager::Impl::Submit(const RequestSpec& spec) {
  Job* job = FindJob(spec.job);
  if (job == nullptr || job->closing) return Status(Code::kNotFound, "no such job");
  auto request = std::make_unique<Request>();
  Job* queue = job;
  for (const PageRange& range : spec.ranges) {
    Extent* extent = FindExtent(range.extent);
    if (extent == nullptr || extent->zombie || !Uses(*extent, *job)) {
      return Status(Code::kNotFound,
                    "job '" + job->spec.name + "' has no extent " + std::to_string(range.extent.value));
    }
    if (spec.access != Access::kRead && extent->users.size() > 1) {
      return Status(Code::kInvalidArgument,
                    "extent " + std::to_string(range.extent.value) + " is shared, so it is only read");
    }
    if (&range != &spec.ranges.front() && extent->job != queue) {
      return Status(Code::kInvalidArgument, "a request is on extents of one base, or on own ones");
    }
    queue = extent->job;
    const std::uint64_t pages = extent->spec.pages;
    if (range.first > pages || range.count > pages - range.first) {
      return Status(Code::kOutOfRange, "pages " + std::to_string(range.first) + " + " +
                                           std::to_string(range.count) + " of an extent of " +
                                           std::to_string(pages));
    }
    request->extents.push_back(extent);
  }
  request->spec = spec;
  const auto gives_way = [](const Request* other) { return other->of_weight || other->is_sure_hint(); };
  if (request->is_sure_hint() && !std::all_of(queue->queue.begin(), queue->queue.end(), gives_way)) {
    return Status(Code::kFull, "the job's queue is not empty");
  }
  request->id = {++last_request};
  request->job = queue;
  request->by = job;
  request->SkipEmptyRanges();
  DropWaitingHints(*queue);
  queue->queue.push_back(request.get());
  const wire::RequestId id = request->id;
  requests.emplace(id.value, std::move(request));
  return id;
}

// Hints behind the front have not begun, and would end as soon as their turn came: a client that gives more
// of them than are served leaves one.
void Pager::Impl::DropWaitingHints(Job& job) {
  for (std::size_t i = job.queue.size(); i-- > 1;) {
    Request& request = *job.queue[i];
    if (!request.spec.prefetch) continue;
    job.queue.erase(job.queue.begin() + static_cast<std::ptrdiff_t>(i));
    pending.finished.push_back(request.id);
    requests.erase(request.id.value);
  }
}

// ---- whose turn it is

// The job that has the least of its share goes first. A job whose first window found everything held by
// others' windows goes before all, and the others acquire nothing until it could: their windows end by
// themselves, so it waits for at most those.
void Pager::Impl::Advance() {
  order.clear();
  for (auto& [id, job] : jobs) {
    if (!job->queue.empty()) order.push_back(job.get());
  }
  const auto before = [](const Job* a, const Job* b) {
    if ((a->waiting_since != 0) != (b->waiting_since != 0)) return a->waiting_since != 0;
    if (a->waiting_since != b->waiting_since) return a->waiting_since < b->waiting_since;
    return a->Settled() * std::max<std::uint64_t>(1, b->share) <
           b->Settled() * std::max<std::uint64_t>(1, a->share);
  };
  std::stable_sort(order.begin(), order.end(), before);
  bool may_acquire = true;
  for (Job* job : order) {
    ServeFront(*job, may_acquire);
    if (job->waiting_since != 0) may_acquire = false;
  }
  for (PoolId pool = 0; claims_open > 0 && pool < frames.pools(); ++pool) FillClaims(pool);
}

void Pager::Impl::ServeFront(Job& job, bool may_acquire) {
  while (!job.queue.empty()) {
    Request& request = *job.queue.front();
    if (request.spec.prefetch) {
      if (job.queue.size() > 1) EndRequest(request);
      // Of the pager's own, a step that is there already comes first: the pause is over.
      if (may_acquire && request.born != decisions) {
        request.born == 0 || request.of_weight ? Prefetch(job, request) : Prepare(job, request);
      }
    } else {
      HandOutRuns(request);
      while (may_acquire && !PausesHere(request) && AcquireWindow(job, request, PaceOf(job))) {
        HandOutRuns(request);
      }
      if (request.whole && !request.at_end()) {  // not all at once after all: nothing may wait for more
        request.whole = false;
        HandOutRuns(request);
      }
    }
    if (!RetireFront(job)) return;
  }
}

// Whether a request has handed out enough for this decision; then another one follows at once.
bool Pager::Impl::PausesHere(Request& request) {
  if (request.decided != decisions) {
    request.decided = decisions;
    request.visited_before = request.visited;
  }
  const std::uint64_t most = std::max(config.first_pages, config.growth * request.visited_before);
  const bool pauses =
      config.first_pages > 0 && request.visited - request.visited_before >= most && !request.at_end();
  pending.more |= pauses;
  return pauses;
}

bool Pager::Impl::RetireFront(Job& job) {
  Request& request = *job.queue.front();
  if (!request.at_end() || !request.windows.empty() || !request.coming.empty()) return false;
  pending.finished.push_back(request.id);
  job.queue.pop_front();
  job.waiting_since = 0;
  Learn(job, request);
  if (job.queue.empty()) ExpectNext(job, request);
  if (IsReadOfWeight(job, request)) {
    LearnRead(job, request);
    if (job.queue.empty()) ExpectRead(job, request);
  }
  requests.erase(request.id.value);
  return true;
}

// ---- windows

Page* Pager::Impl::PageAt(const Request& request) const {
  const PageRange& range = request.spec.ranges[request.cursor.range];
  return &request.extents[request.cursor.range]->pages[range.first + request.cursor.offset];
}

// Frames that the pages of further windows may add to what is held: a job never holds more than its share, so
// everybody else's share can be evicted. Its first window may always have a page.
std::uint64_t Pager::Impl::Room(const Job& job, const Request& request) const {
  const std::uint64_t kept = job.held + job.leased;
  const std::uint64_t room = job.share > kept ? job.share - kept : 0;
  return request.windows.empty() ? std::max<std::uint64_t>(1, room) : room;
}

// How far ahead a job may reach. While it streams, pages on their way in, running, or on their way out keep
// nothing for the next step: of P pages visited in turn with C frames, a step moves about (P - C) P / (P - d)
// pages in when d are under way. So d is chosen such that streaming costs about half a window more than the
// optimum, P - C (single steps vary around that), but never less than a window, if the job has that many
// frames; and a window brings in as many pages as let `windows_in_flight` windows fit d.
Pager::Impl::Pace Pager::Impl::PaceOf(const Job& job) const {
  const std::uint64_t window = config.window_pages;
  const std::uint64_t in_flight = config.windows_in_flight;
  const std::uint64_t frames_had = job.Unleased();
  if (job.pages <= frames_had) return {window, in_flight * window};
  const std::uint64_t affordable = window * job.pages / (2 * (job.pages - frames_had) + window);
  const std::uint64_t under_way =
      std::min({std::max(affordable, config.least_under_way), in_flight * window, frames_had});
  const std::uint64_t stages = std::min(in_flight, kStages);
  const std::uint64_t stride = std::clamp<std::uint64_t>(under_way / stages, 1, window);
  return {stride, stride * stages};
}

// Whether all pages of a request that loads nothing are to be there at once: then nothing is won by running
// the first of them early, and whoever needs to see all of them sees them in one launch.
bool Pager::Impl::FitsWhole(const Job& job, const Request& request) const {
  if (!config.loads_over_resident || request.spec.access != Access::kOverwrite) return false;
  std::uint64_t pages = 0;
  for (std::size_t i = 0; i < request.extents.size(); ++i) {
    if (request.extents[i]->spec.evictable) pages += request.spec.ranges[i].count;
  }
  return pages <= job.Unleased();
}

// Whether holding `page` takes a frame more than its job has settled for.
bool Pager::Impl::NeedsFrame(const Page& page) const {
  if (page.claimed) return false;
  switch (page.state) {
    case PageState::kHostOnly:
      return true;
    case PageState::kEvicting:
      return !page.rescued;
    case PageState::kLoading:
    case PageState::kResident:
      break;
  }
  return page.holds == 0 &&
         (page.undefined || frames.segments()[page.frame / config.segment_frames].draining);
}

// The next pages in order that make up a window: of one pool, none twice, at most `pace.stride` missing.
// Empty: nothing may be acquired now.
Window Pager::Impl::CutWindow(const Job& job, Request& request, Pace pace, std::uint64_t* need) {
  Window window;
  window.start = request.cursor;
  window.number = request.next_window;
  const bool first = request.windows.empty();
  const bool streams = job.pages > job.share;
  const std::uint64_t room = Room(job, request);
  const std::uint64_t most = streams ? std::clamp<std::uint64_t>(job.share / config.windows_in_flight,
                                                                 pace.stride, config.window_pages)
                                     : config.window_pages;
  std::uint64_t newly_held = 0;
  const std::uint32_t mark = ++last_mark;
  while (!request.at_end() && window.pages.size() < most) {
    Page& page = *PageAt(request);
    if (page.mark == mark) break;
    if (!window.pages.empty() && page.extent->pool != window.pages.front()->extent->pool) break;
    const bool counts = page.extent->spec.evictable && page.holds == 0;
    const bool missing = NeedsFrame(page);
    if (missing && *need >= pace.stride) break;
    // Resident pages do not wait for others to come, and those that come are copied in one piece.
    if (config.loads_over_resident && !window.pages.empty() &&
        (missing != (*need > 0) || page.index % pace.stride == 0)) {
      break;
    }
    const std::uint64_t ahead = config.loads_over_resident ? *need : window.pages.size();
    const bool too_far = !request.whole && (request.windows_in_flight >= config.windows_in_flight ||
                                            request.in_flight + ahead >= pace.under_way);
    if ((counts && newly_held >= room) || (missing && too_far && !first)) {
      if (first) break;
      request.cursor = window.start;
      window.pages.clear();
      return window;
    }
    page.mark = mark;
    newly_held += counts ? 1 : 0;
    *need += missing ? 1 : 0;
    window.missing |= missing || page.state != PageState::kResident;
    window.pages.push_back(&page);
    request.Advance();
  }
  return window;
}

bool Pager::Impl::AcquireWindow(Job& job, Request& request, Pace pace) {
  if (request.at_end()) return false;
  if (config.loads_over_resident && request.next_window == 0) Spread(job, pace.under_way);
  if (request.next_window == 0 && request.windows.empty()) request.whole = FitsWhole(job, request);
  std::uint64_t need = 0;
  Window window = CutWindow(job, request, pace, &need);
  if (window.pages.empty()) return false;
  if (need > 0 && AwaitsStreaming(job, request, need)) {
    request.cursor = window.start;
    return false;
  }
  const std::vector<Page*> lacking = [&] {
    std::vector<Page*> pages;
    if (need > 0)
      std::copy_if(window.pages.begin(), window.pages.end(), std::back_inserter(pages),
                   [&](const Page* page) { return NeedsFrame(*page); });
    return pages;
  }();
  for (Page* page : window.pages) Hold(*page);
  const Procured got = need == 0 ? Procured::kYes : Procure(job, window.pages.front()->extent->pool, need);
  if (got != Procured::kYes) {
    for (Page* page : window.pages) Unhold(*page);
    request.cursor = window.start;
    const bool first = request.windows.empty();
    if (first && pace.stride > 1 && short_of_least) return AcquireWindow(job, request, {1, 1});
    if (first && got == Procured::kShort && job.waiting_since == 0) job.waiting_since = decisions;
    return false;
  }
  job.waiting_since = 0;
  for (Page* page : lacking) Promise(*page);
  ++request.next_window;
  request.lacked |= window.missing;
  Count(request, window, true);
  request.windows.push_back(std::move(window));
  return true;
}

void Pager::Impl::Promise(Page& page) {
  const bool may_stay = page.state == PageState::kEvicting && !frames.SegmentOf(page.frame).draining;
  if (!may_stay) {
    Claim(page);
    return;
  }
  page.rescued = true;
  --page.extent->job->leaving;
  --frames.pool(page.extent->pool).leaving;
}

void Pager::Impl::Hold(Page& page) {
  if (page.holds++ > 0) return;
  if (page.listed) Unlist(page);
  if (page.extent->spec.evictable) ++page.extent->job->held;
}

void Pager::Impl::Unhold(Page& page) {
  if (--page.holds > 0) return;
  if (page.extent->spec.evictable) --page.extent->job->held;
  if (page.claimed) Unclaim(page);
  if (page.state != PageState::kResident) return;
  if (page.extent->zombie) {
    Discard(page);
  } else if (page.undefined) {
    StartEvict(page, Reason::kDemand);
  } else {
    List(page);
  }
}

// A window that waits for nothing but its turn keeps no other from loading, where launches overlap copies.
void Pager::Impl::Count(Request& request, const Window& window, bool add) const {
  if (config.loads_over_resident && !window.missing) return;
  const std::uint64_t pages = window.pages.size();
  request.in_flight = add ? request.in_flight + pages : request.in_flight - pages;
  request.windows_in_flight = add ? request.windows_in_flight + 1 : request.windows_in_flight - 1;
}

void Pager::Impl::GiveUpWindows(Request& request) {
  while (!request.windows.empty() && !request.windows.back().handed_out) {
    Window& window = request.windows.back();
    for (Page* page : window.pages) Unhold(*page);
    request.cursor = window.start;
    request.next_window = window.number;
    Count(request, window, false);
    request.windows.pop_back();
  }
}

void Pager::Impl::EndRequest(Request& request) {
  request.cancelled = true;
  if (request.job->queue.front() == &request) request.job->waiting_since = 0;
  GiveUpWindows(request);
  for (Page* page : request.coming) {
    if (page->claimed && page->holds == 0) Unclaim(*page);
  }
  request.coming.clear();
  request.cursor = {request.spec.ranges.size(), 0};
}

// ---- runs

bool Pager::Impl::Arrived(Window& window) {
  for (; window.arrived < window.pages.size(); ++window.arrived) {
    const Page& page = *window.pages[window.arrived];
    if (page.state != PageState::kResident || page.claimed) return false;
  }
  return true;
}

void Pager::Impl::HandOutRuns(Request& request) {
  const auto arrived = [](Window& window) { return Arrived(window); };
  const auto next = request.windows.begin() + static_cast<std::ptrdiff_t>(request.handed_out);
  if (request.whole && !(request.at_end() && std::all_of(next, request.windows.end(), arrived))) return;
  while (request.handed_out < request.windows.size()) {
    Window& window = request.windows[request.handed_out];
    if (!Arrived(window)) return;
    HandOut(request, window);
  }
}

void Pager::Impl::HandOut(Request& request, Window& window) {
  RunAction run;
  run.request = request.id;
  run.window = window.number;
  run.last = request.at_end() && &window == &request.windows.back();
  run.missing = window.missing;
  request.visited += window.pages.size();
  run.pages.reserve(window.pages.size());
  for (Page* page : window.pages) {
    run.pages.push_back({RefOf(*page), frames.RefOf(page->frame), page->zero});
    run.leaves |= page->streams;
    Visit(*request.job, *page, request.spec.access);
  }
  window.handed_out = true;
  ++request.handed_out;
  request.started = true;
  pending.runs.push_back(std::move(run));
}

void Pager::Impl::Visit(Job& job, Page& page, Access access) {
  const std::uint64_t now = ++job.clock.now;
  if (page.last_use != 0) page.history.Record(now - page.last_use);
  page.last_use = now;
  page.referenced = true;
  if (access == Access::kRead) return;
  if (!page.dirty) {
    ++(page.extent->spec.evictable ? job.dirty : job.fixed_dirty);
    ++page.extent->dirty;
  }
  page.dirty = true;
  page.zero = false;
  page.undefined = false;
}

}  // namespace bitpager::paging
