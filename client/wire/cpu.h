// The two processor hints that both sides of the rings need. Any thread.
#pragma once

#include <immintrin.h>

#include <atomic>
#include <cstdint>

namespace bitpager::wire {

// Orders the stores before it ahead of the loads after it (store a flag or cursor, then look at the peer's).
// Sequentially consistent fence; the thread sanitizer knows no fences, so there a read-modify-write stands
// in.
inline void StoreLoadFence() {
#if defined(__SANITIZE_THREAD__)
  static std::atomic<std::uint64_t> barrier{0};
  barrier.fetch_add(1, std::memory_order_seq_cst);
#else
  std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}

// One turn of a spin loop.
inline void CpuPause() {
  _mm_pause();
}

}  // namespace bitpager::wire
