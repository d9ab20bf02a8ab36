// The mover: performs what the pager decided. Owns the device segments and the host region, issues copies on
// the load and store queues, and reports each completion back. Dispatcher thread.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <unordered_map>
#include <vector>

#include "client/wire/status.h"
#include "daemon/clock.h"
#include "daemon/link_meter.h"
#include "kernels/device.h"
#include "paging/pager.h"

namespace bitpager::daemon {

class Mover {
 public:
  Mover(kernels::Device& device, paging::Pager& pager, const Clock& clock)
      : device_(device), pager_(pager), clock_(clock), in_host_memory_(device.Info().in_host_memory) {}
  ~Mover();
  Mover(const Mover&) = delete;
  Mover& operator=(const Mover&) = delete;

  // Reserves host memory for every frame of the host budget; committed when first written.
  [[nodiscard]] wire::Status Start();

  // Issues segments, poison, stores and loads of `actions`. Runs are the caller's. Returns how many segments
  // the device refused: the pager knows, and must decide anew.
  int Apply(const paging::Actions& actions);
  // Reports finished copies to the pager. Returns how many.
  int Poll();

  [[nodiscard]] std::byte* AddressOf(paging::FrameRef frame) const;
  [[nodiscard]] const kernels::DeviceSegment* SegmentOf(paging::FrameRef frame) const;
  // What LeaseFrame::mapping says of an exported segment. Unique among all that ever were, but for host
  // memory, where segments of one domain lie in one file that never ends.
  [[nodiscard]] std::uint64_t MappingOf(const kernels::DeviceSegment& segment) const;
  // The segment of a share domain with this mapping; null when there is none.
  [[nodiscard]] const kernels::DeviceSegment* ExportedBy(std::uint64_t mapping,
                                                         paging::DomainId domain) const;
  // Pages are on their way between the tiers.
  [[nodiscard]] bool copying() const { return !copies_.empty(); }
  // What the copies of each direction have achieved.
  [[nodiscard]] const LinkMeter& to_device() const { return to_device_; }
  [[nodiscard]] const LinkMeter& to_host() const { return to_host_; }
  [[nodiscard]] bool idle() const { return copies_.empty() && giving_back_.empty() && GivenBack(); }

  // The extent's host frames were committed: they will be used.
  void ExpectHost(wire::ExtentId extent, std::uint64_t pages);

 private:
  struct Segment {
    kernels::DeviceSegment memory;
    paging::DomainId domain = paging::kPrivateDomain;
  };
  struct Copy {
    kernels::Event event;
    bool load = false;
    std::uint64_t bytes = 0;
    std::vector<paging::PageRef> pages;
  };

  void Issue(Copy copy);
  [[nodiscard]] int AllocateSegments(const std::vector<paging::SegmentRequest>& wanted);
  // Host memory of frames that are nobody's goes back to the system piece by piece, behind other stores.
  void GiveBackLater(paging::HostRun run);
  int GiveBackHost();
  [[nodiscard]] bool GivenBack() const { return given_back_.sequence == 0 || device_.Done(given_back_); }
  // Host frame `frame` is in use again before it was given back.
  void KeepHost(std::uint64_t frame);
  void Poison(const std::vector<paging::FrameRef>& frames);
  void Store(const std::vector<paging::StoreAction>& stores);
  void Load(const std::vector<paging::LoadAction>& loads);
  [[nodiscard]] std::byte* HostAddress(std::uint64_t frame) const {
    return host_.base + frame * pager_.config().page_bytes;
  }

  kernels::Device& device_;
  paging::Pager& pager_;
  const Clock& clock_;
  LinkMeter to_device_;
  LinkMeter to_host_;
  const bool in_host_memory_;  // device frames are host memory
  kernels::HostRegion host_;
  std::unordered_map<std::uint32_t, Segment> segments_;  // by the pager's number
  std::deque<Copy> copies_;
  std::map<std::uint64_t, std::uint64_t> giving_back_;  // host frames to give back: first -> count, disjoint
  kernels::Event given_back_;                           // the piece under way
  kernels::Event last_poison_;  // the newest fill; nothing it may write to is freed before it is done
};

}  // namespace bitpager::daemon
