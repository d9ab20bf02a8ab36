#include "daemon/listener.h"

#include <grp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "daemon/shared_memory.h"

namespace bitpager::daemon {
namespace {

using wire::Code;
using wire::Status;

// epoll data: the connection's number, with this bit when the event is of its pidfd. Not its fd: an event
// that was taken before the connection was lost would hit the next connection on the same fd.
constexpr std::uint64_t kPidfdBit = std::uint64_t{1} << 62;
constexpr std::uint64_t kStopTag = ~std::uint64_t{0};
constexpr std::uint64_t kListenTag = ~std::uint64_t{1};

Status Errno(Code code, const std::string& what, const char* hint) {
  return {code, what + ": " + std::strerror(errno) + "." + hint};
}

bool AddToEpoll(int epoll, int fd, std::uint64_t tag) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = tag;
  return ::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

}  // namespace

Listener::~Listener() {
  Stop();
}

wire::Result<std::unique_ptr<Listener>> Listener::Start(const ListenerOptions& options,
                                                        ListenerEvents events) {
  std::unique_ptr<Listener> listener(new Listener(options, std::move(events)));
  Status ready = listener->Prepare();
  if (!ready.ok()) return ready;
  listener->thread_ = std::thread([self = listener.get()] { self->Loop(); });
  return listener;
}

Status Listener::Prepare() {
  wire::Result<wire::UniqueFd> bell = MakeBell();
  if (!bell.ok()) return bell.status();
  stop_bell_ = std::move(*bell);
  epoll_.Reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_) return Errno(Code::kOutOfMemory, "cannot make an epoll", " Hint: raise ulimit -n.");
  if (options_.activated_fd >= 0) {
    socket_.Reset(options_.activated_fd);
  } else {
    Status bound = Bind();
    if (!bound.ok()) return bound;
  }
  if (!AddToEpoll(epoll_.get(), stop_bell_.get(), kStopTag) ||
      !AddToEpoll(epoll_.get(), socket_.get(), kListenTag)) {
    return Errno(Code::kInternal, "cannot watch the socket", "");
  }
  return {};
}

Status Listener::ClearStale() const {
  wire::Result<sockaddr_un> address = wire::UnixAddress(options_.path);
  if (!address.ok()) return address.status();
  struct stat info {};
  if (::lstat(options_.path.c_str(), &info) != 0) return {};
  if (!S_ISSOCK(info.st_mode)) {
    return {Code::kInvalidArgument,
            options_.path + " exists and is not a socket. Hint: give another --socket."};
  }
  wire::UniqueFd probe(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (::connect(probe.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof(sockaddr_un)) == 0 ||
      errno == EAGAIN) {
    return {Code::kAlreadyExists, "a daemon already serves " + options_.path +
                                      ". Hint: stop it (bitpager drain), or give another --socket."};
  }
  if (errno != ECONNREFUSED) {
    return Errno(Code::kPermissionDenied, "cannot tell whether " + options_.path + " is in use", "");
  }
  if (::unlink(options_.path.c_str()) != 0) {
    return Errno(Code::kPermissionDenied, "cannot remove the stale socket " + options_.path,
                 " Hint: remove it, or give another --socket.");
  }
  return {};
}

Status Listener::Bind() {
  Status clear = ClearStale();
  if (!clear.ok()) return clear;
  const wire::Result<sockaddr_un> address = wire::UnixAddress(options_.path);
  socket_.Reset(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket_) return Errno(Code::kUnsupported, "cannot make a SEQPACKET socket", "");
  // Nobody may connect between bind and chmod.
  const mode_t old_mask = ::umask(0177);
  const int bound = ::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof(sockaddr_un));
  ::umask(old_mask);
  if (bound != 0) {
    return Errno(errno == EACCES ? Code::kPermissionDenied : Code::kInvalidArgument,
                 "cannot bind " + options_.path, " Hint: make its directory, or give another --socket.");
  }
  if (!options_.group.empty()) {
    const group* found = ::getgrnam(options_.group.c_str());
    if (found == nullptr || ::chown(options_.path.c_str(), static_cast<uid_t>(-1), found->gr_gid) != 0) {
      return Errno(Code::kPermissionDenied, "cannot give " + options_.path + " to group " + options_.group,
                   " Hint: sudo groupadd --system bitpager.");
    }
  }
  if (::chmod(options_.path.c_str(), options_.mode) != 0 || ::listen(socket_.get(), 128) != 0) {
    return Errno(Code::kPermissionDenied, "cannot open " + options_.path + " to clients", "");
  }
  return {};
}

