// Pages that come and go each step, where launches overlap copies: which, and what the pause between steps is
// used for. Dispatcher thread.
#include <algorithm>
#include <memory>
#include <tuple>
#include <utility>

#include "paging/pager_impl.h"

namespace bitpager::paging {
namespace {

// Parts whose successors are kept, and how many steps ahead one that lacks pages is looked for.
constexpr std::size_t kMostParts = 4096;
constexpr std::size_t kMostRanges = 256;  // of one that is kept
constexpr int kMostHops = 4;

bool IsStep(const Request& request) {
  return !request.cancelled && !request.spec.prefetch && request.spec.access == Access::kUpdate &&
         !request.spec.ranges.empty();
}

PartKey KeyOf(const Request& request) {
  const PageRange& first = request.spec.ranges.front();
  return {first.extent.value, first.first};
}

// A part of less than a window stays as long as others may go: its step would be over before its pages came.
bool MayStream(const Extent& extent, std::uint64_t window) {
  return !extent.zombie && extent.spec.evictable && extent.spec.pages >= window &&
         extent.spec.kind == wire::ExtentKind::kOptimizerState;
}

// Whether group `group` of an extent is one of those of its job that come and go: they lie evenly.
bool Streams(const Job& job, std::uint64_t group) {
  return (group * job.streaming + job.streams_from) % job.groups < job.streaming;
}

}  // namespace

// Where launches overlap copies, the pages of optimizer states that a job is short of should lie evenly among
// those that stay: then loads and stores go on beneath all of a step, not behind it. Steps visit the states
// in turn, and of pages already visited it is all the same which leaves; so those that leave are always of
// the same groups, a window each, one group every so often: as many as are missing, and `under_way` pages
// besides.
void Pager::Impl::Spread(Job& job, std::uint64_t under_way) {
  const std::uint64_t window = config.window_pages;
  const std::uint64_t frames_had = job.Unleased();
  const std::uint64_t groups = (job.pages + window - 1) / window;
  const std::uint64_t wanted = job.pages <= frames_had ? 0 : job.pages - frames_had + under_way;
  if (groups == job.groups && wanted == job.streams_wanted) return;
  job.groups = groups;
  job.streams_wanted = wanted;
  job.streaming = std::min(groups, (wanted + window - 1) / window);
  if (groups == 0) return;
  ChooseGroups(job);
  for (Extent* extent : job.extents) {
    if (!MayStream(*extent, window)) continue;
    for (Page& page : extent->pages) {
      const bool streams = Streams(job, page.index / window);
      if (streams == page.streams) continue;
      page.streams = streams;
      if (!page.listed) continue;
      Unlist(page);  // it has another place among the victims
      List(page);
    }
  }
}

// How many groups, and which: an extent's last one may be short, so that more are needed when it is among
// them, or fewer pages move when it is. Of a few ways the one with the fewest pages that are enough.
void Pager::Impl::ChooseGroups(Job& job) const {
  constexpr std::uint64_t kMore = 3;
  const std::uint64_t least = job.streaming;
  const std::uint64_t most = std::min(job.groups, least + kMore);
  std::uint64_t fewest = ~0ULL;
  std::pair<std::uint64_t, std::uint64_t> best{least, job.groups / 2};
  for (job.streaming = least; job.streaming <= most && fewest > job.streams_wanted; ++job.streaming) {
    for (const std::uint64_t from : {job.groups / 2, job.streaming}) {
      job.streams_from = from;
      const std::uint64_t pages = StreamingPages(job);
      if (pages < job.streams_wanted || pages >= fewest) continue;
      fewest = pages;
      best = {job.streaming, from};
    }
  }
  std::tie(job.streaming, job.streams_from) = best;
}

std::uint64_t Pager::Impl::StreamingPages(const Job& job) const {
  const std::uint64_t window = config.window_pages;
  std::uint64_t sum = 0;
  for (const Extent* extent : job.extents) {
    if (!MayStream(*extent, window)) continue;
    for (std::uint64_t at = 0; at < extent->spec.pages; at += window) {
      sum += Streams(job, at / window) ? std::min(window, extent->spec.pages - at) : 0;
    }
  }
  return sum;
}

// Training repeats itself: what was stepped after a part of the states, be it the whole, an arena or a bucket
// of a backward pass, is stepped after it again.
void Pager::Impl::Learn(Job& job, const Request& request) const {
  if (!config.loads_over_resident || job.streaming == 0 || !IsStep(request)) return;
  if (request.spec.ranges.size() > kMostRanges) return;
  if (job.after.size() >= kMostParts) job.after.clear();
  if (job.last_part.first != 0) job.after[job.last_part] = request.spec.ranges;
  job.last_part = KeyOf(request);
}

// A step that streams leaves the pages which the next one visits last. In the pause behind it they make room,
// and those come that are visited first: so much less is on the link when it matters.
void Pager::Impl::ExpectNext(Job& job, const Request& request) {
  if (!IsStep(request)) return;
  if (request.lacked) job.prepared = false;
  if (request.alone) return;
  if (!config.loads_over_resident || job.streaming == 0 || job.closing) return;
  if (auto hint = HintAfter(job, KeyOf(request)); hint != nullptr) Expect(job, request, std::move(hint));
}

// Queues a prefetch of the pager's own.
void Pager::Impl::Expect(Job& job, const Request& behind, std::unique_ptr<Request> hint) {
  hint->id = {++last_request};
  hint->job = &job;
  hint->by = behind.by;
  hint->born = decisions;
  job.queue.push_back(hint.get());
  const wire::RequestId id = hint->id;
  requests.emplace(id.value, std::move(hint));
}

// A prefetch of these pages. Null: some of them are gone, or not the job's own any more.
std::unique_ptr<Request> Pager::Impl::HintOf(const Job& job, const std::vector<PageRange>& ranges) const {
  auto hint = std::make_unique<Request>();
  hint->spec = {job.id, Access::kRead, ranges, true};
  for (const PageRange& range : ranges) {
    Extent* const extent = FindExtent(range.extent);
    if (extent == nullptr || extent->zombie || extent->job != &job) return nullptr;
    hint->extents.push_back(extent);
  }
  hint->SkipEmptyRanges();
  return hint;
}

// Whether a page of the request is on the host alone.
bool Pager::Impl::Lacks(const Request& request) {
  for (std::size_t i = 0; i < request.extents.size(); ++i) {
    const PageRange& range = request.spec.ranges[i];
    const auto begin = request.extents[i]->pages.begin() + static_cast<std::ptrdiff_t>(range.first);
    const auto is_on_host = [](const Page& page) { return page.state == PageState::kHostOnly; };
    if (std::any_of(begin, begin + static_cast<std::ptrdiff_t>(range.count), is_on_host)) return true;
  }
  return false;
}

// Of what follows on `part`, the first that lacks a page. Null: none is known, or nothing lacks.
std::unique_ptr<Request> Pager::Impl::HintAfter(Job& job, PartKey part) {
  for (int hop = 0; hop < kMostHops; ++hop) {
    const auto known = job.after.find(part);
    if (known == job.after.end()) return nullptr;
    auto hint = HintOf(job, known->second);
    if (hint == nullptr || Lacks(*hint)) return hint;
    part = KeyOf(*hint);
  }
  return nullptr;
}

// Behind a step whose pages come and go: the last of them leave, the first of the next step come, all but a
// stride of what may be under way, whose frames stay free for the step's own first loads. By whole groups,
// which are copied in one piece. What is wanted only when most of the job's other pages have been does not
// come.
void Pager::Impl::Prepare(Job& job, Request& request) {
  std::erase_if(request.coming,
                [](const Page* page) { return !page->claimed && page->state != PageState::kLoading; });
  if (request.at_end()) return;
  job.prepared = true;
  const Pace pace = PaceOf(job);
  const std::uint64_t limit = job.Limit();
  const std::uint64_t soon = job.clock.now + job.clock.usual_gap / 2;
  std::vector<Page*> first;
  for (; !request.at_end() && first.size() + pace.stride < pace.under_way; request.Advance()) {
    Page& page = *PageAt(request);
    if (!page.streams || page.state != PageState::kHostOnly || page.claimed) continue;
    if (ExpectedUse(page, job.clock) <= soon) first.push_back(&page);
  }
  request.cursor = {request.spec.ranges.size(), 0};
  if (first.empty()) return;
  while (job.Settled() + pace.under_way > limit) {
    Page* victim = VictimOf(job);
    if (victim == nullptr || !victim->streams) break;
    if (ExpectedUse(*victim, job.clock) <= ExpectedUse(*first.back(), job.clock)) break;
    EvictGroup(*victim, Reason::kPrefetch);
  }
  for (std::size_t at = 0; at < first.size();) {
    std::size_t end = at + 1;
    while (end < first.size() && first[end]->mark == first[at]->mark) ++end;
    const PoolId pool = first[at]->extent->pool;
    if (job.Settled() + (end - at) + pace.stride > limit || frames.Available(pool) < end - at) return;
    for (; at < end; ++at) {
      Claim(*first[at]);
      request.coming.push_back(first[at]);
    }
  }
}

// Where some pages come and go and the others stay: whether one that stays would have to leave now, though
// windows that come before hold such as go, and let go of them soon.
bool Pager::Impl::AwaitsStreaming(Job& job, const Request& request, std::uint64_t need) {
  if (job.Settled() + need <= job.Limit()) return false;
  const Page* victim = VictimOf(job);
  if (victim != nullptr) {
    if (victim->streams) return false;
    // Nothing came in a pause, so that what the link is given first is what counts.
    if (!job.prepared && MayStream(*victim->extent, config.window_pages)) return false;
  }
  const auto goes = [](const Page* page) { return page->streams; };
  return std::any_of(request.windows.begin(), request.windows.end(), [&](const Window& window) {
    return !window.missing && std::any_of(window.pages.begin(), window.pages.end(), goes);
  });
}

}  // namespace bitpager::paging
