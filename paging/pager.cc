#include "paging/pager.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <utility>

#include "paging/pager_impl.h"

namespace bitpager::paging {
namespace {

template <typename T>
void MoveTo(std::vector<T>& to, std::vector<T>& from) {
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
  from.clear();
}

}  // namespace

void Broken(const char* what) {
  std::fprintf(stderr, "<2>pager: broken invariant: %s\n", what);
  std::abort();
}

bool Actions::empty() const {
  return free_segments.empty() && new_segments.empty() && free_host.empty() && drops.empty() &&
         poison.empty() && stores.empty() && loads.empty() && runs.empty() && revokes.empty() &&
         finished.empty() && ended.empty();
}

Pager::Impl::Impl(const PagerConfig& c)
    : config(c),
      frames(std::max(1U, c.segment_frames), c.poison),
      host(c.host_frames),
      disk(c.disk_frames, c.host_frames) {
  config.segment_frames = std::max(1U, c.segment_frames);
  config.window_pages = std::max(1U, c.window_pages);
  config.windows_in_flight = std::max(1U, c.windows_in_flight);
  if (config.least_under_way == 0) config.least_under_way = config.window_pages;
  frames.SetBudget(c.device_frames / config.segment_frames);
}

void Pager::Impl::Pump(Actions& out) {
  ++decisions;
  if (unsettled) SettleHomes();
  if (shares_stale) RecomputeShares();
  EnforceLimits();
  Advance();
  BuryJobs();
  NotePeaks();
  // What leaves together leaves in the order of the host's memory, so that neighbours are copied in one
  // piece.
  std::sort(pending.stores.begin(), pending.stores.end(),
            [](const StoreAction& a, const StoreAction& b) { return a.host_frame < b.host_frame; });
  MoveTo(out.free_segments, pending.free_segments);
  MoveTo(out.new_segments, pending.new_segments);
  MoveTo(out.drops, pending.drops);
  MoveTo(out.poison, pending.poison);
  MoveTo(out.stores, pending.stores);
  MoveTo(out.loads, pending.loads);
  MoveTo(out.runs, pending.runs);
  MoveTo(out.revokes, pending.revokes);
  MoveTo(out.free_host, pending.free_host);
  MoveTo(out.finished, pending.finished);
  MoveTo(out.ended, pending.ended);
  out.more = std::exchange(pending.more, false);
}

Job* Pager::Impl::FindJob(wire::JobId id) const {
  const auto it = jobs.find(id.value);
  return it == jobs.end() ? nullptr : it->second.get();
}

Extent* Pager::Impl::FindExtent(wire::ExtentId id) const {
  const auto it = extents.find(id.value);
  return it == extents.end() ? nullptr : it->second.get();
}

Page* Pager::Impl::FindPage(PageRef ref) const {
  Extent* extent = FindExtent(ref.extent);
  return extent == nullptr || ref.index >= extent->pages.size() ? nullptr : &extent->pages[ref.index];
}

Pager::Pager(const PagerConfig& config) : impl_(std::make_unique<Impl>(config)) {}
Pager::~Pager() = default;

wire::Status Pager::AddJob(wire::JobId id, const JobSpec& spec) {
  return impl_->AddJob(id, spec);
}
wire::Status Pager::SetJob(wire::JobId id, const JobSpec& spec) {
  return impl_->SetJob(id, spec);
}
void Pager::RemoveJob(wire::JobId id) {
  impl_->RemoveJob(id);
}
wire::Status Pager::SetDeviceFrames(std::uint64_t frames) {
  return impl_->SetDeviceFrames(frames);
}
wire::Result<wire::ExtentId> Pager::AddExtent(const ExtentSpec& spec) {
  return impl_->AddExtent(spec);
}
void Pager::RemoveExtent(wire::ExtentId id) {
  impl_->RemoveExtent(id);
}
wire::Status Pager::AddUse(wire::ExtentId id, wire::JobId job) {
  return impl_->AddUse(id, job);
}
void Pager::RemoveUse(wire::ExtentId id, wire::JobId job) {
  impl_->RemoveUse(id, job);
}
std::optional<wire::JobId> Pager::OldestUserOf(wire::ExtentId id) const {
  const Extent* extent = impl_->FindExtent(id);
  if (extent == nullptr || extent->users.empty()) return std::nullopt;
  return extent->users.front()->id;
}
std::uint64_t Pager::UsesOf(wire::ExtentId id) const {
  const Extent* extent = impl_->FindExtent(id);
  return extent == nullptr ? 0 : extent->users.size();
}
wire::Result<wire::RequestId> Pager::Submit(const RequestSpec& spec) {
  return impl_->Submit(spec);
}
void Pager::Cancel(wire::RequestId id) {
  impl_->Cancel(id);
}

bool Pager::Started(wire::RequestId id) const {
  const auto it = impl_->requests.find(id.value);
  return it != impl_->requests.end() && it->second->started;
}

wire::Status Pager::Lease(wire::ExtentId id) {
  return impl_->Lease(id);
}
void Pager::LeaseReleased(wire::ExtentId id) {
  impl_->LeaseReleased(id);
}
void Pager::LeaseOverdue(wire::ExtentId id) {
  impl_->LeaseOverdue(id);
}
wire::Status Pager::CheckReplace(wire::ExtentId old, const ExtentSpec& spec) {
  return impl_->CheckReplace(old, spec);
}
void Pager::GiveBackUnused() {
  impl_->GiveBackUnused();
}
std::uint64_t Pager::Evict(wire::JobId id, std::uint64_t frames, Reason reason) {
  return impl_->Evict(id, frames, reason);
}
void Pager::EvictExtent(wire::ExtentId id, Reason reason) {
  impl_->EvictExtent(id, reason);
}
void Pager::Pump(Actions& out) {
  impl_->Pump(out);
}
void Pager::LoadDone(PageRef page) {
  impl_->LoadDone(page);
}
void Pager::StoreDone(PageRef page) {
  impl_->StoreDone(page);
}
void Pager::RunDone(wire::RequestId request, std::uint64_t window) {
  impl_->RunDone(request, window);
}
void Pager::SegmentRefused(std::uint32_t segment) {
  impl_->SegmentRefused(segment);
}

PageState Pager::StateOf(PageRef ref) const {
  const Page* page = impl_->FindPage(ref);
  return page == nullptr ? PageState::kHostOnly : page->state;
}

std::optional<FrameRef> Pager::FrameOf(PageRef ref) const {
  const Page* page = impl_->FindPage(ref);
  if (page == nullptr || page->state != PageState::kResident || page->undefined) return std::nullopt;
  return impl_->frames.RefOf(page->frame);
}

std::uint64_t Pager::HostFrameOf(PageRef ref) const {
  const Page* page = impl_->FindPage(ref);
  return page == nullptr ? ~0ULL : page->host_frame;
}

bool Pager::Servable(wire::RequestId id) const {
  if (impl_->shares_stale) impl_->RecomputeShares();
  const auto it = impl_->requests.find(id.value);
  return it == impl_->requests.end() || it->second->started || impl_->Servable(*it->second);
}

std::uint64_t Pager::free_frames() const {
  const std::uint64_t total = impl_->frames.budget() * impl_->config.segment_frames;
  return total > impl_->frames.used_frames() ? total - impl_->frames.used_frames() : 0;
}

std::uint64_t Pager::allocated_frames() const {
  return impl_->frames.existing() * impl_->config.segment_frames;
}

std::uint64_t Pager::staying_frames() const {
  return impl_->frames.staying() * impl_->config.segment_frames;
}

std::uint64_t Pager::LeastDeviceFrames() const {
  return impl_->MissingFrames(0, 0);
}

std::uint64_t Pager::used_host_frames() const {
  return impl_->host.total() - impl_->host.free();
}

std::uint64_t Pager::used_disk_frames() const {
  return impl_->disk.total() - impl_->disk.free();
}
const PagerConfig& Pager::config() const {
  return impl_->config;
}
void Pager::CheckInvariants() const {
  impl_->CheckInvariants();
}

}  // namespace bitpager::paging
