// A snapshot as Prometheus reads it (text format 0.0.4). Any thread.
//
// Written here rather than by prometheus-cpp: distributions have that as a shared C++ library alone, which
// would bring this machine's C++ runtime, and with it its glibc, into programs that carry their own to run on
// older systems.
#pragma once

#include <string>

#include "daemon/snapshot.h"

namespace bitpager::daemon {

// Every metric is bitpager_*, its labels those of gpu (the driver's index, or "cpu"), UUID, job, kind,
// direction, reason and so on that it has; jobs of several users under one name are summed. Counts of jobs
// that ended go on under their names. Sums of bytes over jobs equal the devices' figures, as in the snapshot.
[[nodiscard]] std::string ToPrometheus(const Snapshot& snapshot);

// With \, " and line feed escaped, and whatever is no UTF-8 replaced.
[[nodiscard]] std::string EscapeLabel(const std::string& value);

}  // namespace bitpager::daemon
