#include "client/fork_guard.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <memory>
#include <mutex>
#include <thread>

namespace bitpager::client {
namespace {

// Exit status of a child that runs `body`. `forks` is held while it is forked.
template <typename Body>
int InChild(Body body, std::mutex* forks = nullptr) {
  std::unique_lock<std::mutex> lock;
  if (forks != nullptr) lock = std::unique_lock(*forks);
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(body());
  if (lock) lock.unlock();
  int status = 0;
  EXPECT_EQ(::waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

bool IsOpen(int fd) {
  return ::fcntl(fd, F_GETFD) >= 0 || errno != EBADF;
}

TEST(ForkGuard, ClosesItsFdsInAChildAlone) {
  const int one = ::eventfd(0, EFD_CLOEXEC);
  const int two = ::eventfd(0, EFD_CLOEXEC);
  const int other = ::eventfd(0, EFD_CLOEXEC);
  ForkGuard guard({one, two});
  EXPECT_EQ(InChild([&] { return guard.forked() && !IsOpen(one) && !IsOpen(two) && IsOpen(other) ? 0 : 1; }),
            0);
  EXPECT_FALSE(guard.forked());
  EXPECT_TRUE(IsOpen(one) && IsOpen(two));
  guard.Unwatch(two);
  EXPECT_EQ(InChild([&] { return !IsOpen(one) && IsOpen(two) ? 0 : 1; }), 0);
  for (const int fd : {one, two, other}) ::close(fd);
}

// One thread opens and closes connections, another forks: a child has no fd of a guard that exists, and loses
// none that got the number of one that was closed.
TEST(ForkGuard, LosesNoForkBetweenItsStepsAndClosesNothingElse) {
  std::atomic<int> watched{-1};  // of a guard that exists
  std::atomic<int> foreign{-1};  // of nobody's
  std::atomic<bool> stop{false};
  // A fork copies the fds before the memory: what is nobody's is told of with no fork in between.
  std::mutex forks;
  std::thread connecting([&] {
    while (!stop) {
      const int fd = ::eventfd(0, EFD_CLOEXEC);
      auto guard = std::make_unique<ForkGuard>(std::initializer_list<int>{fd});
      watched.store(fd);
      std::this_thread::yield();
      watched.store(-1);
      {
        const ForkGuard::Pause pause(*guard, fd);
        ::close(fd);
      }
      int reused = -1;
      {
        const std::lock_guard lock(forks);
        reused = ::eventfd(0, EFD_CLOEXEC);
        foreign.store(reused);
      }
      std::this_thread::yield();
      const std::lock_guard lock(forks);
      foreign.store(-1);
      ::close(reused);
    }
  });
  int failed = 0;
  for (int i = 0; i < 300; ++i) {
    const auto check = [&] {
      const int guarded = watched.load();
      const int kept = foreign.load();
      if (guarded >= 0 && IsOpen(guarded)) return 1;
      return kept >= 0 && !IsOpen(kept) ? 1 : 0;
    };
    failed += InChild(check, &forks);
  }
  stop = true;
  connecting.join();
  EXPECT_EQ(failed, 0);
}

}  // namespace
}  // namespace bitpager::client
