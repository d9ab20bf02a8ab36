// Rebuilds traces from the counts of steps in a row of snapshots. One thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "daemon/snapshot.h"
#include "tools/replay_main/trace.h"

namespace bitpager::replay {

class StepTrace {
 public:
  // Adds the steps between two snapshots of one daemon. Of a job that was not there before, those since its
  // start.
  void Add(const daemon::Snapshot& before, const daemon::Snapshot& now);
  // Another daemon: its extents are others, whatever their numbers.
  void NextDaemon() { ++daemon_; }

  // One for each device, named `name`, with the device behind it when there are several.
  [[nodiscard]] std::vector<Trace> Take(const std::string& name);
  [[nodiscard]] std::uint64_t weights() const { return weights_.size(); }
  [[nodiscard]] std::uint64_t steps_left_out() const { return left_out_; }

 private:
  struct Stepped {
    std::string device;
    TraceRequest request;
    std::uint64_t steps = 0;
  };
  struct ExtentKey {
    std::uint64_t daemon = 0;
    std::string device;
    std::uint64_t extent = 0;
    auto operator<=>(const ExtentKey&) const = default;
  };
  void AddJob(const daemon::JobSnapshot* before, const daemon::JobSnapshot& now, std::vector<Stepped>& out);
  [[nodiscard]] TraceRequest RequestOf(const daemon::JobSnapshot& job, const daemon::ExtentSnapshot& extent);
  void Interleave(const std::vector<Stepped>& stepped);

  std::uint64_t daemon_ = 0;
  std::uint64_t visits_ = 0;
  std::uint64_t left_out_ = 0;
  std::map<std::string, Trace> traces_;         // by device
  std::map<ExtentKey, std::uint32_t> extents_;  // index into its trace's extents
  std::map<ExtentKey, bool> weights_;           // seen
};

}  // namespace bitpager::replay
