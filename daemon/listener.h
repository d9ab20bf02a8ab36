// The listener: accepts connections, reads their messages, notices their death. Owns the listening socket and
// one thread; everything it learns it posts to the dispatcher.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <unordered_map>

#include "client/wire/fd_socket.h"
#include "client/wire/status.h"
#include "client/wire/unique_fd.h"
#include "daemon/connection.h"

namespace bitpager::daemon {

struct ListenerOptions {
  std::string path;
  std::uint32_t mode = 0600;
  std::string group;      // empty: the process's own
  int activated_fd = -1;  // a listening socket that the service manager passed
};

// What the listener reports; both are called on its thread.
struct ListenerEvents {
  std::function<void(ConnectionRef, std::shared_ptr<wire::Packet>)> message;
  std::function<void(ConnectionRef)> lost;  // once for each connection: hang-up, or its process ended
};

class Listener {
 public:
  ~Listener();  // stops
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  // Binds and starts the thread. A stale socket file (nobody answers) is replaced; kAlreadyExists when a
  // daemon answers there; kPermissionDenied, kInvalidArgument with the path and a hint.
  [[nodiscard]] static wire::Result<std::unique_ptr<Listener>> Start(const ListenerOptions& options,
                                                                     ListenerEvents events);

  // Any thread: the connection is lost too when the process behind `pidfd` ends. On a connection that is lost
  // already the fd is only closed.
  [[nodiscard]] wire::Status Watch(const ConnectionRef& connection, wire::UniqueFd pidfd);
  // Takes no new connections and removes the socket file; connections go on.
  void StopAccepting();
  void Stop();

 private:
  Listener(ListenerOptions options, ListenerEvents events)
      : options_(std::move(options)), events_(std::move(events)) {}
  [[nodiscard]] wire::Status Bind();
  [[nodiscard]] wire::Status ClearStale() const;
  [[nodiscard]] wire::Status Prepare();
  void Loop();
  void Accept();
  void Read(const ConnectionRef& connection);
  void Lose(const ConnectionRef& connection);

  const ListenerOptions options_;
  const ListenerEvents events_;
  wire::UniqueFd socket_;
  wire::UniqueFd epoll_;
  wire::UniqueFd stop_bell_;
  std::atomic<bool> stopping_{false};  // pairs with the thread's look after the bell rang
  std::atomic<bool> accepting_{true};
  std::unordered_map<std::uint64_t, ConnectionRef> connections_;  // listener thread; by number
  std::uint64_t last_number_ = 0;                                 // listener thread
  std::thread thread_;
};

}  // namespace bitpager::daemon
