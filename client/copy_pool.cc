#include "client/copy_pool.h"

#include <csignal>
#include <cstring>
#include <system_error>

#include "client/local_ops.h"

namespace bitpager::client {
namespace {

// Under this a second thread costs more than it saves.
constexpr std::uint64_t kParallelBytes = 4U << 20;

}  // namespace

CopyPool::~CopyPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void CopyPool::Run(std::span<const CopyRange> ranges) {
  std::uint64_t total = 0;
  for (const CopyRange& range : ranges) total += range.bytes;
  if (total < kParallelBytes || threads_ == 1) {
    for (const CopyRange& range : ranges) CopyBytes(range.to, range.from, range.bytes);
    return;
  }
  if (workers_.empty()) Start();
  const int parts = static_cast<int>(workers_.size()) + 1;
  {
    const std::lock_guard lock(mutex_);
    ranges_ = ranges;
    total_bytes_ = total;
    running_ = parts - 1;
    ++round_;
  }
  wake_.notify_all();
  CopyPart(parts - 1, parts);
  std::unique_lock lock(mutex_);
  finished_.wait(lock, [this] { return running_ == 0; });
}

void CopyPool::Start() {
  // Signals are for the program's own threads.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    for (int i = 0; i + 1 < threads_; ++i) workers_.emplace_back([this, i] { Work(i); });
  } catch (const std::system_error&) {
    // No more threads to be had: those that started do the work, with the caller.
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void CopyPool::Work(int index) {
  std::uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return stop_ || round_ != seen; });
    if (stop_) return;
    seen = round_;
    lock.unlock();
    CopyPart(index, static_cast<int>(workers_.size()) + 1);
    lock.lock();
    if (--running_ == 0) finished_.notify_one();
  }
}

void CopyPool::CopyPart(int index, int parts) const {
  const std::uint64_t chunk = (total_bytes_ / static_cast<std::uint64_t>(parts) + 63) / 64 * 64;
  const std::uint64_t first = chunk * static_cast<std::uint64_t>(index);
  const std::uint64_t last = index + 1 == parts ? total_bytes_ : first + chunk;
  std::uint64_t at = 0;  // where the range starts in the concatenation
  for (const CopyRange& range : ranges_) {
    const std::uint64_t from = first > at ? first - at : 0;
    const std::uint64_t to = last > at ? (last - at < range.bytes ? last - at : range.bytes) : 0;
    if (from < to) {
      CopyBytes(static_cast<char*>(range.to) + from, static_cast<const char*>(range.from) + from, to - from);
    }
    at += range.bytes;
    if (at >= last) break;
  }
}

}  // namespace bitpager::client
