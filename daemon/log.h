// The log: spdlog's default logger, to stderr, safe from every thread. With journald behind stderr each line
// starts with its priority (<3> error, <4> warn, <6> info, <7> debug) and carries no time of its own.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "client/wire/status.h"

namespace bitpager::daemon {

enum class LogStyle : std::uint8_t {
  kAuto,      // journal when stderr is the one that JOURNAL_STREAM names
  kTerminal,  // "2025-01-31 12:00:00.123 warn  text"
  kJournal,
};

// trace debug info warn error off.
[[nodiscard]] bool IsLogLevel(std::string_view level);

// Sets up the default logger; call it once, early in main. kInvalidArgument for an unknown level.
[[nodiscard]] wire::Status StartLog(const std::string& level, LogStyle style = LogStyle::kAuto);

// Pages hold weights and optimizer states: RLIMIT_CORE 0 and PR_SET_DUMPABLE 0. Called by main first.
[[nodiscard]] wire::Status ForbidCoreDumps();

}  // namespace bitpager::daemon
