// Maps, thresholds, single values and weight layouts.
#include "quant/codebook.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "quant/block.h"
#include "quant/encode.h"
#include "quant/weight_layout.h"
#include "tests/support/safetensors.h"

namespace bitpager::quant {
namespace {

TEST(DynamicMap, EqualsGoldenExactly) {
  const auto file = testing::ReadSafetensors(BITPAGER_GOLDEN_DIR "/quant8-golden.safetensors");
  const auto s = file.at("map_signed").Floats();
  const auto u = file.at("map_unsigned").Floats();
  for (std::size_t c = 0; c < 256; ++c) {
    EXPECT_EQ(kSignedDynamicMap[c], s[c]) << c;
    EXPECT_EQ(kUnsignedDynamicMap[c], u[c]) << c;
  }
}

TEST(DynamicMap, EncodesItsOwnEntries) {
  for (unsigned c = 0; c < 256; ++c) {
    EXPECT_EQ(EncodeNearest(kSignedDynamicThresholds.data(), kSignedDynamicMap[c]), c);
    EXPECT_EQ(EncodeNearest(kUnsignedDynamicThresholds.data(), kUnsignedDynamicMap[c]), c);
  }
}

TEST(Thresholds, SplitAtTheExactMidpointTiesTowardsZero) {
  for (std::size_t c = 0; c < 255; ++c) {
    const double middle = (double{kSignedDynamicMap[c]} + double{kSignedDynamicMap[c + 1]}) / 2;
    const float below = kSignedDynamicThresholds[c];
    const float above = std::nextafter(below, 2.0F);
    EXPECT_LE(double{below}, middle);
    EXPECT_GE(double{above}, middle);
    if (double{below} == middle) {
      EXPECT_GT(middle, 0);
    }
    if (double{above} == middle) {
      EXPECT_LT(middle, 0);
    }
  }
}

TEST(Nf4, EncodesItsOwnEntriesAndBreaksAtPivots) {
  for (unsigned c = 0; c < 16; ++c) EXPECT_EQ(EncodeNf4(kNf4[c]), c);
  for (unsigned c = 0; c < 15; ++c) {
    EXPECT_EQ(EncodeNf4(kNf4Pivots[c]), c);
    EXPECT_EQ(EncodeNf4(std::nextafter(kNf4Pivots[c], 2.0F)), c + 1);
    EXPECT_NEAR(kNf4Pivots[c], (kNf4[c] + kNf4[c + 1]) / 2, 1e-6);
  }
}

TEST(Fp4, EncodesItsOwnEntries) {
  for (unsigned c = 0; c < 16; ++c) {
    if (c != 8) {
      EXPECT_EQ(EncodeFp4(kFp4[c]), c);
    }
  }
  EXPECT_EQ(EncodeFp4(-1e-4F), 8);
}

TEST(Floats, HalfTypesRoundTripEveryValue) {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float f = F16ToFloat(half);
    const float b = Bf16ToFloat(half);
    if (!std::isnan(f)) {
      EXPECT_EQ(FloatToF16(f), half);
    }
    if (std::isnan(f)) {
      EXPECT_TRUE(std::isnan(F16ToFloat(FloatToF16(f))));
    }
    if (!std::isnan(b)) {
      EXPECT_EQ(FloatToBf16(b), half);
    }
    if (std::isnan(b)) {
      EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(b))));
    }
  }
}

TEST(Floats, RoundToNearestEven) {
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3F808000U)), 0x3F80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3F818000U)), 0x3F82);
  EXPECT_EQ(FloatToF16(1.0F + 0x1p-11F), 0x3C00);
  EXPECT_EQ(FloatToF16(1.0F + 3 * 0x1p-11F), 0x3C02);
  EXPECT_EQ(FloatToF16(65520.0F), 0x7C00);
  EXPECT_EQ(FloatToF16(65519.0F), 0x7BFF);
  EXPECT_EQ(FloatToF16(0x1p-25F), 0);
  EXPECT_EQ(FloatToF16(0x1.8p-25F), 1);
}

TEST(Block8, KeepsSubnormalBlocks) {
  const float in[4] = {0x1p-140F, -0x1p-141F, 0.0F, 0x1p-140F};
  std::uint8_t codes[4];
  float out[4];
  const float absmax = EncodeBlock8(kSignedDynamicThresholds, wire::DType::kF32, in, 4, codes);
  DecodeBlock8(kSignedDynamicMap, wire::DType::kF32, codes, 4, absmax, out);
  EXPECT_EQ(out[0], in[0]);
  EXPECT_NEAR(out[1] / in[1], 1.0, 0.03);
  EXPECT_EQ(out[2], 0.0F);
}

TEST(Block8, NanPoisonsItsBlock) {
  const float in[2] = {1.0F, std::numeric_limits<float>::quiet_NaN()};
  std::uint8_t codes[2];
  float out[2];
  const float absmax = EncodeBlock8(kSignedDynamicThresholds, wire::DType::kF32, in, 2, codes);
  DecodeBlock8(kSignedDynamicMap, wire::DType::kF32, codes, 2, absmax, out);
  EXPECT_TRUE(std::isnan(out[0]) && std::isnan(out[1]));
}

TEST(WeightLayout, RejectsBadSizes) {
  EXPECT_EQ(MakeWeightLayout(48, false, 1 << 21).status().code(), wire::Code::kInvalidArgument);
  EXPECT_EQ(MakeWeightLayout(16, false, 1 << 21).status().code(), wire::Code::kInvalidArgument);
  EXPECT_EQ(MakeWeightLayout(8192, false, 1 << 21).status().code(), wire::Code::kInvalidArgument);
  EXPECT_EQ(MakeWeightLayout(4096, false, 1024).status().code(), wire::Code::kInvalidArgument);
}

TEST(WeightLayout, PlanesFitAlignedAndWithoutOverlap) {
  for (std::size_t page : {8192UL, 65536UL, 1UL << 20, 2UL << 20, 4096UL * 33}) {
    for (std::uint32_t blocksize = 32; blocksize <= 4096; blocksize *= 2) {
      for (bool nested : {false, true}) {
        const auto layout = MakeWeightLayout(blocksize, nested, page);
        ASSERT_TRUE(layout.ok()) << page << " " << blocksize;
        const std::uint64_t blocks = layout->blocks_per_page;
        EXPECT_GE(layout->absmax_offset, blocks * blocksize / 2);
        EXPECT_EQ(layout->absmax_offset % 128, 0U);
        EXPECT_EQ(layout->absmax2_offset % 128, 0U);
        if (!nested) {
          EXPECT_LE(layout->absmax_offset + 4 * blocks, page);
          continue;
        }
        EXPECT_GE(layout->absmax2_offset, layout->absmax_offset + blocks);
        for (std::uint64_t p = 0; p < 300; ++p) {  // groups touched by page p, wherever it starts
          const std::uint64_t groups = ((p + 1) * blocks - 1) / 256 - p * blocks / 256 + 1;
          ASSERT_LE(layout->absmax2_offset + 4 * groups, page);
        }
      }
    }
  }
}

}  // namespace
}  // namespace bitpager::quant
