// Keeps connections that find no descriptor left from ending the process; see accept_guard.cc.
#pragma once

namespace bitpager::daemon {

// Sets a descriptor aside, once for the process; closed by its end. Call it before serving ipc:// endpoints.
void HoldSpareDescriptor();

}  // namespace bitpager::daemon
