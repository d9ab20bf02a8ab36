// The table of settings: one row each, read by the TOML reader and by the flags alike, so that both accept
// the same values and refuse them in the same words. Used by config.cc and config_file.cc on main's thread.
#pragma once

#include <span>
#include <string>

#include "client/wire/status.h"
#include "daemon/config.h"

namespace bitpager::daemon {

// TOML types that a setting takes.
enum SettingTypes : unsigned { kText = 1, kInteger = 2, kFloat = 4, kBoolean = 8 };

struct Setting {
  const char* key;         // "table.key" in the file
  const char* flag;        // "--flag"; nullptr: only in the file
  const char* value_name;  // in --help; nullptr: the flag takes no value and means "true"
  const char* help;
  unsigned types;
  // Sets it from text ("true"/"false" for booleans). kInvalidArgument: the value, why, a hint.
  wire::Status (*set)(Config& config, const std::string& text);
};

[[nodiscard]] std::span<const Setting> Settings();

}  // namespace bitpager::daemon
