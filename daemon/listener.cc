#include "daemon/listener.h"

#include <fcntl.h>
#include <grp.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "client/wire/messages.h"
#include "client/wire/text.h"
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

// A client asks one thing at a time. It is not read on while so many of its messages wait, or one that
// brought descriptors.
constexpr int kMostWaiting = 4;

// Strangers are looked for so often.
constexpr std::uint64_t kLookNs = 250'000'000;

// A daemon that ends gives its place up in two moves, the second when its telemetry and HTTP have ended; its
// successor waits for that.
constexpr int kLockTries = 300;
constexpr useconds_t kLockTryUs = 10'000;

std::uint64_t NowNs() {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                        std::chrono::steady_clock::now().time_since_epoch())
                                        .count());
}

Status Errno(Code code, const std::string& what, const char* hint) {
  return {code, what + ": " + std::strerror(errno) + "." + hint};
}

bool AddToEpoll(int epoll, int fd, std::uint64_t tag) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = tag;
  return ::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

Status AlreadyServed(const std::string& path) {
  return {Code::kAlreadyExists,
          "a daemon already serves " + path + ". Hint: stop it (bitpager drain), or give another --socket."};
}

// Nobody may connect between bind and chmod.
int BindClosed(int socket, const sockaddr_un& address) {
  const mode_t old_mask = ::umask(0177);
  const int bound = ::bind(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(sockaddr_un));
  ::umask(old_mask);
  return bound;
}

// Answers the hello that is to come, and hangs up. What has come already is taken first, and nothing comes
// any more: a socket that is closed over unread messages tells its peer of the reset before the answer.
void TurnAway(int socket, const std::string& why) {
  wire::ReplyBody body;
  body.code = static_cast<std::uint32_t>(Code::kBudgetExceeded);
  wire::CopyText(body.message, why);
  static_cast<void>(wire::SendBody(socket, wire::MessageType::kHello, 1, body).ok());
  ::shutdown(socket, SHUT_RD);
  wire::Packet packet;
  while (wire::ReceivePacket(socket, packet).ok() && !packet.closed) {
  }
}

}  // namespace

Listener::~Listener() {
  Stop();
}

wire::Result<std::unique_ptr<Listener>> Listener::Bind(const ListenerOptions& options,
                                                       ListenerEvents events) {
  std::unique_ptr<Listener> listener(new Listener(options, std::move(events)));
  Status ready = listener->Prepare();
  if (!ready.ok()) return ready;
  return listener;
}

void Listener::Serve() {
  thread_ = std::thread([this] { Loop(); });
}

Status Listener::Prepare() {
  wire::Result<wire::UniqueFd> bell = MakeBell();
  if (!bell.ok()) return bell.status();
  stop_bell_ = std::move(*bell);
  epoll_ = std::make_shared<const wire::UniqueFd>(::epoll_create1(EPOLL_CLOEXEC));
  if (!*epoll_) return Errno(Code::kOutOfMemory, "cannot make an epoll", " Hint: raise ulimit -n.");
  if (options_.activated_fd >= 0) {
    socket_.Reset(options_.activated_fd);
  } else {
    Status bound = BindPath();
    if (!bound.ok()) return bound;
  }
  if (!AddToEpoll(epoll_->get(), stop_bell_.get(), kStopTag) ||
      !AddToEpoll(epoll_->get(), socket_.get(), kListenTag)) {
    return Errno(Code::kInternal, "cannot watch the socket", "");
  }
  return {};
}

// ---- the path

Status Listener::LockPath() {
  const std::string path = options_.path + ".lock";
  wire::UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file) {
    return Errno(errno == EACCES ? Code::kPermissionDenied : Code::kInvalidArgument, "cannot open " + path,
                 " Hint: make its directory, or give another --socket.");
  }
  for (int tries = 0; ::flock(file.get(), LOCK_EX | LOCK_NB) != 0; ++tries) {
    if (errno != EWOULDBLOCK && errno != EINTR) return Errno(Code::kUnsupported, "cannot lock " + path, "");
    if (tries == kLockTries) return AlreadyServed(options_.path);
    // Whoever has it may be one that has begun, not one that ends.
    if (Status clear = ClearStale(); !clear.ok()) return clear;
    ::usleep(kLockTryUs);
  }
  lock_ = std::move(file);
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
    return AlreadyServed(options_.path);
  }
  if (errno == ENOENT) return {};  // somebody has just removed it
  if (errno != ECONNREFUSED) {
    return Errno(Code::kPermissionDenied, "cannot tell whether " + options_.path + " is in use", "");
  }
  // Not to be removed without the lock: another daemon may be about to replace it, too.
  if (lock_ && ::unlink(options_.path.c_str()) != 0) {
    return Errno(Code::kPermissionDenied, "cannot remove the stale socket " + options_.path,
                 " Hint: remove it, or give another --socket.");
  }
  return {};
}

