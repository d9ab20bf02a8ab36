// The vector kernels against the scalar reference, bit for bit.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/simd/eight_bit.h"
#include "kernels/simd/four_bit.h"
#include "kernels/simd/step.h"
#include "optim8bit/reference_step.h"
#include "quant/block.h"
#include "quant/codebook.h"
#include "quant/encode.h"

namespace bitpager::kernels::simd {
namespace {

using wire::DType;

const quant::Thresholds256& Thresholds(bool is_signed) {
  return is_signed ? quant::kSignedDynamicThresholds : quant::kUnsignedDynamicThresholds;
}

// Encodes values of magnitude up to 1 in blocks of 64 whose first element is 1, so that absmax is 1.
void ExpectNearest(bool is_signed, const std::vector<float>& values) {
  std::vector<float> in;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (in.size() % 64 == 0) in.push_back(1.0F);
    in.push_back(values[i]);
  }
  while (in.size() % 64 != 0) in.push_back(0.0F);
  std::vector<std::uint8_t> codes(in.size());
  std::vector<float> absmax(in.size() / 64);
  EncodeDynamic(is_signed, DType::kF32, in.data(), in.size(), 64, codes.data(), absmax.data());
  for (std::size_t i = 0; i < in.size(); ++i) {
    ASSERT_EQ(codes[i], quant::EncodeNearest(Thresholds(is_signed).data(), in[i]))
        << "value " << in[i] << " signed " << is_signed;
  }
}

std::vector<float> AroundMidpoints(bool is_signed, int ulps) {
  std::vector<float> values;
  for (std::size_t c = 0; c < 255; ++c) {
    float x = Thresholds(is_signed)[c];
    for (int i = 0; i < ulps; ++i) x = std::nextafter(x, -2.0F);
    for (int i = 0; i <= 2 * ulps; ++i) {
      if (std::fabs(x) <= 1.0F && (is_signed || x >= 0)) values.push_back(x);
      x = std::nextafter(x, 2.0F);
    }
  }
  return values;
}

TEST(DynamicEncoder, IsNearestAroundEveryMidpointOfTheSignedMap) { ExpectNearest(true, AroundMidpoints(true, 600)); }
TEST(DynamicEncoder, IsNearestAroundEveryMidpointOfTheUnsignedMap) {
  ExpectNearest(false, AroundMidpoints(false, 600));
}

TEST(DynamicEncoder, IsNearestOverAllMagnitudes) {
  for (const bool is_signed : {true, false}) {
    std::vector<float> values;
    for (std::uint32_t bits = 0; bits <= 0x3F800000U; bits += 977) {
      const float x = std::bit_cast<float>(bits);
      values.push_back(is_signed && bits % 2 == 1 ? -x : x);
    }
    ExpectNearest(is_signed, values);
  }
}

}  // namespace
}  // namespace bitpager::kernels::simd
