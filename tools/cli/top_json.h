// A sample of `bitpager top` for programs. Pure.
#pragma once

#include <string>

#include "tools/cli/top_view.h"

namespace bitpager::cli {

inline constexpr int kTopSchemaVersion = 1;

// One line: bytes and counts are integers, so are bytes for each second; the view must have rates. `events`
// are those since the sample before, as the daemon gave them.
[[nodiscard]] std::string TopJson(const TopView& view, const std::vector<Event>& events);

}  // namespace bitpager::cli
