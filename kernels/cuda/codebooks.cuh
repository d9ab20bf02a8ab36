// The number maps of quant/codebook.h in the shapes that device code reads. Constant; each .cu that includes
// this has its own copy.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quant/codebook.h"

namespace bitpager::kernels::cuda {

template <std::size_t kCount>
struct FloatTable {
  float values[kCount];
};

template <std::size_t kCount>
constexpr FloatTable<kCount> TableOf(const std::array<float, kCount>& from) {
  FloatTable<kCount> table{};
  for (std::size_t i = 0; i < kCount; ++i) table.values[i] = from[i];
  return table;
}

[[maybe_unused]] static __device__ const FloatTable<256> kSignedMapOnDevice =
    TableOf(quant::kSignedDynamicMap);
[[maybe_unused]] static __device__ const FloatTable<256> kSignedThresholdsOnDevice =
    TableOf(quant::kSignedDynamicThresholds);
[[maybe_unused]] static __device__ const FloatTable<16> kNf4OnDevice = TableOf(quant::kNf4);
[[maybe_unused]] static __device__ const FloatTable<16> kFp4OnDevice = TableOf(quant::kFp4);

}  // namespace bitpager::kernels::cuda
