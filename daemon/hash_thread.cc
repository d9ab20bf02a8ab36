#include "daemon/hash_thread.h"

namespace bitpager::daemon {

HashThread::~HashThread() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void HashThread::Start(ContentHash& hash, const Pieces& pieces) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    hash_ = &hash;
    pieces_ = pieces;
  }
  changed_.notify_all();
  if (!thread_.joinable()) thread_ = std::thread([this] { Run(); });
}

bool HashThread::Done() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return hash_ == nullptr;
}

void HashThread::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stop_ || hash_ != nullptr; });
    if (hash_ == nullptr) return;
    ContentHash& hash = *hash_;
    const Pieces pieces = pieces_;
    lock.unlock();
    for (const std::span<const std::byte> piece : pieces) hash.Add(piece);
    lock.lock();
    hash_ = nullptr;
    lock.unlock();
    ring_();
    lock.lock();
  }
}

}  // namespace bitpager::daemon
