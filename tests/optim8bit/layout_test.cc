// State layouts, derived hyperparameters, the sign rule.
#include "optim8bit/layout.h"

#include <gtest/gtest.h>

#include <cmath>

#include "optim8bit/hyper.h"
#include "optim8bit/reference_step.h"

namespace bitpager::optim8bit {
namespace {

using wire::Rule;
using wire::StateBits;

TEST(StateLayout, HasTheDocumentedUnitsForTwoMebibytes) {
  EXPECT_EQ(MakeStateLayout(Rule::kLion, StateBits::k8, 2 << 20)->units_per_page, 8064U);
  EXPECT_EQ(MakeStateLayout(Rule::kAdam, StateBits::k8, 2 << 20)->units_per_page, 4032U);
  EXPECT_EQ(MakeStateLayout(Rule::kAdam, StateBits::k32, 2 << 20)->units_per_page, 1024U);
  EXPECT_EQ(MakeStateLayout(Rule::kLion, StateBits::k32, 2 << 20)->units_per_page, 2048U);
}

TEST(StateLayout, RejectsBadPages) {
  for (const std::size_t page :
       {std::size_t{0}, std::size_t{4096}, std::size_t{10000}, std::size_t{2} << 30}) {
    EXPECT_EQ(MakeStateLayout(Rule::kAdam, StateBits::k8, page).status().code(),
              wire::Code::kInvalidArgument);
  }
}

TEST(StateLayout, PlanesFitAlignedAndWithoutOverlap) {
  for (std::size_t page = kMinPageBytes; page <= (8 << 20);
       page += page < 65536 ? 4096 : page / 4096 / 3 * 4096) {
    for (const Rule rule : {Rule::kAdam, Rule::kLion}) {
      for (const StateBits bits : {StateBits::k8, StateBits::k32}) {
        const auto layout = MakeStateLayout(rule, bits, page);
        ASSERT_TRUE(layout.ok());
        EXPECT_GT(layout->units_per_page, 0U);
        EXPECT_EQ(layout->plane_bytes % 128, 0U);
        EXPECT_EQ(layout->plane_bytes, layout->units_per_page * (bits == StateBits::k8 ? 256U : 1024U));
        if (bits == StateBits::k32) {
          EXPECT_LE(std::size_t{layout->states} * layout->plane_bytes, page);
          continue;
        }
        EXPECT_EQ(layout->absmax_offset, layout->states * layout->plane_bytes);
        EXPECT_EQ(layout->absmax_stride % 128, 0U);
        EXPECT_GE(layout->absmax_stride, 4 * layout->units_per_page);
        EXPECT_LE(layout->absmax_offset + (layout->states - 1) * std::size_t{layout->absmax_stride} +
                      4 * layout->units_per_page,
                  page);
      }
    }
  }
}

TEST(Hyper, FollowsTheFormulas) {
  const Hyper h = DeriveHyper(Rule::kAdam, {0.01, 0.9, 0.99, 1e-6, 0.5}, 3);
  const double c1 = 1 - 0.9 * 0.9 * 0.9;
  const double c2 = std::sqrt(1 - 0.99 * 0.99 * 0.99);
  EXPECT_FLOAT_EQ(h.step_size, static_cast<float>(0.01 * c2 / c1));
  EXPECT_FLOAT_EQ(h.eps, static_cast<float>(1e-6 * c2));
  EXPECT_FLOAT_EQ(h.decay, 0.995F);
  EXPECT_FLOAT_EQ(DeriveHyper(Rule::kLion, {0.01, 0.9, 0.99, 1e-6, 0.5}, 3).step_size, 0.01F);
}

TEST(SignRule, MovesOnlyWhereTheSignWasLost) {
  EXPECT_EQ(KeepSign(127, true, false, false), 126);
  EXPECT_EQ(KeepSign(127, false, false, true), 127);
  EXPECT_EQ(KeepSign(50, true, true, false), 50);
  EXPECT_EQ(KeepSign(126, false, true, true), 127);
}

}  // namespace
}  // namespace bitpager::optim8bit
