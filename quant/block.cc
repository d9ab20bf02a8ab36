#include "quant/block.h"

#include <algorithm>
#include <array>
#include <bit>
#include <vector>

#include "quant/encode.h"
#include "quant/weight_layout.h"

namespace bitpager::quant {
namespace {

// Below this 1 / absmax may overflow.
constexpr float kTinyAbsmax = 0x1p-120F;

float Normalised(wire::DType dtype, const void* in, std::size_t i, Reciprocal r) {
  return LoadAs(dtype, in, i) * r.pre * r.inverse;
}

// Running sums by index modulo kMeanSums, folded by halves.
template <typename T>
double OrderedSum(std::span<const T> values) {
  std::array<double, kMeanSums> sums{};
  std::size_t i = 0;
  for (; i + kMeanSums <= values.size(); i += kMeanSums) {
    for (std::size_t k = 0; k < kMeanSums; ++k) sums[k] += values[i + k];
  }
  for (std::size_t k = 0; i + k < values.size(); ++k) sums[k] += values[i + k];
  for (std::size_t apart = kMeanSums / 2; apart != 0; apart /= 2) {
    for (std::size_t k = 0; k < apart; ++k) sums[k] += sums[k + apart];
  }
  return sums[0];
}

}  // namespace

float AbsmaxOf(wire::DType dtype, const void* in, std::size_t elements) {
  std::uint32_t greatest = 0;  // as bits: magnitudes order as integers, NaN above inf
  for (std::size_t i = 0; i < elements; ++i) {
    greatest = std::max(greatest, std::bit_cast<std::uint32_t>(LoadAs(dtype, in, i)) & 0x7FFFFFFFU);
  }
  return std::bit_cast<float>(greatest);
}

Reciprocal ReciprocalOf(float absmax) {
  if (absmax == 0.0F) return {1.0F, 0.0F};
  if (absmax >= kTinyAbsmax) return {1.0F, 1.0F / absmax};
  return {0x1p64F, 1.0F / (absmax * 0x1p64F)};
}

void PackBlock4(wire::QuantType type, wire::DType dtype, const void* in, std::size_t elements, float absmax,
                std::uint8_t* packed) {
  const Reciprocal r = ReciprocalOf(absmax);
  const std::uint8_t zero = Encode4(type, 0.0F);
  for (std::size_t i = 0; i < elements; i += 2) {
    const std::uint8_t high = Encode4(type, Normalised(dtype, in, i, r));
    const std::uint8_t low = i + 1 < elements ? Encode4(type, Normalised(dtype, in, i + 1, r)) : zero;
    packed[i / 2] = static_cast<std::uint8_t>((high << 4) | low);
  }
}

void UnpackBlock4(wire::QuantType type, wire::DType dtype, const std::uint8_t* packed, std::size_t elements,
                  float absmax, void* out) {
  const float* table = Table4(type);
  for (std::size_t i = 0; i < elements; ++i) {
    const unsigned code = i % 2 == 0 ? packed[i / 2] >> 4 : packed[i / 2] & 15U;
    StoreAs(dtype, out, i, table[code] * absmax);
  }
}

float EncodeBlock8(const Thresholds256& thresholds, wire::DType dtype, const void* in, std::size_t elements,
                   std::uint8_t* codes) {
  const float absmax = AbsmaxOf(dtype, in, elements);
  const Reciprocal r = ReciprocalOf(absmax);
  for (std::size_t i = 0; i < elements; ++i) {
    codes[i] = EncodeNearest(thresholds.data(), Normalised(dtype, in, i, r));
  }
  return absmax;
}

void DecodeBlock8(const Map256& map, wire::DType dtype, const std::uint8_t* codes, std::size_t elements,
                  float absmax, void* out) {
  for (std::size_t i = 0; i < elements; ++i) StoreAs(dtype, out, i, map[codes[i]] * absmax);
}

float MeanAbsmax(std::span<const float> absmax) {
  if (absmax.empty()) return 0.0F;
  std::vector<double> chunks;
  chunks.reserve(absmax.size() / kMeanChunk + 1);
  for (std::size_t first = 0; first < absmax.size(); first += kMeanChunk) {
    chunks.push_back(OrderedSum(absmax.subspan(first, std::min(kMeanChunk, absmax.size() - first))));
  }
  const double total = OrderedSum(std::span<const double>(chunks));
  return static_cast<float>(total / static_cast<double>(absmax.size()));
}

void NestAbsmax(std::span<const float> absmax, std::uint8_t* codes, float* absmax2, float* offset) {
  const float mean = MeanAbsmax(absmax);
  *offset = mean;
  std::array<float, kNestedBlock> centred{};
  for (std::size_t first = 0; first < absmax.size(); first += kNestedBlock) {
    const std::size_t count = std::min<std::size_t>(kNestedBlock, absmax.size() - first);
    for (std::size_t i = 0; i < count; ++i) centred[i] = absmax[first + i] - mean;
    absmax2[first / kNestedBlock] =
        EncodeBlock8(kSignedDynamicThresholds, wire::DType::kF32, centred.data(), count, codes + first);
  }
}

}  // namespace bitpager::quant
