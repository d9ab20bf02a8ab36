// Weights through the C ABI, against a scripted daemon: read by request and by lease.
#include <gtest/gtest.h>

#include <vector>

#include "tests/client/handles_fixture.h"

namespace bitpager::client {
namespace {

TEST_F(Handles, DequantizeByRequestComesInPieces) {
  constexpr std::uint64_t kElements = (8ULL << 20) + 1000;
  const std::uint64_t weight = MakeWeight(kElements);
  std::vector<float> out(kElements);
  int used = -1;
  ASSERT_EQ(Dequantize(weight, out, BP_PATH_REQUEST, &used), BP_OK) << bp_last_error();
  EXPECT_EQ(used, BP_PATH_REQUEST);
  for (std::uint64_t i = 0; i < kElements; i += 999) ASSERT_EQ(out[i], static_cast<float>(i));
  EXPECT_EQ(out.back(), static_cast<float>(kElements - 1));
}

TEST_F(Handles, ALeaseIsAskedOnceReadInPlaceAndForgottenWhenRevoked) {
  const std::uint64_t weight = MakeWeight(1000);
  std::vector<float> out(1000);
  int used = -1;
  for (int i = 0; i < 5; ++i)
    ASSERT_EQ(Dequantize(weight, out, BP_PATH_AUTO, &used), BP_OK) << bp_last_error();
  EXPECT_EQ(used, BP_PATH_LEASE);
  for (std::size_t i = 0; i < 1000; ++i) ASSERT_EQ(out[i], static_cast<float>(i / 64 + 1));
  EXPECT_EQ(leases_asked_, 1);
  EXPECT_EQ(domains_mapped_, 1);
  wire::LeaseSlot& slot = daemon_->view().leases()[5];
  EXPECT_EQ(slot.in_use.load(), 0U);
  slot.revoke.store(generation_);
  ASSERT_EQ(Dequantize(weight, out, BP_PATH_LEASE), BP_OK) << bp_last_error();
  EXPECT_EQ(leases_asked_, 2);
  EXPECT_EQ(domains_mapped_, 1) << "the mapping is kept";
}

TEST_F(Handles, ARefusedLeaseFallsBackOnlyWhenLeftToChoose) {
  const std::uint64_t weight = MakeWeight(1000);
  std::vector<float> out(1000);
  int used = -1;
  refuse_lease_ = Code::kNotResident;
  EXPECT_EQ(Dequantize(weight, out, BP_PATH_LEASE, &used), BP_NOT_RESIDENT);
  refuse_lease_ = Code::kFull;
  EXPECT_EQ(Dequantize(weight, out, BP_PATH_LEASE, &used), BP_FULL);
  EXPECT_EQ(Dequantize(weight, out, BP_PATH_AUTO, &used), BP_OK);
  EXPECT_EQ(used, BP_PATH_REQUEST);
  EXPECT_EQ(out[999], 999.0F);
  const int asked = leases_asked_;
  for (int i = 0; i < 10; ++i) ASSERT_EQ(Dequantize(weight, out, BP_PATH_AUTO), BP_OK);
  EXPECT_EQ(leases_asked_, asked) << "a refusal is not asked for again at once";
}

TEST_F(Handles, AnImpossibleLeaseIsRefused) {
  const std::uint64_t weight = MakeWeight(1000);
  std::vector<float> out(1000);
  frame_offset_ = domain_.bytes - page_bytes_ + 1;
  EXPECT_EQ(Dequantize(weight, out, BP_PATH_LEASE), BP_PROTOCOL);
  frame_offset_ = ~0ULL;
  EXPECT_EQ(Dequantize(weight, out, BP_PATH_AUTO), BP_PROTOCOL);
  frame_offset_ = page_bytes_;
  first_frame_ = wire::kLeaseFrames;
  EXPECT_EQ(Dequantize(weight, out, BP_PATH_LEASE), BP_PROTOCOL);
  first_frame_ = 7;
  lease_extent_shift_ = 1;
  EXPECT_EQ(Dequantize(weight, out, BP_PATH_LEASE), BP_PROTOCOL);
  lease_extent_shift_ = 0;
  EXPECT_EQ(Dequantize(weight, out, BP_PATH_LEASE), BP_OK) << bp_last_error();
}

}  // namespace
}  // namespace bitpager::client
