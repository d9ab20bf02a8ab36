// Laboratory: step time by the share of pages that do not fit, one idea a rung. See README.md beside it.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "tests/paging/overlap_sim.h"

using bitpager::paging::OverlapSim;
using bitpager::paging::PagerConfig;
using bitpager::paging::Timing;

namespace {

// 1e9 bf16 parameters' two 8-bit states in pages of 512 KiB; three are of small states in 32 bits.
constexpr std::uint64_t kPages = 3875;
constexpr std::uint64_t kSmallPages = 3;

struct Rung {
  std::string name;
  std::uint32_t window = 32;
  std::uint32_t in_flight = 6;
  double look_us = 20;
  double turn_us = 200;
};

// As a trace of the daemon on an H100 has them.
Timing Traced(const Rung& rung) {
  Timing timing;
  timing.page_copy_us = 10.5;
  timing.copy_us = 6;
  timing.page_step_us = 0.93;
  timing.launch_us = 14;
  timing.look_us = rung.look_us;
  timing.turn_us = rung.turn_us;
  return timing;
}

double StepMs(const Rung& rung, std::uint64_t percent, bool pause) {
  PagerConfig config;
  config.device_frames = 4800;
  config.host_frames = 16384;
  config.segment_frames = 32;
  config.window_pages = rung.window;
  config.windows_in_flight = rung.in_flight;
  config.least_under_way = 3 * rung.window;
  config.loads_over_resident = true;
  config.first_pages = 96;
  const std::uint64_t all = kPages + kSmallPages;
  const std::uint64_t frames = std::max<std::uint64_t>(96, all * (100 - percent) / 100);
  OverlapSim sim(config, kPages, Traced(rung), frames, kSmallPages);
  for (int i = 0; i < 10; ++i) static_cast<void>(sim.RunStep(pause));
  double us = 0;
  for (int i = 0; i < 5; ++i) us += sim.RunStep(pause).us / 5;
  return us / 1000;
}

}  // namespace

// Arguments: names of rungs; none: all.
int main(int argc, char** argv) {
  const std::vector<std::string> wanted(argv + 1, argv + argc);
  const std::vector<Rung> rungs = {
      {.name = "daemon"},
      {.name = "half-windows", .window = 16},
      {.name = "half-windows-12", .window = 16, .in_flight = 12},
      {.name = "quarter-windows", .window = 8, .in_flight = 12},
      {.name = "quick-looks", .look_us = 5},
      {.name = "no-turn", .turn_us = 0},
  };
  std::printf("%-18s", "ms a step");
  for (const int percent : {5, 10, 20, 30, 50, 80, 100}) std::printf("%7d%%", percent);
  std::printf("\n");
  for (const Rung& rung : rungs) {
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), rung.name) == wanted.end()) continue;
    for (const bool pause : {true, false}) {
      std::printf("%-18s", (pause ? rung.name : "  without a pause").c_str());
      for (const std::uint64_t percent : {5, 10, 20, 30, 50, 80, 100}) {
        std::printf("%8.2f", StepMs(rung, percent, pause));
      }
      std::printf("\n");
    }
  }
  return 0;
}
