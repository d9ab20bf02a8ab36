#include "kernels/cuda/device_scratch.h"

#include <cuda_runtime_api.h>

namespace bitpager::kernels::cuda {
namespace {

// Kept when nobody uses it: the statistics of a weight of 8192 x 28672 in blocks of 64 take 18 MiB.
constexpr std::uint64_t kKeptBytes = std::uint64_t{32} << 20;

// Fine, or the error is forgotten: told by the result, not an error of a later call.
bool Fine(cudaError_t result) {
  if (result == cudaSuccess) return true;
  static_cast<void>(cudaGetLastError());
  return false;
}

}  // namespace

DeviceScratch::~DeviceScratch() {
  for (std::byte* at : live_) static_cast<void>(Fine(cudaFreeAsync(at, stream_)));
  if (pool_ == nullptr) return;
  static_cast<void>(Fine(cudaStreamSynchronize(stream_)));
  static_cast<void>(Fine(cudaMemPoolDestroy(pool_)));
}

bool DeviceScratch::Open() {
  if (opened_) return pool_ != nullptr;
  opened_ = true;
  cudaMemPoolProps properties{};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = ordinal_;
  if (!Fine(cudaMemPoolCreate(&pool_, &properties))) {
    pool_ = nullptr;
    return false;
  }
  std::uint64_t kept = kKeptBytes;
  static_cast<void>(Fine(cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &kept)));
  return true;
}

std::byte* DeviceScratch::Allocate(std::uint64_t bytes) {
  if (!Open()) return nullptr;
  void* at = nullptr;
  if (!Fine(cudaMallocFromPoolAsync(&at, bytes == 0 ? 1 : bytes, pool_, stream_))) return nullptr;
  live_.insert(static_cast<std::byte*>(at));
  return static_cast<std::byte*>(at);
}

bool DeviceScratch::Free(std::byte* at) {
  if (live_.erase(at) == 0) return false;
  static_cast<void>(Fine(cudaFreeAsync(at, stream_)));
  // The pool lets go by itself only where somebody waits for a stream, and nobody does here. What other
  // requests still hold the stream with goes with a later one.
  if (live_.empty()) static_cast<void>(Fine(cudaMemPoolTrimTo(pool_, kKeptBytes)));
  return true;
}

std::uint64_t DeviceScratch::reserved_bytes() const {
  std::uint64_t bytes = 0;
  if (pool_ == nullptr || !Fine(cudaMemPoolGetAttribute(pool_, cudaMemPoolAttrReservedMemCurrent, &bytes))) {
    return 0;
  }
  return bytes;
}

}  // namespace bitpager::kernels::cuda
