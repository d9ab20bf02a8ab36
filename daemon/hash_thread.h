// Hashes in the background, one piece after the other, so that the dispatcher never does. Called by the
// dispatcher thread; owns its thread, which starts with the first piece.
#pragma once

#include <array>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <span>
#include <thread>

#include "daemon/content_hash.h"

namespace bitpager::daemon {

class HashThread {
 public:
  using Pieces = std::array<std::span<const std::byte>, 3>;

  // `ring` is called on the thread whenever a piece is done.
  explicit HashThread(std::function<void()> ring) : ring_(std::move(ring)) {}
  ~HashThread();
  HashThread(const HashThread&) = delete;
  HashThread& operator=(const HashThread&) = delete;

  // Adds the pieces to the hash; both stay where they are, untouched, until Done. One at a time.
  void Start(ContentHash& hash, const Pieces& pieces);
  [[nodiscard]] bool Done() const;

 private:
  void Run();

  const std::function<void()> ring_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  ContentHash* hash_ = nullptr;  // guarded by mutex_; null: nothing to do
  Pieces pieces_;                // guarded by mutex_
  bool stop_ = false;            // guarded by mutex_
  std::thread thread_;
};

}  // namespace bitpager::daemon
