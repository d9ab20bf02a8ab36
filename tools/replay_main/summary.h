// A recording's summary in words and as JSON. Pure.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "tools/replay_main/recording.h"

namespace bitpager::replay {

// Names come from a file that anybody may have written: what is not printable ASCII becomes '?'.
[[nodiscard]] std::string Plain(const std::string& text);

[[nodiscard]] std::string SummaryText(const Recording& recording);
// {"recording":name, ...}, integer bytes.
[[nodiscard]] nlohmann::json SummaryJson(const Recording& recording);
// What the traces are and are not; empty where there is none.
[[nodiscard]] std::string TraceNote(const Recording& recording);

}  // namespace bitpager::replay
