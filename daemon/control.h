// Answers the messages of the socket: attach, memory, extents, administration. One small function for each
// type. Dispatcher thread.
#pragma once

#include <functional>
#include <string>

#include "client/wire/fd_socket.h"
#include "client/wire/messages.h"
#include "daemon/connection.h"
#include "daemon/core.h"
#include "daemon/lifecycle.h"
#include "daemon/pressure.h"
#include "daemon/tasks.h"

namespace bitpager::daemon {

class Control {
 public:
  // The listener watches a client's pidfd.
  using Watch = std::function<wire::Status(const ConnectionRef&, wire::UniqueFd)>;

  Control(Core& core, Lifecycle& lifecycle, Tasks& tasks, Pressure& pressure)
      : core_(core), lifecycle_(lifecycle), tasks_(tasks), pressure_(pressure) {}
  void SetWatch(Watch watch) { watch_ = std::move(watch); }

  // Handles one message and answers it. The connection is hung up when it breaks the protocol.
  void Handle(const ConnectionRef& connection, wire::Packet& packet);
  // Whether a limit or evict message names a job that is here.
  [[nodiscard]] bool Knows(const ConnectionRef& connection, const wire::Packet& packet);
  // Answers a message where no session and no job is needed to know the answer. Any thread.
  static void Reply(const ConnectionRef& connection, const wire::Packet& packet, const wire::Status& status);
  // As Handle, of a limit or evict from a connection that has no session here and may have one elsewhere.
  void HandleCommand(const ConnectionRef& connection, wire::Packet& packet);

 private:
  // A reply in the making, with the fds that go beside it.
  struct Answer {
    wire::ReplyBody body;
    std::array<int, wire::kMaxMessageFds> fds{};
    std::size_t fd_count = 0;
    wire::UniqueFd own;  // an fd made for this reply alone
    void AddFd(int fd) { fds[fd_count++] = fd; }
  };
  struct Call {
    const ConnectionRef& connection;
    wire::Packet& packet;
    Session* session;  // null before hello
    Answer& answer;
  };

  void Handle(const ConnectionRef& connection, wire::Packet& packet, Session* session);
  [[nodiscard]] wire::Status Answered(Call& call);
  void TellRefusal(const Call& call, const wire::Status& why);
  [[nodiscard]] wire::Status Hello(Call& call);
  [[nodiscard]] wire::Status TakePidfd(Call& call, Session& session);
  [[nodiscard]] wire::Status Detach(Call& call);
  [[nodiscard]] wire::Status CreateBuffer(Call& call);
  [[nodiscard]] wire::Status RegisterBuffer(Call& call);
  [[nodiscard]] wire::Status ReleaseBuffer(Call& call);
  [[nodiscard]] wire::Status CreateArena(Call& call);
  [[nodiscard]] wire::Status CreateWeight(Call& call);
  [[nodiscard]] wire::Status DropExtent(Call& call);
  [[nodiscard]] wire::Status MapDomain(Call& call);
  [[nodiscard]] wire::Status Usage(Call& call);
  [[nodiscard]] wire::Status MakeRoom(Call& call);
  [[nodiscard]] wire::Status Limit(Call& call);
  [[nodiscard]] wire::Status Evict(Call& call);
  // The job that a command names, when the caller may command it.
  [[nodiscard]] wire::Result<Job*> CommandedJob(const Peer& peer, std::string_view name, std::uint32_t uid);

  Core& core_;
  Lifecycle& lifecycle_;
  Tasks& tasks_;
  Pressure& pressure_;
  Watch watch_ = [](const ConnectionRef&, wire::UniqueFd) { return wire::Status(); };
};

}  // namespace bitpager::daemon
