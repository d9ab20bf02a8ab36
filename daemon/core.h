// What the roles of the dispatcher thread share: the device, the pager, the mover, the registry, counters and
// the clock. One of each per device; no locks, one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>

#include "client/wire/status.h"
#include "daemon/clock.h"
#include "daemon/device_room.h"
#include "daemon/histogram.h"
#include "daemon/mover.h"
#include "daemon/past_jobs.h"
#include "daemon/registry.h"
#include "daemon/settings.h"
#include "kernels/device.h"
#include "paging/pager.h"

namespace bitpager::daemon {

// Something that operators hear of; its device is known to whoever passes it on.
struct Notice {
  std::string name;  // of kEventNames, event.h
  std::string job;
  std::uint64_t bytes = 0;
  std::string text;
};

// Of all jobs together, those that are gone included. The pager counts pages.
struct Counters {
  JobCounters jobs;
  std::uint64_t requests = 0;
  std::uint64_t sessions_opened = 0;
  std::uint64_t sessions_lost = 0;
  std::map<wire::Code, std::uint64_t> errors;
  Histogram step;     // from the moment that a step's inputs are ready and it is its turn, to its end
  Histogram stall;    // the part of such a request in which none of it ran
  Histogram fault;    // one wait for a window whose pages were not there
  Histogram request;  // as step, of requests of every kind
};

struct Core {
  Core(const Settings& settings_in, kernels::Device& device_in, const Clock& clock_in)
      : settings(settings_in),
        device(device_in),
        device_info(device_in.Info()),
        clock(clock_in),
        pager(settings_in.pager),
        room(pager),
        mover(device_in, pager, clock_in) {}

  const Settings settings;
  kernels::Device& device;
  const kernels::DeviceInfo device_info;  // as it was at the start; free_bytes moves on
  const Clock& clock;
  paging::Pager pager;
  DeviceRoom room;
  Mover mover;
  Registry registry;
  Counters counters;
  PastJobs past_jobs;
  bool draining = false;
  std::function<void(const Notice&)> notify = [](const Notice&) {};

  void Tell(const Notice& notice);
  // What a client can bring about over and over: told once a second at most for each name and job, with how
  // often it came meanwhile.
  void TellSeldom(Notice notice);

  // Moves what the pager has seen of the job's peaks to the job and its sessions.
  void CollectPeaks(Job& job);
  // The session's peaks begin anew at what the job has now.
  void BeginPeaks(Session& session);

  [[nodiscard]] std::uint64_t page_bytes() const { return settings.pager.page_bytes; }

 private:
  struct Seldom {
    std::uint64_t told_ns = 0;
    std::uint64_t untold = 0;
  };
  std::map<std::pair<std::string, std::string>, Seldom> seldom_;  // by name and job
};

}  // namespace bitpager::daemon