Status Listener::BindPath() {
  // Once before the lock, so that a refusal is told at once.
  Status clear = ClearStale();
  if (clear.ok()) clear = LockPath();
  if (clear.ok()) clear = ClearStale();
  if (!clear.ok()) {
    lock_.Reset();
    return clear;
  }
  Status open = BindAndListen();
  if (!open.ok()) LeavePath();
  return open;
}

// Made beside its path and moved there when it listens, so that whoever finds it is not refused.
Status Listener::BindAndListen() {
  const std::string folder = options_.path.substr(0, options_.path.rfind('/') + 1);
  const std::string beside = folder + "." + std::to_string(::getpid());  // no longer than any socket's path
  const auto address = wire::UnixAddress(beside);
  if (!address.ok()) return address.status();
  struct stat left {};  // by a process that had this number
  if (::lstat(beside.c_str(), &left) == 0 && S_ISSOCK(left.st_mode)) ::unlink(beside.c_str());
  Status open = Open(beside, *address);
  // What appeared at the path since it was looked at is not replaced.
  if (open.ok() &&
      ::renameat2(AT_FDCWD, beside.c_str(), AT_FDCWD, options_.path.c_str(), RENAME_NOREPLACE) != 0) {
    open = errno == EEXIST ? AlreadyServed(options_.path)
                           : Errno(Code::kPermissionDenied, "cannot move a socket to " + options_.path, "");
  }
  if (!open.ok() && socket_) {
    ::unlink(beside.c_str());
    socket_.Reset();  // the path is not ours to remove
  }
  return open;
}

Status Listener::Open(const std::string& path, const sockaddr_un& address) {
  wire::UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return Errno(Code::kUnsupported, "cannot make a SEQPACKET socket", "");
  if (BindClosed(socket.get(), address) != 0) {
    return Errno(errno == EACCES ? Code::kPermissionDenied : Code::kInvalidArgument,
                 "cannot bind " + options_.path, " Hint: make its directory, or give another --socket.");
  }
  socket_ = std::move(socket);
  if (!options_.group.empty()) {
    const group* found = ::getgrnam(options_.group.c_str());
    if (found == nullptr || ::chown(path.c_str(), static_cast<uid_t>(-1), found->gr_gid) != 0) {
      return Errno(Code::kPermissionDenied, "cannot give " + options_.path + " to group " + options_.group,
                   " Hint: sudo groupadd --system bitpager.");
    }
  }
  if (::chmod(path.c_str(), options_.mode) != 0 || ::listen(socket_.get(), 128) != 0) {
    return Errno(Code::kPermissionDenied, "cannot open " + options_.path + " to clients", "");
  }
  return {};
}

// Only while the lock is held: nobody else can have bound the path.
void Listener::LeavePath() {
  if (lock_ && socket_) ::unlink(options_.path.c_str());
  socket_.Reset();
}

// ---- connections

Status Listener::Watch(const ConnectionRef& connection, wire::UniqueFd pidfd) {
  const std::uint64_t tag = connection->number | kPidfdBit;
  const std::lock_guard<std::mutex> lock(connection->watch);
  if (connection->lost) return {};
  if (!AddToEpoll(epoll_->get(), pidfd.get(), tag)) {
    return Errno(Code::kInvalidArgument, "the fd that came as a pidfd cannot be watched", "");
  }
  connection->pidfd = std::move(pidfd);
  return {};
}

void Listener::Handled(const ConnectionRef& connection) {
  const std::lock_guard<std::mutex> lock(connection->watch);
  --connection->waiting;
  if (!connection->paused || connection->lost || connection->waiting > 0) return;
  connection->paused = false;
  // A connection that cannot be watched any more would be silent for ever.
  if (!AddToEpoll(connection->epoll->get(), connection->socket.get(), connection->number)) {
    connection->HangUp();
  }
}

