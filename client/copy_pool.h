// Copies lists of ranges with a few threads that sleep in between. Small lists are copied by the caller
// alone. One caller at a time; the threads start with the first large list and end with the pool.
#pragma once

#include <condition_variable>
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
  void Start();
  void Work(int index);
  // Part `index` of `parts` of all bytes of ranges_, cut on 64-byte borders of the concatenation.
  void CopyPart(int index, int parts) const;

  const int threads_;
  std::vector<std::thread> workers_;

  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  std::condition_variable finished_;
  std::span<const CopyRange> ranges_;
  std::uint64_t total_bytes_ = 0;
  std::uint64_t round_ = 0;
  int running_ = 0;
  bool stop_ = false;
};

}  // namespace bitpager::client