Status Listener::Watch(const ConnectionRef& connection, wire::UniqueFd pidfd) {
  const std::uint64_t tag = connection->number | kPidfdBit;
  const std::lock_guard<std::mutex> lock(connection->watch);
  if (connection->lost) return {};
  if (!AddToEpoll(epoll_.get(), pidfd.get(), tag)) {
    return Errno(Code::kInvalidArgument, "the fd that came as a pidfd cannot be watched", "");
  }
  connection->pidfd = std::move(pidfd);
  return {};
}

void Listener::StopAccepting() {
  accepting_.store(false, std::memory_order_release);  // pairs with Loop's acquire
  Ring(stop_bell_.get());
}

void Listener::Stop() {
  stopping_.store(true, std::memory_order_release);  // pairs with Loop's acquire
  if (stop_bell_) Ring(stop_bell_.get());
  if (thread_.joinable()) thread_.join();
  if (socket_ && options_.activated_fd < 0) ::unlink(options_.path.c_str());
  socket_.Reset();
}

void Listener::Loop() {
  std::array<epoll_event, 64> events{};
  bool accepting = true;
  while (!stopping_.load(std::memory_order_acquire)) {
    const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), -1);
    for (int i = 0; i < count; ++i) {
      const std::uint64_t tag = events[static_cast<std::size_t>(i)].data.u64;
      if (tag == kStopTag) {
        Quiet(stop_bell_.get());
      } else if (tag == kListenTag) {
        Accept();
      } else if (const auto found = connections_.find(tag & ~kPidfdBit); found != connections_.end()) {
        const ConnectionRef connection = found->second;
        (tag & kPidfdBit) != 0 ? Lose(connection) : Read(connection);
      }
    }
    if (accepting && !accepting_.load(std::memory_order_acquire)) {
      accepting = false;
      ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, socket_.get(), nullptr);
      if (options_.activated_fd < 0) ::unlink(options_.path.c_str());
    }
  }
}

void Listener::Accept() {
  wire::UniqueFd socket(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket) {
    // Without descriptors the socket stays readable: wait a little instead of spinning on it.
    if (errno == EMFILE || errno == ENFILE) ::usleep(10'000);
    return;
  }
  ucred credentials{};
  socklen_t length = sizeof(credentials);
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) return;
  const Peer peer{credentials.uid, credentials.gid, credentials.pid};
  const int fd = socket.get();
  auto connection = std::make_shared<Connection>(std::move(socket), peer);
  connection->number = ++last_number_;
  if (AddToEpoll(epoll_.get(), fd, last_number_)) connections_[last_number_] = std::move(connection);
}

void Listener::Read(const ConnectionRef& connection) {
  auto packet = std::make_shared<wire::Packet>();
  const Status got = wire::ReceivePacket(connection->socket.get(), *packet);
  if (got.code() == Code::kPending || got.code() == Code::kInterrupted) return;
  if (!got.ok() || packet->closed) return Lose(connection);
  events_.message(connection, std::move(packet));
}

void Listener::Lose(const ConnectionRef& connection) {
  const int fd = connection->socket.get();
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  {
    const std::lock_guard<std::mutex> lock(connection->watch);
    connection->lost = true;
    // The client may hold the pidfd too: closing ours alone would not end the watch.
    if (connection->pidfd) ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, connection->pidfd.get(), nullptr);
  }
  connection->HangUp();
  connections_.erase(connection->number);
  events_.lost(connection);
}

}  // namespace bitpager::daemon
