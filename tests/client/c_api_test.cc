// The C ABI without a daemon: structs, versions, codes, and the number formats in this process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "client/bitpager.h"

namespace bitpager::client {
namespace {

using ::testing::HasSubstr;

TEST(CApi, RefusesNullsAndWrongSizes) {
  EXPECT_EQ(bp_connect(nullptr, nullptr), BP_INVALID_ARGUMENT);
  bp_session* session = nullptr;
  bp_connect_options options{};
  EXPECT_EQ(bp_connect(&options, &session), BP_INVALID_ARGUMENT);
  EXPECT_THAT(bp_last_error(), HasSubstr("struct_bytes 0; set it to sizeof(bp_connect_options)"));
  bp_disconnect(nullptr);
  EXPECT_EQ(bp_noop(nullptr), BP_INVALID_ARGUMENT);
  EXPECT_EQ(bp_quant_map(5, nullptr), BP_INVALID_ARGUMENT);
  EXPECT_EQ(bp_dynamic_map(1, nullptr), BP_INVALID_ARGUMENT);
}

TEST(CApi, LongerStructsPassOnlyWhenTheirNewFieldsAreZero) {
  struct Longer {
    bp_connect_options known;
    std::uint64_t later;
  } longer{};
  longer.known.struct_bytes = sizeof(longer);
  longer.known.socket = "/nonexistent";
  bp_session* session = nullptr;
  EXPECT_EQ(bp_connect(&longer.known, &session), BP_UNREACHABLE);
  longer.later = 1;
  EXPECT_EQ(bp_connect(&longer.known, &session), BP_UNSUPPORTED);
}

TEST(CApi, QuantizesAndDequantizesInProcess) {
  std::vector<float> in(1000);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i % 17) - 8.0F;
  std::vector<unsigned char> packed(500);
  std::vector<float> absmax(16);
  std::vector<float> out(1000);
  ASSERT_EQ(bp_quantize_4bit(BP_NF4, BP_F32, in.data(), 1000, 64, packed.data(), absmax.data(), 0), BP_OK);
  ASSERT_EQ(bp_dequantize_4bit(BP_NF4, BP_F32, packed.data(), absmax.data(), 1000, 64, out.data(), 0), BP_OK);
  for (std::size_t i = 0; i < in.size(); ++i) EXPECT_NEAR(out[i], in[i], 1.3F);
  EXPECT_EQ(absmax[0], 8.0F);
  EXPECT_EQ(bp_quantize_4bit(BP_NF4, BP_F32, in.data(), 1000, 63, packed.data(), absmax.data(), 0),
            BP_INVALID_ARGUMENT);
  EXPECT_EQ(bp_quantize_4bit(7, BP_F32, in.data(), 1000, 64, packed.data(), absmax.data(), 0),
            BP_INVALID_ARGUMENT);
  float map[256];
  ASSERT_EQ(bp_dynamic_map(1, map), BP_OK);
  std::vector<unsigned char> codes(1000);
  ASSERT_EQ(bp_quantize_blockwise(map, BP_F32, in.data(), 1000, 256, codes.data(), absmax.data(), 1), BP_OK);
  ASSERT_EQ(bp_dequantize_blockwise(map, BP_F32, codes.data(), absmax.data(), 1000, 256, out.data(), 1),
            BP_OK);
  for (std::size_t i = 0; i < in.size(); ++i) EXPECT_NEAR(out[i], in[i], 0.1F);
}

TEST(CApi, NamesVersionsAndCodes) {
  EXPECT_EQ(bp_abi_version(), BP_ABI_VERSION);
  EXPECT_STREQ(bp_version(), "0.1.0");
  EXPECT_STREQ(bp_code_name(BP_QUOTA_EXCEEDED), "quota_exceeded");
  EXPECT_STREQ(bp_code_name(12345), "unknown");
}

}  // namespace
}  // namespace bitpager::client
