// One accepted socket. The listener thread reads it; the dispatcher thread answers on it; it is closed when
// both have let go.
#pragma once

#include <sys/socket.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>

#include "client/wire/ids.h"
#include "client/wire/unique_fd.h"
#include "daemon/session.h"

namespace bitpager::daemon {

class Shard;

struct Connection {
  Connection(wire::UniqueFd socket_in, const Peer& peer_in) : socket(std::move(socket_in)), peer(peer_in) {}

  const wire::UniqueFd socket;
  const Peer peer;
  Shard* shard = nullptr;    // listener thread: that serves it; none before hello
  std::uint64_t number = 0;  // the listener's, set before anybody else sees the connection; never used again
  std::shared_ptr<const wire::UniqueFd> epoll;  // the listener's, which watches `socket`; set with `number`
  std::uint64_t stranger_since_ns = 0;          // listener thread
  wire::SessionId session;                      // dispatcher thread; none before hello and after the end
  bool greeted = false;  // dispatcher thread: hello was accepted once, which is all a connection gets

  // Written by the dispatcher thread, read by the listener's, which hangs up on whoever stays without one.
  std::atomic<bool> attached{false};  // orders nothing

  // Guards what follows: a hello, the end of a message and the loss of the connection may cross.
  std::mutex watch;
  wire::UniqueFd pidfd;  // of the client; watched by the listener until the connection is lost
  bool lost = false;
  int waiting = 0;      // messages that were read and not yet handled
  bool paused = false;  // not read until fewer wait

  // Both threads: no more traffic; the listener then sees the hang-up.
  void HangUp() const { ::shutdown(socket.get(), SHUT_RDWR); }
};

using ConnectionRef = std::shared_ptr<Connection>;

}  // namespace bitpager::daemon