void Listener::Stop() {
  stopping_.store(true, std::memory_order_release);  // pairs with Loop's acquire
  if (stop_bell_) Ring(stop_bell_.get());
  if (thread_.joinable()) thread_.join();
  LeavePath();
}

void Listener::Loop() {
  std::array<epoll_event, 64> events{};
  while (!stopping_.load(std::memory_order_acquire)) {
    const int nap_ms = next_look_ns_ == 0 ? -1 : static_cast<int>(kLookNs / 1'000'000);
    const int count = ::epoll_wait(epoll_->get(), events.data(), static_cast<int>(events.size()), nap_ms);
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
    if (next_look_ns_ != 0 && NowNs() >= next_look_ns_) LoseStrangers();
  }
}

bool Listener::Crowded(std::uint32_t uid) const {
  if (connections_.size() >= options_.max_connections) return true;
  if (uid == 0 || uid == ::geteuid()) return false;
  const auto found = by_user_.find(uid);
  return found != by_user_.end() && found->second >= options_.max_connections_of_user;
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
  if (Crowded(credentials.uid)) {
    TurnAway(socket.get(), "the daemon has as many connections as it takes, from uid " +
                               std::to_string(credentials.uid) +
                               " or in all. Hint: end some, or raise max_sessions.");
    return;
  }
  const int fd = socket.get();
  const Peer peer{credentials.uid, credentials.gid, credentials.pid};
  auto connection = std::make_shared<Connection>(std::move(socket), peer);
  connection->number = ++last_number_;
  connection->epoll = epoll_;
  connection->stranger_since_ns = NowNs();
  if (!AddToEpoll(epoll_->get(), fd, last_number_)) return;
  ++by_user_[peer.uid];
  connections_[last_number_] = std::move(connection);
  if (next_look_ns_ == 0) next_look_ns_ = NowNs() + kLookNs;
}

void Listener::Read(const ConnectionRef& connection) {
  auto packet = std::make_shared<wire::Packet>();
  const Status got = wire::ReceivePacket(connection->socket.get(), *packet);
  if (got.code() == Code::kPending || got.code() == Code::kInterrupted) return;
  if (!got.ok() || packet->closed) return Lose(connection);
  // It may be the one that ends the session of a connection that stays.
  if (next_look_ns_ == 0) next_look_ns_ = NowNs() + kLookNs;
  {
    const std::lock_guard<std::mutex> lock(connection->watch);
    ++connection->waiting;
    if (connection->waiting >= kMostWaiting || packet->fd_count > 0) {
      // Taken out, not only disarmed: a hang-up would be reported over and over.
      connection->paused = true;
      ::epoll_ctl(epoll_->get(), EPOLL_CTL_DEL, connection->socket.get(), nullptr);
    }
  }
  events_.message(connection, std::move(packet));
}

void Listener::LoseStrangers() {
  const std::uint64_t now_ns = NowNs();
  const std::uint64_t limit_ns = options_.attach_limit_ms * std::uint64_t{1'000'000};
  bool any = false;
  std::vector<ConnectionRef> over;
  for (const auto& [number, connection] : connections_) {
    if (connection->attached.load(std::memory_order_relaxed)) {
      connection->stranger_since_ns = 0;
      continue;
    }
    any = true;
    const std::lock_guard<std::mutex> lock(connection->watch);
    if (connection->waiting > 0) continue;  // not yet answered
    if (connection->stranger_since_ns == 0) connection->stranger_since_ns = now_ns;
    if (now_ns - connection->stranger_since_ns >= limit_ns) over.push_back(connection);
  }
  for (const ConnectionRef& connection : over) Lose(connection);
  next_look_ns_ = any ? now_ns + kLookNs : 0;
}

void Listener::Lose(const ConnectionRef& connection) {
  const int fd = connection->socket.get();
  {
    const std::lock_guard<std::mutex> lock(connection->watch);
    connection->lost = true;
    if (!connection->paused) ::epoll_ctl(epoll_->get(), EPOLL_CTL_DEL, fd, nullptr);
    // The client may hold the pidfd too: closing ours alone would not end the watch.
    if (connection->pidfd) ::epoll_ctl(epoll_->get(), EPOLL_CTL_DEL, connection->pidfd.get(), nullptr);
  }
  connection->HangUp();
  connections_.erase(connection->number);
  const auto user = by_user_.find(connection->peer.uid);
  if (--user->second == 0) by_user_.erase(user);
  events_.lost(connection);
}

}  // namespace bitpager::daemon
