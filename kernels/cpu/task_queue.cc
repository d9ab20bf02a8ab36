#include "kernels/cpu/task_queue.h"

#include <pthread.h>
#include <unistd.h>

#include <utility>

namespace bitpager::kernels::cpu {

TaskQueue::TaskQueue(std::string name, int progress_fd)
    : progress_fd_(progress_fd), thread_([this] { Run(); }) {
  name.resize(std::min<std::size_t>(name.size(), 15));  // the kernel's limit
  pthread_setname_np(thread_.native_handle(), name.c_str());
}

TaskQueue::~TaskQueue() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

std::uint64_t TaskQueue::Push(std::function<void()> work) {
  bool was_empty = false;
  {
    const std::lock_guard lock(mutex_);
    was_empty = tasks_.empty();
    tasks_.push_back(std::move(work));
  }
  if (was_empty) wake_.notify_one();
  return ++pushed_;
}

bool TaskQueue::Done(std::uint64_t sequence) const {
  return finished_.load(std::memory_order_acquire) >= sequence;
}

void TaskQueue::Await(std::uint64_t sequence) {
  if (Done(sequence)) return;
  waiters_.fetch_add(1);
  {
    std::unique_lock lock(done_mutex_);
    done_.wait(lock, [&] { return finished_.load() >= sequence; });
  }
  waiters_.fetch_sub(1);
}

void TaskQueue::Run() {
  std::uint64_t sequence = 0;
  std::deque<std::function<void()>> batch;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stopping_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      batch.swap(tasks_);
    }
    for (auto& work : batch) {
      work();
      work = nullptr;  // what the task holds ends before its event
      Finish(++sequence);
    }
    batch.clear();
  }
}

void TaskQueue::Finish(std::uint64_t sequence) {
  finished_.store(sequence);
  if (waiters_.load() != 0) {
    { const std::lock_guard lock(done_mutex_); }  // a waiter is either before its check or asleep
    done_.notify_all();
  }
  const std::uint64_t one = 1;
  // Fails only when the counter is full, and then the fd is readable already.
  [[maybe_unused]] const ssize_t written = ::write(progress_fd_, &one, sizeof(one));
}

}  // namespace bitpager::kernels::cpu
