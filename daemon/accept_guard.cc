// accept4 of Unix stream sockets, for the whole process. libzmq (4.3) aborts its process when accepting on
// ipc:// finds no descriptor left, so that whoever may connect could end the daemon by connecting often. Here
// such a connection is accepted on a descriptor that was set aside, and closed at once; the caller is told
// ECONNABORTED, which accept loops take as "go on". Any thread. Other sockets (the daemon's own is SEQPACKET)
// are accepted as ever.
#include "daemon/accept_guard.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <mutex>

namespace bitpager::daemon {
namespace {

std::mutex spare_mutex;  // guards spare_fd
int spare_fd = -1;

int OpenSpare() {
  return ::open("/dev/null", O_RDONLY | O_CLOEXEC);
}

int RawAccept(int socket, sockaddr* address, socklen_t* bytes, int flags) {
  return static_cast<int>(::syscall(SYS_accept4, socket, address, bytes, flags));
}

bool IsUnixStream(int socket) {
  int domain = 0;
  int type = 0;
  socklen_t bytes = sizeof(int);
  return ::getsockopt(socket, SOL_SOCKET, SO_DOMAIN, &domain, &bytes) == 0 && domain == AF_UNIX &&
         ::getsockopt(socket, SOL_SOCKET, SO_TYPE, &type, &bytes) == 0 && type == SOCK_STREAM;
}

// Hangs up on the connection that waits. Where another thread has just taken the spare descriptor, the
// connection stays in the backlog and is turned away by a later call.
void TurnAway(int socket) {
  const std::lock_guard lock(spare_mutex);
  if (spare_fd >= 0) ::close(spare_fd);
  const int connection = RawAccept(socket, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (connection >= 0) ::close(connection);
  spare_fd = OpenSpare();
}

int GuardedAccept(int socket, sockaddr* address, socklen_t* bytes, int flags) {
  const int fd = RawAccept(socket, address, bytes, flags);
  if (fd >= 0 || (errno != EMFILE && errno != ENFILE)) return fd;
  const int error = errno;
  const bool guarded = IsUnixStream(socket);
  if (guarded) TurnAway(socket);
  errno = guarded ? ECONNABORTED : error;
  return -1;
}

}  // namespace

void HoldSpareDescriptor() {
  const std::lock_guard lock(spare_mutex);
  if (spare_fd < 0) spare_fd = OpenSpare();
}

}  // namespace bitpager::daemon

// The process's shared libraries find this definition before the C library's.
extern "C" __attribute__((visibility("default"))) int accept4(int socket, sockaddr* address, socklen_t* bytes,
                                                              int flags) {
  return bitpager::daemon::GuardedAccept(socket, address, bytes, flags);
}
