// The life of a private daemon: it ends when nobody came in time, or a little after its last client has gone.
// Owns one thread, which sleeps until a deadline or a change.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>

namespace bitpager::daemon {

class PrivateLife {
 public:
  ~PrivateLife();

  // `end` is called once, on the thread of this object.
  void Start(std::int64_t first_client_ms, std::int64_t grace_ms, std::function<void()> end);
  // Any thread: how many sessions there are now.
  void SetSessions(std::size_t sessions);

 private:
  using Deadline = std::chrono::steady_clock::time_point;
  void Loop();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t sessions_ = 0;  // guarded by mutex_
  Deadline deadline_{};       // guarded by mutex_; counts while there are no sessions
  bool stopping_ = false;     // guarded by mutex_
  std::int64_t grace_ms_ = 0;
  std::function<void()> end_;
  std::thread thread_;
};

// Waits until one of two fds is readable. True when it was the first.
[[nodiscard]] bool WaitEither(int first, int second);

}  // namespace bitpager::daemon
