// Reads the TOML file into the settings' table. Used by config.cc on main's thread.
#pragma once

#include <string>

#include "client/wire/status.h"
#include "daemon/config.h"

namespace bitpager::daemon {

// Errors carry path:line, the value, why and a hint: kInvalidArgument (syntax, unknown key, wrong type, bad
// value), kNotFound, kPermissionDenied, kInternal (cannot be read).
[[nodiscard]] wire::Status ReadConfigFile(const std::string& path, Config& config);

}  // namespace bitpager::daemon
