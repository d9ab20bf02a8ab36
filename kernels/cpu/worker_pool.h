// The compute queue's extra threads: cuts an op into pieces and runs them on all of them and on the calling
// thread. Run is called by one thread at a time (the compute queue's). Workers sleep between ops.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace bitpager::kernels::cpu {

class WorkerPool {
 public:
  // `threads` in all, the caller of Run among them; at least 1.
  explicit WorkerPool(int threads);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // Calls body(piece) once for each piece in [0, pieces), in any order and in parallel; returns after the
  // last. `body` must not throw.
  void Run(std::uint64_t pieces, const std::function<void(std::uint64_t)>& body);
  [[nodiscard]] int threads() const { return static_cast<int>(workers_.size()) + 1; }

 private:
  void Work();
  void TakePieces(const std::function<void(std::uint64_t)>& body, std::uint64_t pieces);

  std::mutex mutex_;  // guards the block below
  std::condition_variable wake_;
  std::condition_variable idle_;
  const std::function<void(std::uint64_t)>* body_ = nullptr;
  std::uint64_t pieces_ = 0;
  int wanted_ = 0;   // workers that may still join this round
  int working_ = 0;  // workers inside this round
  bool stopping_ = false;

  std::atomic<std::uint64_t> next_{0};  // relaxed: the mutex orders a round's start and end
  std::vector<std::thread> workers_;
};

}  // namespace bitpager::kernels::cpu
