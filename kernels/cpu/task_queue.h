// One FIFO queue of the CPU device: its own thread, which sleeps while there is nothing to do. Tasks finish
// in order; each gets the next sequence number. Push from one thread; reads from any.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

namespace bitpager::kernels::cpu {

class TaskQueue {
 public:
  // `progress_fd`: an eventfd written after every finished task; owned by the caller and outliving this.
  TaskQueue(std::string name, int progress_fd);
  // Finishes what was pushed, then joins.
  ~TaskQueue();
  TaskQueue(const TaskQueue&) = delete;
  TaskQueue& operator=(const TaskQueue&) = delete;

  // Returns the task's sequence number. `work` must not throw.
  std::uint64_t Push(std::function<void()> work);
  [[nodiscard]] bool Done(std::uint64_t sequence) const;
  // Blocks until `sequence` is finished. Any thread but the queue's own.
  void Await(std::uint64_t sequence);
  // Sequence of the newest task pushed. Only the pushing thread.
  [[nodiscard]] std::uint64_t pushed() const { return pushed_; }

 private:
  void Run();
  void Finish(std::uint64_t sequence);

  const int progress_fd_;
  std::uint64_t pushed_ = 0;  // pushing thread only

  std::mutex mutex_;  // guards tasks_, stopping_
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  bool stopping_ = false;

  // Stored by the queue's thread, loaded by Done (acquire: what the task wrote is visible) and by Await.
  std::atomic<std::uint64_t> finished_{0};
  // Sequentially consistent with finished_: a waiter adds itself, then reads finished_; the queue stores
  // finished_, then reads waiters_. One of the two sees the other.
  std::atomic<int> waiters_{0};
  std::mutex done_mutex_;
  std::condition_variable done_;

  std::thread thread_;  // last: starts when everything above stands
};

}  // namespace bitpager::kernels::cpu
