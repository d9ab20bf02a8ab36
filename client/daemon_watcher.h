// Notices the daemon's end for streams that wait for it: marks the session failed and releases `done`. Owns
// one thread, which makes no call of CUDA and reads nothing from the socket; it asks poll for the hang-up
// alone, so it does not race with the session's own use. A forked child has no such thread.
#pragma once

#include <thread>

#include "client/wire/segment.h"
#include "client/wire/status.h"
#include "client/wire/unique_fd.h"

namespace bitpager::client {

class DaemonWatcher {
 public:
  // Watches until destroyed; `header` and `socket` outlive it. kOutOfMemory: no thread or no descriptor.
  [[nodiscard]] wire::Status Start(wire::SegmentHeader& header, int socket);
  DaemonWatcher() = default;
  ~DaemonWatcher();
  DaemonWatcher(const DaemonWatcher&) = delete;
  DaemonWatcher& operator=(const DaemonWatcher&) = delete;

  // Ends the thread; the socket may be closed then.
  void Stop();

 private:
  void Watch(wire::SegmentHeader& header, int socket);

  wire::UniqueFd stop_;
  std::thread thread_;
};

// Lets go whatever waits for `done`.
void ReleaseStreams(wire::SegmentHeader& header);

}  // namespace bitpager::client
