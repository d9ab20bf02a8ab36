#include "daemon/background.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>

namespace bitpager::daemon {
namespace {

// Never returns.
[[noreturn]] void AwaitChild(pid_t child, int pipe) {
  char served = 0;
  ssize_t got = 0;
  while ((got = ::read(pipe, &served, 1)) < 0 && errno == EINTR) {
  }
  if (got == 1) ::_exit(0);
  int how = 0;
  while (::waitpid(child, &how, 0) < 0 && errno == EINTR) {
  }
  ::_exit(WIFEXITED(how) ? WEXITSTATUS(how) : 128 + WTERMSIG(how));
}

}  // namespace

wire::Result<Background> Background::Split() {
  int ends[2] = {-1, -1};
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    return wire::Status(wire::Code::kOutOfMemory, std::string("cannot make a pipe: ") + std::strerror(errno));
  }
  wire::UniqueFd reads(ends[0]);
  wire::UniqueFd writes(ends[1]);
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child < 0) {
    return wire::Status(wire::Code::kOutOfMemory,
                        std::string("cannot go to the background: ") + std::strerror(errno));
  }
  if (child > 0) {
    writes.Reset();
    AwaitChild(child, reads.get());
  }
  // Whoever starts it may give up waiting, and then ends the parent.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(1);
  ::setsid();
  return Background(std::move(writes));
}

void Background::Serving() {
  ::prctl(PR_SET_PDEATHSIG, 0);
  const char served = 1;
  // A parent that is gone has nobody to tell.
  [[maybe_unused]] const ssize_t written = ::write(parent_.get(), &served, 1);
  parent_.Reset();
}

}  // namespace bitpager::daemon
