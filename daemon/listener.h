// The listener: accepts connections, reads their messages, notices their death. Owns the listening socket,
// the lock file beside it, and one thread; everything it learns it posts to the dispatcher. Nobody takes more
// of it than a share: connections are counted by user, one that opens no session is hung up, and one whose
// messages are not handled yet is not read further.
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
  std::uint32_t max_connections = 512;
  std::uint32_t max_connections_of_user = 512;  // root and the daemon's own user: max_connections
  std::uint32_t attach_limit_ms = 10'000;       // without a session for so long, a connection is hung up
};

// What the listener reports; both are called on its thread. Whoever gets a message calls Listener::Handled
// when it has been handled.
struct ListenerEvents {
  std::function<void(ConnectionRef, std::shared_ptr<wire::Packet>)> message;
  std::function<void(ConnectionRef)> lost;  // once for each connection: hang-up, or its process ended
};

class Listener {
 public:
  ~Listener();  // stops, and lets a successor have the place
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  // Takes the place: clients can connect, and wait; nobody is answered before Serve. A stale socket file
  // (nobody listens) is replaced; kAlreadyExists when a daemon serves there or is about to (it holds
  // PATH.lock); kPermissionDenied, kInvalidArgument with the path and a hint.
  [[nodiscard]] static wire::Result<std::unique_ptr<Listener>> Bind(const ListenerOptions& options,
                                                                    ListenerEvents events);
  // Starts the thread. Call it once.
  void Serve();

  // Any thread: the connection is lost too when the process behind `pidfd` ends. On a connection that is lost
  // already the fd is only closed.
  [[nodiscard]] wire::Status Watch(const ConnectionRef& connection, wire::UniqueFd pidfd);
  // Any thread, also after the listener's end: a message that was reported has been handled.
  static void Handled(const ConnectionRef& connection);
  // Removes the socket file, ends the thread. A successor waits for the place until the listener is gone:
  // whoever served beside it ends in between.
  void Stop();

 private:
  Listener(ListenerOptions options, ListenerEvents events)
      : options_(std::move(options)), events_(std::move(events)) {}
  [[nodiscard]] wire::Status LockPath();
  [[nodiscard]] wire::Status BindPath();
  [[nodiscard]] wire::Status BindAndListen();
  [[nodiscard]] wire::Status Open(const std::string& path, const sockaddr_un& address);
  [[nodiscard]] wire::Status ClearStale() const;
  [[nodiscard]] wire::Status Prepare();
  void Loop();
  void Accept();
  [[nodiscard]] bool Crowded(std::uint32_t uid) const;
  void Read(const ConnectionRef& connection);
  void Lose(const ConnectionRef& connection);
  // Hangs up on connections that have been without a session for too long.
  void LoseStrangers();
  void LeavePath();

  const ListenerOptions options_;
  const ListenerEvents events_;
  wire::UniqueFd lock_;  // held while the path is ours
  wire::UniqueFd socket_;
  std::shared_ptr<const wire::UniqueFd> epoll_;  // shared with connections, which may outlive the listener
  wire::UniqueFd stop_bell_;
  std::atomic<bool> stopping_{false};  // pairs with the thread's look after the bell rang
  // ---- listener thread
  std::unordered_map<std::uint64_t, ConnectionRef> connections_;  // by number
  std::unordered_map<std::uint32_t, std::uint32_t> by_user_;      // connections of each uid
  std::uint64_t last_number_ = 0;
  std::uint64_t next_look_ns_ = 0;  // for strangers; 0: there are none
  std::thread thread_;
};

}  // namespace bitpager::daemon
