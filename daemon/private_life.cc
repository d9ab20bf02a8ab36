#include "daemon/private_life.h"

#include <poll.h>

#include <cerrno>

namespace bitpager::daemon {

PrivateLife::~PrivateLife() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void PrivateLife::Start(std::int64_t first_client_ms, std::int64_t grace_ms, std::function<void()> end) {
  grace_ms_ = grace_ms;
  end_ = std::move(end);
  deadline_ = std::chrono::steady_clock::now() + std::chrono::milliseconds(first_client_ms);
  thread_ = std::thread([this] { Loop(); });
}

void PrivateLife::SetSessions(std::size_t sessions) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (sessions == 0 && sessions_ != 0) {
      deadline_ = std::chrono::steady_clock::now() + std::chrono::milliseconds(grace_ms_);
    }
    sessions_ = sessions;
  }
  changed_.notify_all();
}

void PrivateLife::Loop() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    if (sessions_ != 0) {
      changed_.wait(lock);
      continue;
    }
    if (std::chrono::steady_clock::now() >= deadline_) {
      end_();
      return;
    }
    changed_.wait_until(lock, Deadline(deadline_));
  }
}

bool WaitEither(int first, int second) {
  pollfd fds[2] = {{first, POLLIN, 0}, {second, POLLIN, 0}};
  while (::poll(fds, 2, -1) < 0 && errno == EINTR) {
  }
  return (fds[0].revents & POLLIN) != 0;
}

}  // namespace bitpager::daemon
