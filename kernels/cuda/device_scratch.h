// Device memory for what one request's kernels leave each other: a pool of CUDA's, in stream order, so that
// neither taking nor giving back waits for the device. Keeps a little between requests. The device thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_set>

struct CUmemPoolHandle_st;  // a cudaMemPool_t points to one
struct CUstream_st;         // a cudaStream_t points to one

namespace bitpager::kernels::cuda {

class DeviceScratch {
 public:
  // Used by kernels on `stream` alone. The pool is made with the first allocation.
  DeviceScratch(int ordinal, CUstream_st* stream) : ordinal_(ordinal), stream_(stream) {}
  ~DeviceScratch();  // nothing may use it any more
  DeviceScratch(const DeviceScratch&) = delete;
  DeviceScratch& operator=(const DeviceScratch&) = delete;

  // Not zeroed, aligned to 256 bytes. Null when the device has none left, or no pools.
  [[nodiscard]] std::byte* Allocate(std::uint64_t bytes);
  // Behind what the stream holds by now. False: not ours.
  bool Free(std::byte* at);
  // Taken from the device, in use or kept.
  [[nodiscard]] std::uint64_t reserved_bytes() const;

 private:
  [[nodiscard]] bool Open();

  const int ordinal_;
  CUstream_st* const stream_;
  CUmemPoolHandle_st* pool_ = nullptr;
  bool opened_ = false;
  std::unordered_set<std::byte*> live_;
};

}  // namespace bitpager::kernels::cuda
