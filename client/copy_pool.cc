#include "client/copy_pool.h"

#include <algorithm>
#include <csignal>
#include <system_error>

#include "client/local_ops.h"

namespace bitpager::client {
namespace {

// Under this a second thread costs more than it saves: waking one takes as long as copying some 100 KiB.
constexpr std::uint64_t kParallelBytes = 1U << 20;
// So much does not stay in the caches until it is read; less than this may, and is found there.
constexpr std::uint64_t kStreamBytes = 32U << 20;
// Taken at once: little enough that a thread that wakes late, or shares its processor, holds up nobody.
constexpr std::uint64_t kPieceBytes = 256U << 10;

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
  const bool stream = total >= kStreamBytes;
  if (total < kParallelBytes || threads_ == 1) {
    for (const CopyRange& range : ranges) CopyBytes(range.to, range.from, range.bytes, stream);
    return;
  }
  if (workers_.empty()) Start();
  const auto helpers = static_cast<int>(std::min<std::uint64_t>(workers_.size(), total / kPieceBytes - 1));
  std::unique_lock lock(mutex_);
  ranges_ = ranges;
  stream_ = stream;
  next_ = {};
  wanted_ = helpers;
  lock.unlock();
  for (int i = 0; i < helpers; ++i) wake_.notify_one();
  lock.lock();
  TakePieces(lock);
  wanted_ = 0;  // every piece is taken: a late worker stays asleep
  finished_.wait(lock, [this] { return working_ == 0; });
}

void CopyPool::Start() {
  // Signals are for the program's own threads.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    for (int i = 0; i + 1 < threads_; ++i) workers_.emplace_back([this] { Work(); });
  } catch (const std::system_error&) {
    // No more threads to be had: those that started do the work, with the caller.
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void CopyPool::Work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return stop_ || wanted_ > 0; });
    if (stop_) return;
    --wanted_;
    ++working_;
    TakePieces(lock);
    if (--working_ == 0) finished_.notify_one();
  }
}

void CopyPool::TakePieces(std::unique_lock<std::mutex>& lock) {
  const std::span<const CopyRange> ranges = ranges_;
  const bool stream = stream_;
  while (next_.range < ranges.size()) {
    const Cursor piece = next_;
    next_ = Walk(ranges, piece, [](const CopyRange&) {});
    lock.unlock();
    (void)Walk(ranges, piece,
               [stream](const CopyRange& part) { CopyBytes(part.to, part.from, part.bytes, stream); });
    lock.lock();
  }
}

template <typename Each>
CopyPool::Cursor CopyPool::Walk(std::span<const CopyRange> ranges, Cursor at, const Each& each) {
  std::uint64_t room = kPieceBytes;
  while (room != 0 && at.range < ranges.size()) {
    const CopyRange& range = ranges[at.range];
    const std::uint64_t bytes = std::min(room, range.bytes - at.offset);
    if (bytes != 0) {
      each({static_cast<char*>(range.to) + at.offset, static_cast<const char*>(range.from) + at.offset,
            bytes});
    }
    room -= bytes;
    at.offset += bytes;
    if (at.offset == range.bytes) at = {at.range + 1, 0};
  }
  return at;
}

}  // namespace bitpager::client
