// Copies lists of ranges with a few threads that sleep in between. Small lists are copied by the caller
// alone. One caller at a time; the threads start with the first large list and end with the pool.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

namespace bitpager::client {

struct CopyRange {
  void* to = nullptr;
  const void* from = nullptr;
  std::uint64_t bytes = 0;
};

class CopyPool {
 public:
  // `threads`: all that copy, the caller included; at least 1.
  explicit CopyPool(int threads) : threads_(threads < 1 ? 1 : threads) {}
  ~CopyPool();
  CopyPool(const CopyPool&) = delete;
  CopyPool& operator=(const CopyPool&) = delete;

  // Ranges must not overlap. All bytes are visible to other processes when it returns.
  void Run(std::span<const CopyRange> ranges);
  [[nodiscard]] int threads() const { return threads_; }

 private:
  // Where a piece begins: a range and the bytes of it that earlier pieces cover. Pieces cut the ranges'
  // bytes, end to end, at every kPieceBytes.
  struct Cursor {
    std::size_t range = 0;
    std::uint64_t offset = 0;
  };

  void Start();
  void Work();
  // Copies pieces until none is left. Called with `lock` held; holds it between pieces and on return.
  void TakePieces(std::unique_lock<std::mutex>& lock);
  // Returns the end of the piece that begins `at`; calls each(part) for its parts, one a range, on the way.
  template <typename Each>
  static Cursor Walk(std::span<const CopyRange> ranges, Cursor at, const Each& each);

  const int threads_;
  std::vector<std::thread> workers_;

  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  std::condition_variable finished_;
  std::span<const CopyRange> ranges_;
  bool stream_ = false;  // past the caches
  Cursor next_;          // of the first piece that nobody took
  int wanted_ = 0;       // workers that may still join this round
  int working_ = 0;      // workers inside this round
  bool stop_ = false;
};

}  // namespace bitpager::client
