// What operators can ask and hear: a ZeroMQ ROUTER that answers queries and a PUB for events, on ipc:// with
// file permissions. Read-only: it carries no credentials, so nothing changes through it. Owns its sockets and
// one thread, which sleeps in poll when nobody asks.
//
// Queries are one JSON object, replies another:
//   {"query":"status"}  -> the snapshot (snapshot.h)
//   {"query":"version"} -> {"schema_version":1,"version":"0.1.0"}
//   {"query":"events"}  -> {"schema_version":1,"events":[...]}, the last ones (event.h)
//   {"query":"pages","cells":N} -> the page map in about N cells (page_map.h)
//   anything else       -> {"schema_version":1,"error":{"code":"protocol","message":"..."}}
// A DEALER or REQ socket asks; frames before the body are returned as they came.
#pragma once

#include <functional>
#include <memory>

#include "client/wire/status.h"
#include "daemon/config.h"
#include "daemon/event.h"
#include "daemon/page_map.h"
#include "daemon/snapshot.h"

namespace bitpager::daemon {

// Called on the telemetry thread; may wait for the dispatcher, and must return when that has ended. An error
// becomes the reply.
using TakeSnapshot = std::function<wire::Result<Snapshot>()>;
using TakePages = std::function<wire::Result<PageMap>(std::uint64_t cells)>;

class Telemetry {
 public:
  // Events of the log are published as two frames: the topic (its name), then the JSON object of event.h.
  explicit Telemetry(EventLog& events);
  ~Telemetry();  // stops
  Telemetry(const Telemetry&) = delete;
  Telemetry& operator=(const Telemetry&) = delete;

  // Binds both endpoints with the mode and group of the socket, then starts the thread. Call it once, from
  // main, while no other thread makes files (it sets the umask for a moment), and after the daemon's own
  // socket was won: a socket file left at an endpoint is taken over. Errors: kInvalidArgument (a path too
  // long, not ipc://, or a file that is no socket), kPermissionDenied, kInternal.
  // Without `take_pages`, page maps are not served.
  [[nodiscard]] wire::Status Start(const Config& config, TakeSnapshot take_snapshot,
                                   TakePages take_pages = {});

  // Ends the thread and removes the socket files. Idempotent.
  void Stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bitpager::daemon
