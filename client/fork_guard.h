// Cuts a forked child off from its parent's sessions. One pthread_atfork handler for the process walks all
// guards in the child: it marks each one and closes its fds there, so that the daemon sees the parent's end
// at once although a child lives. The registry is never destroyed (no static destructors).
#pragma once

#include <atomic>
#include <vector>

namespace bitpager::client {

class ForkGuard {
 public:
  ForkGuard();
  ~ForkGuard();  // in a forked child: never called, the guard's owner is leaked there
  ForkGuard(const ForkGuard&) = delete;
  ForkGuard& operator=(const ForkGuard&) = delete;

  // `fd` is closed in every child from now on. Call while no fork can lose it: right after it came.
  void Watch(int fd);
  // The fd is about to be closed here.
  void Unwatch(int fd);
  // True in a child. No lock: a child's copy of any mutex may be held by a thread that it does not have.
  [[nodiscard]] bool forked() const { return forked_.load(std::memory_order_relaxed); }

 private:
  friend struct ForkRegistry;
  std::atomic<bool> forked_{false};  // written in the child while it has one thread: orders nothing
  std::vector<int> fds_;             // guarded by the registry's mutex
};

}  // namespace bitpager::client
