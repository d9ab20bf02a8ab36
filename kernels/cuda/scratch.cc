#include "kernels/cuda/scratch.h"

#include <cuda_runtime_api.h>

#include <bit>
#include <cstring>

namespace bitpager::kernels::cuda {
namespace {

constexpr std::uint64_t kLeastBytes = 256;
constexpr std::uint64_t kMostSmallBytes = std::uint64_t{1} << 20;
constexpr std::uint64_t kChunkBytes = std::uint64_t{2} << 20;
// Large blocks that nobody uses are kept up to so many bytes.
constexpr std::uint64_t kKeptLargeBytes = std::uint64_t{256} << 20;

int ClassOf(std::uint64_t bytes) {
  return bytes <= kLeastBytes ? 0 : static_cast<int>(std::bit_width(bytes - 1)) - 8;
}

}  // namespace

ScratchPool::~ScratchPool() {
  for (std::byte* chunk : chunks_) static_cast<void>(cudaFreeHost(chunk));
  for (const auto& [bytes, at] : free_large_) static_cast<void>(cudaFreeHost(at));
  for (const auto& [at, bytes] : live_) {
    if (bytes > kMostSmallBytes) static_cast<void>(cudaFreeHost(at));
  }
}

std::byte* ScratchPool::Pin(std::uint64_t bytes) {
  void* at = nullptr;
  if (cudaHostAlloc(&at, bytes, cudaHostAllocMapped | cudaHostAllocPortable) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // told by the null; not an error of a later call
    return nullptr;
  }
  pinned_bytes_ += bytes;
  return static_cast<std::byte*>(at);
}

void ScratchPool::Unpin(std::byte* at, std::uint64_t bytes) {
  static_cast<void>(cudaFreeHost(at));
  pinned_bytes_ -= bytes;
}

bool ScratchPool::Carve(int size_class) {
  std::byte* const chunk = Pin(kChunkBytes);
  if (chunk == nullptr) return false;
  chunks_.push_back(chunk);
  const std::uint64_t bytes = kLeastBytes << size_class;
  for (std::uint64_t at = kChunkBytes; at >= bytes; at -= bytes) {
    free_[static_cast<std::size_t>(size_class)].push_back(chunk + at - bytes);
  }
  return true;
}

// A kept block serves when it is at most twice as large.
std::byte* ScratchPool::AllocateLarge(std::uint64_t bytes) {
  if (bytes > ~std::uint64_t{0} / 2) return nullptr;
  const std::uint64_t rounded = (bytes + kMostSmallBytes - 1) / kMostSmallBytes * kMostSmallBytes;
  const auto kept = free_large_.lower_bound(rounded);
  if (kept != free_large_.end() && kept->first <= 2 * rounded) {
    std::byte* const at = kept->second;
    live_.emplace(at, kept->first);
    free_large_bytes_ -= kept->first;
    free_large_.erase(kept);
    return at;
  }
  std::byte* const at = Pin(rounded);
  if (at != nullptr) live_.emplace(at, rounded);
  return at;
}

std::byte* ScratchPool::Allocate(std::uint64_t bytes) {
  std::byte* at = nullptr;
  if (bytes > kMostSmallBytes) {
    at = AllocateLarge(bytes);
  } else {
    const int size_class = ClassOf(bytes);
    auto& free = free_[static_cast<std::size_t>(size_class)];
    if (free.empty() && !Carve(size_class)) return nullptr;
    at = free.back();
    free.pop_back();
    live_.emplace(at, kLeastBytes << size_class);
  }
  if (at != nullptr) std::memset(at, 0, bytes);
  return at;
}

void ScratchPool::Free(std::byte* at) {
  const auto found = live_.find(at);
  if (found == live_.end()) return;
  const std::uint64_t bytes = found->second;
  live_.erase(found);
  if (bytes <= kMostSmallBytes) {
    free_[static_cast<std::size_t>(ClassOf(bytes))].push_back(at);
  } else if (free_large_bytes_ + bytes <= kKeptLargeBytes) {
    free_large_.emplace(bytes, at);
    free_large_bytes_ += bytes;
  } else {
    Unpin(at, bytes);
  }
}

}  // namespace bitpager::kernels::cuda
