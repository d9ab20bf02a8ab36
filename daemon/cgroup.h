// This process's place in the cgroup hierarchies, from files only. Used by machine.cc.
#pragma once

#include <optional>
#include <string>

#include "daemon/machine.h"

namespace bitpager::daemon {

// `root` goes before every path. No memory cgroup in sight: version 0.
[[nodiscard]] CgroupMemory ReadCgroupMemory(const std::string& root);
// Processors that the CPU controller grants, the least on the way to the root; none: unlimited.
[[nodiscard]] std::optional<double> ReadCpuQuota(const std::string& root);

}  // namespace bitpager::daemon
