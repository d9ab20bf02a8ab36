// Weights that do not fit: which is read next, and its way to the device while the client works with the last
// one. Dispatcher thread.
#include <memory>
#include <utility>

#include "paging/pager_impl.h"

namespace bitpager::paging {
namespace {

constexpr std::size_t kMostReads = 16384;  // pairs of weights whose successors are kept

}  // namespace

// One that is worth learning from: of a whole weight, by a job that is short of frames. What several jobs
// share they read in no common order.
bool Pager::Impl::IsReadOfWeight(const Job& job, const Request& request) const {
  const bool reads = !request.cancelled && !request.spec.prefetch && request.spec.access == Access::kRead &&
                     request.spec.ranges.size() == 1 && request.by == &job;
  if (!config.loads_over_resident || !reads || job.closing || job.pages <= job.Limit()) return false;
  const Extent* const extent = FindExtent(request.spec.ranges.front().extent);
  return extent != nullptr && !extent->zombie && extent->spec.kind == wire::ExtentKind::kQuantizedWeight &&
         request.spec.ranges.front().count == extent->spec.pages;
}

// Training and inference repeat themselves: what was read after two weights is read after them again. Of one
// weight alone it would not be known: backward reads in another order than forward. It is believed once it
// was so twice running: what comes for nothing takes the link and the place of what is needed.
void Pager::Impl::LearnRead(Job& job, const Request& request) {
  const PageRange& read = request.spec.ranges.front();
  if (job.read_after.size() >= kMostReads) job.read_after.clear();
  if (job.last_read.first != 0) {
    Job::Next& next = job.read_after[job.last_read];
    next = {read, next.read.extent == read.extent};
  }
  job.last_read = {job.last_read.second, read.extent.value};
}

// Behind a read whose weight is done with: the next one's pages come, in place of those that are read later.
void Pager::Impl::ExpectRead(Job& job, const Request& request) {
  if (request.alone) return;
  const auto known = job.read_after.find(job.last_read);
  if (known == job.read_after.end() || !known->second.again) return;
  auto hint = HintOf(job, {known->second.read});
  if (hint == nullptr || !Lacks(*hint)) return;
  hint->of_weight = true;
  Expect(job, request, std::move(hint));
}

}  // namespace bitpager::paging
