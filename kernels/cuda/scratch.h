// Scratch: pinned host memory that kernels and this process read and write at one address. Pooled, because
// pinning takes a millisecond and a request needs a few bytes. The device thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <unordered_map>
#include <vector>

namespace bitpager::kernels::cuda {

class ScratchPool {
 public:
  ScratchPool() = default;
  ~ScratchPool();  // nothing may use it any more
  ScratchPool(const ScratchPool&) = delete;
  ScratchPool& operator=(const ScratchPool&) = delete;

  // Zeroed, aligned to 256 bytes. Null when there is no memory to pin.
  [[nodiscard]] std::byte* Allocate(std::uint64_t bytes);
  // No queued work may use it. Null and what is not ours are ignored.
  void Free(std::byte* at);
  [[nodiscard]] std::uint64_t pinned_bytes() const { return pinned_bytes_; }

 private:
  static constexpr int kClasses = 13;  // 256 bytes to 1 MiB, by powers of two

  [[nodiscard]] std::byte* AllocateLarge(std::uint64_t bytes);
  [[nodiscard]] bool Carve(int size_class);
  [[nodiscard]] std::byte* Pin(std::uint64_t bytes);
  void Unpin(std::byte* at, std::uint64_t bytes);

  std::array<std::vector<std::byte*>, kClasses> free_;
  std::multimap<std::uint64_t, std::byte*> free_large_;  // size -> block
  std::unordered_map<std::byte*, std::uint64_t> live_;   // block -> its size
  std::vector<std::byte*> chunks_;
  std::uint64_t free_large_bytes_ = 0;
  std::uint64_t pinned_bytes_ = 0;
};

}  // namespace bitpager::kernels::cuda
