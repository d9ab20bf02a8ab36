// What the roles of the dispatcher thread share: the device, the pager, the mover, the registry, counters and
// the clock. One of each per device; no locks, one thread.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "client/wire/status.h"
#include "daemon/device_room.h"
#include "daemon/mover.h"
#include "daemon/registry.h"
#include "daemon/settings.h"
#include "kernels/device.h"
#include "paging/pager.h"

namespace bitpager::daemon {

// Time as the daemon reads it; tests replace it.
class Clock {
 public:
  virtual ~Clock() = default;
  [[nodiscard]] virtual std::uint64_t NowNs() const {
    return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                          std::chrono::steady_clock::now().time_since_epoch())
                                          .count());
  }
};

// Something that operators hear of.
struct Notice {
  std::string name;
  std::string job;
  std::uint64_t bytes = 0;
  std::string text;
};

struct Counters {
  std::uint64_t steps = 0;
  std::uint64_t requests = 0;
  std::uint64_t stall_ns = 0;
  std::uint64_t nonfinite_blocks = 0;
  std::uint64_t sessions_opened = 0;
  std::uint64_t sessions_lost = 0;
  // Of pages, from jobs that are gone; living jobs count for themselves in the pager.
  std::uint64_t past_loaded_pages = 0;
  std::uint64_t past_stored_pages = 0;
  std::uint64_t past_dropped_pages = 0;
  std::map<wire::Code, std::uint64_t> errors;
};

struct Core {
  Core(const Settings& settings_in, kernels::Device& device_in, const Clock& clock_in)
      : settings(settings_in),
        device(device_in),
        device_info(device_in.Info()),
        clock(clock_in),
        pager(settings_in.pager),
        room(pager),
        mover(device_in, pager) {}

  const Settings settings;
  kernels::Device& device;
  const kernels::DeviceInfo device_info;  // as it was at the start; free_bytes moves on
  const Clock& clock;
  paging::Pager pager;
  DeviceRoom room;
  Mover mover;
  Registry registry;
  Counters counters;
  bool draining = false;
  std::function<void(const Notice&)> notify = [](const Notice&) {};

  [[nodiscard]] std::uint64_t page_bytes() const { return settings.pager.page_bytes; }
};

}  // namespace bitpager::daemon
