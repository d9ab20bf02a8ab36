#include "daemon/mover.h"

#include <algorithm>
#include <iterator>

namespace bitpager::daemon {
namespace {

// Fills given-up frames, so that a use after eviction shows at once.
constexpr int kPoisonByte = 0xA5;

// Host memory given back at once: little enough that a store behind it waits a few ms at most.
constexpr std::uint64_t kGiveBackBytes = 16U << 20;

// Of pages that move between the device and the disk at once: enough for two transfers and the copies behind
// them.
constexpr std::uint64_t kDiskSlotBytes = std::uint64_t{16} << 20;
constexpr std::uint64_t kLeastDiskSlots = 8;
constexpr std::uint64_t kMostDiskSlots = 64;

// The next action continues the copy that ends at (`device`, `host`).
bool Continues(const std::byte* device_end, const std::byte* host_end, const std::byte* device,
               const std::byte* host) {
  return device_end == device && host_end == host;
}

}  // namespace

Mover::~Mover() {
  disk_.End();
  for (const Copy& copy : copies_) device_.Synchronize(copy.event);
  device_.Synchronize(last_poison_);
  for (const auto& [number, segment] : segments_) device_.FreeSegment(segment.memory.id);
}

wire::Status Mover::Start(const std::string& disk_folder) {
  wire::Result<kernels::HostRegion> region =
      device_.ReserveHost(pager_.config().host_frames * pager_.config().page_bytes);
  if (!region.ok()) return region.status();
  host_ = *region;
  if (pager_.config().disk_frames == 0) return {};
  const std::uint64_t slots = kDiskSlotBytes / pager_.config().page_bytes;
  return disk_.Start(disk_folder, std::clamp(slots, kLeastDiskSlots, kMostDiskSlots));
}

int Mover::Apply(const paging::Actions& actions) {
  // Fills are a debugging aid, so waiting for one here costs nobody who measures.
  if (!actions.free_segments.empty()) device_.Synchronize(last_poison_);
  for (const std::uint32_t number : actions.free_segments) {
    const auto found = segments_.find(number);
    if (found == segments_.end()) continue;
    device_.FreeSegment(found->second.memory.id);
    segments_.erase(found);
  }
  const int refused = AllocateSegments(actions.new_segments);
  for (const paging::HostRun& run : actions.free_host) {
    if (!OnDisk(run.first)) GiveBackLater(run);  // room on disk stays set aside
  }
  Poison(actions.poison);
  Store(actions.stores);
  Load(actions.loads);
  return refused;
}

int Mover::AllocateSegments(const std::vector<paging::SegmentRequest>& wanted) {
  const paging::PagerConfig& config = pager_.config();
  int refused = 0;
  for (const paging::SegmentRequest& want : wanted) {
    wire::Result<kernels::DeviceSegment> made =
        device_.AllocateSegment(config.segment_frames, config.page_bytes, want.domain);
    if (made.ok()) {
      segments_[want.segment] = Segment{*made, want.domain};
    } else {
      pager_.SegmentRefused(want.segment);
      ++refused;
    }
  }
  return refused;
}

void Mover::Poison(const std::vector<paging::FrameRef>& frames) {
  if (frames.empty()) return;
  kernels::Event event;
  for (const paging::FrameRef frame : frames) {
    std::byte* at = AddressOf(frame);
    if (at != nullptr)
      event = device_.Fill(kernels::Queue::kLoad, at, kPoisonByte, pager_.config().page_bytes);
  }
  // Loads queue behind it by themselves; a run on a frame that needs no load must not overtake it.
  if (event.sequence == 0) return;
  device_.Wait(kernels::Queue::kCompute, event);
  last_poison_ = event;
}

void Mover::Store(const std::vector<paging::StoreAction>& stores) {
  const std::uint64_t page = pager_.config().page_bytes;
  if (!giving_back_.empty()) {
    for (const paging::StoreAction& store : stores) KeepHost(store.host_frame);
  }
  for (std::size_t i = 0; i < stores.size();) {
    if (OnDisk(stores[i].host_frame)) {
      disk_.Store(stores[i].page, stores[i].host_frame - pager_.config().host_frames,
                  AddressOf(stores[i].frame));
      ++i;
      continue;
    }
    const std::byte* from = AddressOf(stores[i].frame);
    std::byte* to = HostAddress(stores[i].host_frame);
    Copy copy;
    std::uint64_t bytes = 0;
    do {
      copy.pages.push_back(stores[i].page);
      bytes += page;
      ++i;
    } while (
        i < stores.size() && !OnDisk(stores[i].host_frame) && stores[i].group == stores[i - 1].group &&
        Continues(from + bytes, to + bytes, AddressOf(stores[i].frame), HostAddress(stores[i].host_frame)));
    copy.bytes = bytes;
    copy.event = device_.Copy(kernels::Queue::kStore, to, from, bytes);
    Issue(std::move(copy));
  }
}

void Mover::Load(const std::vector<paging::LoadAction>& loads) {
  const std::uint64_t page = pager_.config().page_bytes;
  for (std::size_t i = 0; i < loads.size();) {
    if (AddressOf(loads[i].frame) == nullptr) {  // its segment was refused: the pager took the page back
      ++i;
      continue;
    }
    Copy copy;
    copy.load = true;
    if (loads[i].zero) {  // nothing to copy: reported at the next Poll
      copy.pages.push_back(loads[i++].page);
      copies_.push_back(std::move(copy));
      continue;
    }
    std::byte* to = AddressOf(loads[i].frame);
    if (OnDisk(loads[i].host_frame)) {
      disk_.Load(loads[i].page, loads[i].host_frame - pager_.config().host_frames, to);
      ++i;
      continue;
    }
    const std::byte* from = HostAddress(loads[i].host_frame);
    std::uint64_t bytes = 0;
    do {
      copy.pages.push_back(loads[i].page);
      bytes += page;
      ++i;
    } while (
        i < loads.size() && !loads[i].zero && !OnDisk(loads[i].host_frame) &&
        loads[i].group == loads[i - 1].group &&
        Continues(to + bytes, from + bytes, AddressOf(loads[i].frame), HostAddress(loads[i].host_frame)));
    copy.bytes = bytes;
    copy.event = device_.Copy(kernels::Queue::kLoad, to, from, bytes);
    Issue(std::move(copy));
  }
}

void Mover::Issue(Copy copy) {
  LinkMeter& meter = copy.load ? to_device_ : to_host_;
  meter.Issued(copy.bytes, meter.idle() ? clock_.NowNs() : 0);
  copies_.push_back(std::move(copy));
}

int Mover::Poll() {
  int reported = 0;
  std::uint64_t now_ns = 0;
  const auto done = [&](const Copy& copy) {
    if (copy.event.sequence != 0 && !device_.Done(copy.event)) return false;
    if (copy.bytes > 0) {
      if (now_ns == 0) now_ns = clock_.NowNs();
      (copy.load ? to_device_ : to_host_).Ended(copy.bytes, now_ns);
    }
    for (const paging::PageRef page : copy.pages) {
      copy.load ? pager_.LoadDone(page) : pager_.StoreDone(page);
      ++reported;
    }
    return true;
  };
  copies_.erase(std::remove_if(copies_.begin(), copies_.end(), done), copies_.end());
  return reported + disk_.Poll() + GiveBackHost();
}

void Mover::ExpectHost(wire::ExtentId extent, std::uint64_t pages) {
  const std::uint64_t page = pager_.config().page_bytes;
  for (std::uint64_t i = 0; i < pages;) {
    const std::uint64_t first = pager_.HostFrameOf({extent, i});
    std::uint64_t count = 1;
    while (i + count < pages && pager_.HostFrameOf({extent, i + count}) == first + count) ++count;
    device_.ExpectHost(HostAddress(first), count * page);
    i += count;
  }
}

std::byte* Mover::AddressOf(paging::FrameRef frame) const {
  const auto found = segments_.find(frame.segment);
  if (found == segments_.end()) return nullptr;
  return found->second.memory.base + frame.slot * pager_.config().page_bytes;
}

const kernels::DeviceSegment* Mover::SegmentOf(paging::FrameRef frame) const {
  const auto found = segments_.find(frame.segment);
  return found == segments_.end() ? nullptr : &found->second.memory;
}

std::uint64_t Mover::MappingOf(const kernels::DeviceSegment& segment) const {
  const auto fd = static_cast<std::uint64_t>(segment.fd) + 1;
  return in_host_memory_ ? fd : std::uint64_t{segment.id} << 32 | fd;
}

const kernels::DeviceSegment* Mover::ExportedBy(std::uint64_t mapping, paging::DomainId domain) const {
  for (const auto& [number, segment] : segments_) {
    const bool shared = segment.domain == domain && segment.domain != paging::kPrivateDomain;
    if (shared && segment.memory.fd >= 0 && MappingOf(segment.memory) == mapping) {
      return &segment.memory;
    }
  }
  return nullptr;
}

// Merges: the run, or a part of it, may still wait from an earlier owner, and a newer one that never stored
// left it there. One frame in two runs would be given back by one of them after it was kept from the other.
void Mover::GiveBackLater(paging::HostRun run) {
  std::uint64_t end = run.first + run.count;
  auto next = giving_back_.upper_bound(run.first);
  if (next != giving_back_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second >= run.first) next = before;
  }
  while (next != giving_back_.end() && next->first <= end) {
    run.first = std::min(run.first, next->first);
    end = std::max(end, next->first + next->second);
    next = giving_back_.erase(next);
  }
  giving_back_[run.first] = end - run.first;
}

int Mover::GiveBackHost() {
  if (giving_back_.empty() || !GivenBack()) return 0;
  const std::uint64_t page = pager_.config().page_bytes;
  const auto [first, count] = *giving_back_.begin();
  const std::uint64_t piece = std::min(count, std::max<std::uint64_t>(1, kGiveBackBytes / page));
  giving_back_.erase(giving_back_.begin());
  if (piece < count) giving_back_[first + piece] = count - piece;
  given_back_ = device_.DecommitHost(HostAddress(first), piece * page);
  return 1;
}

void Mover::KeepHost(std::uint64_t frame) {
  auto run = giving_back_.upper_bound(frame);
  if (run == giving_back_.begin()) return;
  --run;
  const auto [first, count] = *run;
  if (frame >= first + count) return;
  giving_back_.erase(run);
  if (frame > first) giving_back_[first] = frame - first;
  if (frame + 1 < first + count) giving_back_[frame + 1] = first + count - frame - 1;
}

}  // namespace bitpager::daemon
