#include "kernels/cpu/worker_pool.h"

#include <algorithm>

namespace bitpager::kernels::cpu {

WorkerPool::WorkerPool(int threads) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { Work(); });
}

WorkerPool::~WorkerPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void WorkerPool::Run(std::uint64_t pieces, const std::function<void(std::uint64_t)>& body) {
  const int helpers =
      static_cast<int>(std::min<std::uint64_t>(workers_.size(), pieces == 0 ? 0 : pieces - 1));
  if (helpers == 0) {
    for (std::uint64_t piece = 0; piece < pieces; ++piece) body(piece);
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    body_ = &body;
    pieces_ = pieces;
    wanted_ = helpers;
    next_.store(0, std::memory_order_relaxed);
  }
  for (int i = 0; i < helpers; ++i) wake_.notify_one();
  TakePieces(body, pieces);
  std::unique_lock lock(mutex_);
  wanted_ = 0;  // every piece is taken: a late worker stays asleep
  idle_.wait(lock, [&] { return working_ == 0; });
}

void WorkerPool::Work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return stopping_ || wanted_ > 0; });
    if (stopping_) return;
    --wanted_;
    ++working_;
    const auto* body = body_;
    const std::uint64_t pieces = pieces_;
    lock.unlock();
    TakePieces(*body, pieces);
    lock.lock();
    if (--working_ == 0) idle_.notify_one();
  }
}

void WorkerPool::TakePieces(const std::function<void(std::uint64_t)>& body, std::uint64_t pieces) {
  for (;;) {
    const std::uint64_t piece = next_.fetch_add(1, std::memory_order_relaxed);
    if (piece >= pieces) return;
    body(piece);
  }
}

}  // namespace bitpager::kernels::cpu
