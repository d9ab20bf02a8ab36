// Manners towards the service manager, without its library: sd_notify messages and passed sockets. Called by
// main; each call reads the environment.
#pragma once

#include <optional>
#include <string_view>

#include "client/wire/status.h"

namespace bitpager::daemon {

// Sends `state` ("READY=1", "STOPPING=1", "STATUS=..."; several lines allowed) to NOTIFY_SOCKET. Ok, and
// nothing sent, where that is not set. kUnreachable with the reason when the manager cannot be told.
[[nodiscard]] wire::Status Notify(std::string_view state);
[[nodiscard]] wire::Status NotifyReady(std::string_view status_text);  // READY=1 and STATUS=
[[nodiscard]] wire::Status NotifyStopping();
[[nodiscard]] wire::Status NotifyStatus(std::string_view status_text);

// The listening socket that the service manager passed (LISTEN_PID, LISTEN_FDS), close-on-exec; none when
// this process was not activated that way. Clears the variables, so that children do not see them. Errors:
// kInvalidArgument unless it is exactly one listening Unix SEQPACKET socket.
[[nodiscard]] wire::Result<std::optional<int>> TakeActivatedSocket();

}  // namespace bitpager::daemon
