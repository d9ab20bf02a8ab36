#include "client/fork_guard.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>

namespace bitpager::client {

struct ForkRegistry {
  std::mutex mutex;
  std::vector<ForkGuard*> guards;

  static ForkRegistry& Get() {
    static ForkRegistry* const registry = Make();  // leaked: a fork may come during exit
    return *registry;
  }
  static ForkRegistry* Make() {
    auto* registry = new ForkRegistry;
    // Held across the fork, so that the child's copy is consistent and unlocked afterwards.
    ::pthread_atfork([] { Get().mutex.lock(); }, [] { Get().mutex.unlock(); }, [] { Get().InChild(); });
    return registry;
  }
  void InChild() {
    for (ForkGuard* guard : guards) {
      guard->forked_.store(true, std::memory_order_relaxed);
      for (const int fd : guard->fds_) ::close(fd);
      guard->fds_.clear();
    }
    guards.clear();
    mutex.unlock();
  }
};

ForkGuard::ForkGuard(std::initializer_list<int> fds) : fds_(fds) {
  ForkRegistry& registry = ForkRegistry::Get();
  const std::lock_guard lock(registry.mutex);
  registry.guards.push_back(this);
}

ForkGuard::~ForkGuard() {
  ForkRegistry& registry = ForkRegistry::Get();
  const std::lock_guard lock(registry.mutex);
  std::erase(registry.guards, this);
}

void ForkGuard::Unwatch(int fd) {
  const std::lock_guard lock(ForkRegistry::Get().mutex);
  std::erase(fds_, fd);
}

ForkGuard::Pause::Pause(ForkGuard& guard, int fd) : lock_(ForkRegistry::Get().mutex) {
  std::erase(guard.fds_, fd);
}

}  // namespace bitpager::client
