// What the rungs of this laboratory share: device memory, cold-cache timing by events, the copy ceiling, and
// a weight that lies in pages. Not linked into anything; a failed call ends the program.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "kernels/ops.h"
#include "quant/encode.h"
#include "quant/weight_layout.h"

namespace bitpager::lab {

inline void Need(bool fine, const char* what) {
  if (fine) return;
  std::fprintf(stderr, "FAILED: %s\n", what);
  std::exit(1);
}
inline void Need(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "FAILED: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
inline void Need(const wire::Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "FAILED: %s: %s\n", what, status.message().c_str());
  std::exit(1);
}

// Device memory, filled with a poison.
class Memory {
 public:
  explicit Memory(std::size_t bytes) : bytes_(bytes) {
    Need(cudaMalloc(&at_, bytes + 256), "cudaMalloc");
    Poison();
  }
  ~Memory() { cudaFree(at_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void Poison() { Need(cudaMemset(at_, 0xAB, bytes_ + 256), "poison"); }
  [[nodiscard]] std::byte* at() const { return static_cast<std::byte*>(at_); }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }
  void Put(const void* from, std::size_t bytes, std::size_t offset = 0) {
    Need(cudaMemcpy(at() + offset, from, bytes, cudaMemcpyHostToDevice), "copy to the device");
  }
  template <typename T>
  [[nodiscard]] std::vector<T> Get(std::size_t count, std::size_t offset = 0) const {
    std::vector<T> out(count);
    Need(cudaMemcpy(out.data(), at() + offset, count * sizeof(T), cudaMemcpyDeviceToHost), "copy back");
    return out;
  }

 private:
  void* at_ = nullptr;
  std::size_t bytes_;
};

// Random elements: normal, with some zeros and, when `odd`, blocks of odd kinds (all zero, tiny, huge, NaN,
// inf).
inline std::vector<std::uint8_t> RandomElements(wire::DType dtype, std::size_t count, unsigned seed,
                                                bool odd) {
  std::vector<std::uint8_t> out(count * wire::DTypeBytes(dtype));
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, 0.02F);
  for (std::size_t i = 0; i < count; ++i) {
    float x = normal(random);
    if (odd) {
      const std::size_t part = i / 3001 % 16;
      if (part == 3) x = 0.0F;
      if (part == 5) x *= 1e-37F;
      if (part == 7) x *= 1e36F;
      if (part == 9 && random() % 500 == 0) x = std::numeric_limits<float>::quiet_NaN();
      if (part == 11 && random() % 500 == 0) x = std::numeric_limits<float>::infinity();
      if (part == 13) x = -0.0F;
      if (part == 15) x = static_cast<float>(static_cast<int>(random() % 5) - 2) * 1e-44F;
    }
    quant::StoreAs(dtype, out.data(), i, x);
  }
  return out;
}

// Fills device memory with normal bf16, fp16 or fp32 values, quickly.
[[maybe_unused]] static __global__ void FillKernel(std::uint16_t* at, std::uint64_t count,
                                                   std::uint32_t seed) {
  const std::uint64_t stride = std::uint64_t{gridDim.x} * blockDim.x;
  for (std::uint64_t i = std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    std::uint64_t h = (i + 1) * 0x9E3779B97F4A7C15ULL + seed;
    float sum = 0.0F;
    for (int k = 0; k < 4; ++k) {
      h ^= h >> 31;
      h *= 0xBF58476D1CE4E5B9ULL;
      sum += static_cast<float>(h >> 40) * 0x1p-24F - 0.5F;
    }
    at[i] = static_cast<std::uint16_t>(__float_as_uint(sum * 0.035F) >> 16);
  }
}
[[maybe_unused]] static __global__ void FillBytesKernel(std::uint32_t* at, std::uint64_t words,
                                                        std::uint32_t seed) {
  const std::uint64_t stride = std::uint64_t{gridDim.x} * blockDim.x;
  for (std::uint64_t i = std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < words; i += stride) {
    std::uint64_t h = (i + 1) * 0x9E3779B97F4A7C15ULL + seed;
    h ^= h >> 29;
    h *= 0xBF58476D1CE4E5B9ULL;
    at[i] = static_cast<std::uint32_t>(h >> 32);
  }
}
[[maybe_unused]] static __global__ void FillFloatsKernel(float* at, std::uint64_t count, std::uint32_t seed) {
  const std::uint64_t i = std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) at[i] = 0.02F + static_cast<float>((i * 2654435761U + seed) >> 8 & 0xFFFFU) * 1e-7F;
}

// Keeps the stream busy, so that what is timed was enqueued long before it starts.
[[maybe_unused]] static __global__ void SpinKernel(long long cycles) {
  const long long begin = clock64();
  while (clock64() - begin < cycles) {
  }
}

// Median microseconds of `work(i)`, i counting up so that it can take the next of several buffers: a run with
// fewer bytes than the caches between two uses of one buffer is not cold.
inline double MedianUs(cudaStream_t stream, int repeats, const std::function<void(int)>& work) {
  cudaEvent_t begin;
  cudaEvent_t end;
  Need(cudaEventCreate(&begin), "event");
  Need(cudaEventCreate(&end), "event");
  std::vector<float> times;
  for (int i = -3; i < repeats; ++i) {
    SpinKernel<<<1, 32, 0, stream>>>(100000);
    Need(cudaEventRecord(begin, stream), "record");
    work(i + 3);
    Need(cudaEventRecord(end, stream), "record");
    Need(cudaEventSynchronize(end), "synchronize");
    float ms = 0.0F;
    Need(cudaEventElapsedTime(&ms, begin, end), "elapsed");
    if (i >= 0) times.push_back(ms * 1000.0F);
  }
  std::sort(times.begin(), times.end());
  Need(cudaEventDestroy(begin), "event");
  Need(cudaEventDestroy(end), "event");
  return times[times.size() / 2];
}

// Bytes read and written a second by a copy on the device.
inline double CopyCeiling(cudaStream_t stream) {
  constexpr std::size_t kBytes = std::size_t{1} << 30;
  Memory from(kBytes);
  Memory to(kBytes);
  const double us = MedianUs(stream, 11, [&](int) {
    Need(cudaMemcpyAsync(to.at(), from.at(), kBytes, cudaMemcpyDeviceToDevice, stream), "copy");
  });
  return 2.0 * kBytes / us * 1e6;
}

// A weight in pages that lie one behind the other in `memory` (on the device or on the host).
struct PagedSpans {
  quant::WeightLayout layout;
  std::vector<kernels::WeightSpan> spans;
  std::size_t bytes = 0;
};
inline PagedSpans SpansOf(std::uint32_t blocksize, bool nested, std::size_t page_bytes,
                          std::uint64_t elements, std::byte* memory) {
  PagedSpans out;
  auto layout = quant::MakeWeightLayout(blocksize, nested, page_bytes);
  Need(layout.ok(), "layout");
  out.layout = *layout;
  const std::uint64_t pages = quant::PagesOf(out.layout, elements);
  out.bytes = pages * page_bytes;
  const std::uint64_t page_elements = std::uint64_t{out.layout.blocks_per_page} * blocksize;
  for (std::uint64_t page = 0; page < pages; ++page) {
    kernels::WeightSpan span;
    span.page = memory + page * page_bytes;
    span.first_global_block = page * out.layout.blocks_per_page;
    span.page_global_block = span.first_global_block;
    span.elements = std::min(page_elements, elements - page * page_elements);
    span.blocks = static_cast<std::uint32_t>(quant::BlocksOf(span.elements, blocksize));
    out.spans.push_back(span);
  }
  return out;
}

}  // namespace bitpager::lab
