// Quantizing by request: the same numbers however its pages come.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>
#include <vector>

#include "daemon/observe.h"
#include "quant/block.h"
#include "tests/support/weight_loader.h"

namespace bitpager::testing {
namespace {

struct Filled {
  std::vector<float> values;
  std::uint64_t offset_bits = 0;
  std::int64_t launches = 0;  // that quantized
  std::int64_t looks = 0;     // at the input, for statistics alone
};

// A double-quantized weight of two pages and what is read from it, with windows of `window_pages` and
// `frames` on the device. `overlaps`: as on a device whose launches overlap its copies, one window in flight.
Filled FillNested(std::uint32_t window_pages, std::uint32_t frames, bool overlaps = false) {
  daemon::Settings settings = TestSettings();
  settings.pager.window_pages = window_pages;
  settings.pager.device_frames = frames;
  if (overlaps) settings.pager.windows_in_flight = 1;
  settings.pager.loads_over_resident = overlaps;
  InProcessDaemon daemon(settings, overlaps ? 64 : 0);
  Loader loader(daemon, "job");
  wire::CreateWeightBody body = Loader::Plain();
  body.nested = 1;
  const std::uint64_t weight = loader.Create(body);
  EXPECT_EQ(daemon.core().registry.FindExtent({weight})->pages, 2U);
  loader.Write(1);
  wire::QuantizeBody quantize;
  quantize.extent = weight;
  quantize.in = loader.memory.Place();
  const auto done = loader.client->Run(wire::Op::kQuantize, quantize);
  EXPECT_EQ(RawClient::CodeOf(done), wire::Code::kOk) << RawClient::TextIn(done);
  Filled out;
  out.offset_bits = done.values[0];
  out.launches = daemon.device->quantize_launches;
  out.looks = daemon.device->absmax_passes;
  out.values = loader.Read(weight);
  EXPECT_EQ(daemon.device->scratches, 0) << "its statistics were given back";
  return out;
}

TEST(QuantizedWeight, DoubleQuantizationIsTheSameInOneWindowAndInMany) {
  // In one window: statistics behind the codes. Else before them, with every page visited once.
  const Filled whole = FillNested(4, 16);
  // What the reference makes of it.
  std::vector<float> in(kLoaderElements);
  FillGradient(in.data(), kLoaderElements, 1, 1);
  constexpr std::uint64_t kBlocks = (kLoaderElements + 63) / 64;
  std::vector<float> absmax;
  for (std::uint64_t at = 0; at < kLoaderElements; at += 64) {
    float most = 0;
    for (std::uint64_t i = at; i < std::min<std::uint64_t>(at + 64, kLoaderElements); ++i) {
      most = std::max(most, std::fabs(in[i]));
    }
    absmax.push_back(most);
  }
  std::vector<std::uint8_t> codes(kBlocks);
  std::vector<float> absmax2(quant::BlocksOf(kBlocks, quant::kNestedBlock));
  float offset = 0;
  quant::NestAbsmax(absmax, codes.data(), absmax2.data(), &offset);
  EXPECT_EQ(whole.offset_bits, std::bit_cast<std::uint32_t>(offset));
  for (std::uint64_t block = 0; block < kBlocks; ++block) {
    const std::uint64_t at = block * 64;
    const std::uint64_t count = std::min<std::uint64_t>(64, kLoaderElements - at);
    std::uint8_t packed[32];
    float want[64];
    quant::PackBlock4(wire::QuantType::kNF4, wire::DType::kF32, in.data() + at, count, absmax[block], packed);
    quant::UnpackBlock4(wire::QuantType::kNF4, wire::DType::kF32, packed, count,
                        quant::UnnestAbsmax(codes[block], absmax2[block / quant::kNestedBlock], offset),
                        want);
    for (std::uint64_t i = 0; i < count; ++i) ASSERT_EQ(whole.values[at + i], want[i]) << at + i;
  }
  for (const auto& [window_pages, frames] : {std::pair{1U, 16U}, {1U, 2U}, {2U, 4U}}) {
    const Filled other = FillNested(window_pages, frames);
    EXPECT_EQ(other.offset_bits, whole.offset_bits) << window_pages;
    EXPECT_EQ(other.values, whole.values) << window_pages;
  }
}

TEST(QuantizedWeight, OneLaunchFillsAWeightOfManyWindowsThatFitsTheShare) {
  const Filled one = FillNested(4, 16);
  EXPECT_EQ(one.looks, 0);
  const Filled many = FillNested(1, 16, true);
  EXPECT_EQ(many.launches, 1);
  EXPECT_EQ(many.looks, 0) << "the whole weight was there";
  EXPECT_EQ(many.offset_bits, one.offset_bits);
  EXPECT_EQ(many.values, one.values);
  // Where only one page fits, it comes in pieces.
  const Filled pieces = FillNested(1, 1, true);
  EXPECT_EQ(pieces.launches, 2);
  EXPECT_EQ(pieces.looks, 1);
  EXPECT_EQ(pieces.offset_bits, one.offset_bits);
  EXPECT_EQ(pieces.values, one.values);
}

// Weights that do not fit, read in the same order time and again: pages come before they are asked for, and
// what is read is what was written.
TEST(QuantizedWeight, ReadsInAKnownOrderFindTheirPagesThere) {
  constexpr std::uint64_t kWeights = 5;
  std::vector<std::vector<float>> expected;
  for (const std::uint32_t frames : {64U, 8U, 4U}) {  // all fit, about half, hardly more than one
    daemon::Settings settings = TestSettings();
    settings.pager.device_frames = frames;
    settings.pager.loads_over_resident = true;
    settings.pager.least_under_way = settings.pager.window_pages;
    InProcessDaemon daemon(settings, 64);
    Loader loader(daemon, "job");
    std::vector<std::uint64_t> weights;
    for (std::uint64_t i = 0; i < kWeights; ++i) weights.push_back(loader.Load(i + 1));
    std::vector<std::vector<float>> values(kWeights);
    daemon::Snapshot before;
    for (int round = 0; round < 6; ++round) {
      if (round == 4) before = daemon::Observe(daemon.core());
      for (std::uint64_t i = 0; i < kWeights; ++i) {
        values[i] = loader.Read(weights[i]);
        daemon.Settle();  // the client works with it
      }
    }
    if (expected.empty()) expected = values;
    EXPECT_EQ(values, expected) << frames;
    const daemon::Snapshot now = daemon::Observe(daemon.core());
    const auto came = [&](paging::Reason reason) {
      const auto at = static_cast<std::size_t>(reason);
      return now.devices[0].moved_by_reason.to_device[at] - before.devices[0].moved_by_reason.to_device[at];
    };
    EXPECT_EQ(came(paging::Reason::kPrefetch) > 0, frames < 64) << frames;
    EXPECT_EQ(came(paging::Reason::kDemand), 0U) << frames;
  }
}

}  // namespace
}  // namespace bitpager::testing
