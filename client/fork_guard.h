// Cuts a forked child off from its parent's sessions. One pthread_atfork handler for the process walks all
// guards in the child: it marks each one and closes its fds there, so that the daemon sees the parent's end
// at once although a child lives. The registry is never destroyed (no static destructors).
#pragma once

#include <atomic>
#include <initializer_list>
#include <mutex>
#include <vector>

namespace bitpager::client {

class ForkGuard {
 public:
  // `fds` are watched from the first moment that the guard exists: no fork comes between.
  explicit ForkGuard(std::initializer_list<int> fds = {});
  ~ForkGuard();  // in a forked child: never called, the guard's owner is leaked there
  ForkGuard(const ForkGuard&) = delete;
  ForkGuard& operator=(const ForkGuard&) = delete;

  // The fd is about to be closed here: from now on a child keeps its copy.
  void Unwatch(int fd);
  // The same, and no fork comes before the Pause ends, by which it is closed. Short: forks of all threads
  // wait, and nothing below it may use a guard.
  class Pause {
   public:
    Pause(ForkGuard& guard, int fd);

   private:
    std::unique_lock<std::mutex> lock_;
  };
  // True in a child. No lock: a child's copy of any mutex may be held by a thread that it does not have.
  [[nodiscard]] bool forked() const { return forked_.load(std::memory_order_relaxed); }

 private:
  friend struct ForkRegistry;
  std::atomic<bool> forked_{false};  // written in the child while it has one thread: orders nothing
  std::vector<int> fds_;             // guarded by the registry's mutex
};

}  // namespace bitpager::client
