#include "kernels/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "client/wire/unique_fd.h"

namespace bitpager::kernels {

using wire::Code;
using wire::Status;

Status ChildProcess::Start(std::vector<std::string> command, int fd, int as) {
  wire::UniqueFd moved;
  if (fd == as) {  // dup2 onto itself would leave it close-on-exec
    moved.Reset(::fcntl(fd, F_DUPFD_CLOEXEC, as + 1));
    if (!moved) return {Code::kInternal, std::strerror(errno)};
    fd = moved.get();
  }
  std::vector<char*> arguments;
  arguments.reserve(command.size() + 1);
  for (std::string& word : command) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  sigset_t none;
  ::sigemptyset(&none);
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawnattr_init(&attributes);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  ::posix_spawn_file_actions_adddup2(&actions, fd, as);
  const int error =
      ::posix_spawn(&pid_, command[0].c_str(), &actions, &attributes, arguments.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  ::posix_spawnattr_destroy(&attributes);
  if (error == 0) return {};
  pid_ = -1;
  return {Code::kInternal, "cannot start " + command[0] + ": " + std::strerror(error)};
}

void ChildProcess::Kill() {
  if (pid_ > 0) ::kill(pid_, SIGKILL);
}

bool ChildProcess::Ended() {
  if (pid_ > 0 && ::waitpid(pid_, nullptr, WNOHANG) != 0) pid_ = -1;
  return pid_ <= 0;
}

void ChildProcess::End() {
  if (pid_ <= 0) return;
  Kill();
  ::waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

}  // namespace bitpager::kernels
