// Messages to the dispatcher thread from any other: a queue of calls and a bell.
#pragma once

#include <functional>
#include <mutex>
#include <utility>
#include <vector>

#include "client/wire/unique_fd.h"
#include "daemon/shared_memory.h"

namespace bitpager::daemon {

class Mailbox {
 public:
  using Call = std::function<void()>;

  // `bell`: a doorbell from MakeBell.
  explicit Mailbox(wire::UniqueFd bell) : bell_(std::move(bell)) {}

  // Any thread.
  void Post(Call call) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      calls_.push_back(std::move(call));
    }
    Ring(bell_.get());
  }

  // Dispatcher thread: runs what was posted, in order. Returns how many.
  int Drain() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      running_.swap(calls_);
    }
    for (Call& call : running_) call();
    const int ran = static_cast<int>(running_.size());
    running_.clear();
    return ran;
  }

  [[nodiscard]] int bell() const { return bell_.get(); }

 private:
  wire::UniqueFd bell_;
  std::mutex mutex_;
  std::vector<Call> calls_;  // guarded by mutex_
  std::vector<Call> running_;
};

}  // namespace bitpager::daemon
