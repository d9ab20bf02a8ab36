// The golden runs of the optimizers on the CUDA device. Skipped without a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "quant/codebook.h"
#include "quant/encode.h"
#include "tests/kernels/step_model.h"
#include "tests/support/safetensors.h"

namespace bitpager::kernels {
namespace {

std::vector<std::string> Split(const std::string& text) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == '.') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

double Rounding(DType dtype) {
  return dtype == DType::kF32 ? 0x1p-23 : 0x1p-7;
}

// Four steps of a case on the device: states as the reference has them (which tests/kernels/golden_test.cc
// compares with the peer's), parameters near the recorded ones.
void RunGolden(Device& device, const testing::GoldenFile& file, const std::string& name) {
  const auto parts = Split(name);  // {optimizer, bits, dtype, n}
  const auto json = nlohmann::json::parse(file.metadata.at(name));
  const Rule rule = parts[0] == "lion" ? Rule::kLion : Rule::kAdam;
  const StateBits bits = parts[1] == "8" ? StateBits::k8 : StateBits::k32;
  const DType dtype = parts[2] == "bfloat16" ? DType::kBF16 : DType::kF32;
  const std::uint64_t n = std::stoul(parts[3].substr(1));
  const double lr = json.at("lr");
  StepModel have(device, rule, bits, {{n, dtype, dtype}});
  have.EachSpan(have.pages.data(), have.param.data(), have.grad.data(), [&](const StepSpan& span) {
    for (std::uint32_t k = 0; k < have.layout().states; ++k) {
      for (std::uint32_t unit = 0; unit < span.units; ++unit) {
        const int zero = bits == StateBits::k8 && k == 0 ? quant::kSignedZeroCode : 0;
        std::memset(have.StateAt(span, k, unit), zero, bits == StateBits::k8 ? 256 : 1024);
        if (bits == StateBits::k8) *have.AbsmaxAt(span, k, unit) = 0;
      }
    }
  });
  const auto& p0 = file.at(name + ".p0").bytes;
  std::copy(p0.begin(), p0.end(), have.param.begin());
  StepModel want = have;
  const std::uint64_t step_bytes = n * wire::DTypeBytes(dtype);
  for (std::uint64_t step = 1; step <= 4; ++step) {
    const auto grads =
        file.at(name + ".grads").bytes.begin() + static_cast<std::ptrdiff_t>((step - 1) * step_bytes);
    for (StepModel* model : {&have, &want}) std::copy_n(grads, step_bytes, model->grad.begin());
    const std::vector<Hyper> hypers = {optim8bit::DeriveHyper(
        rule,
        {lr, json.at("betas").at(0), json.at("betas").at(1), json.value("eps", 0.0), json.at("weight_decay")},
        step)};
    StepReport report;
    ASSERT_NO_FATAL_FAILURE(have.StepOnDevice(hypers, wire::OnNonFinite::kSkip, report));
    EXPECT_EQ(report.nonfinite_blocks, 0U);
    want.StepOnHost(hypers, wire::OnNonFinite::kSkip, report);
    ASSERT_TRUE(have.pages == want.pages) << name << " step " << step;
    if (step != 1 && step != 4) continue;
    const auto recorded = file.at(name + ".step" + std::to_string(step) + ".p").Floats();
    for (std::uint64_t i = 0; i < n; ++i) {
      const double tolerance =
          static_cast<double>(step) * (Rounding(dtype) * (std::fabs(recorded[i]) + lr) + 4e-6 * lr);
      ASSERT_NEAR(quant::LoadAs(dtype, have.param.data(), i), recorded[i], tolerance)
          << name << " step " << step << " element " << i;
    }
  }
}

TEST(CudaGolden, OptimizersOfEveryWidthDtypeAndSize) {
  std::string why;
  static_cast<void>(ListDevices(&why));
  if (!why.empty()) GTEST_SKIP() << why;
  auto device = OpenDevice({"cuda"});
  ASSERT_TRUE(device.ok()) << device.status().message();
  const auto file = testing::ReadSafetensors(BITPAGER_GOLDEN_DIR "/optim-golden.safetensors");
  int cases = 0;
  for (const auto& [name, json] : file.metadata) {
    const std::string optimizer = Split(name)[0];
    if (optimizer != "adam" && optimizer != "adamw" && optimizer != "lion") continue;
    ASSERT_NO_FATAL_FAILURE(RunGolden(**device, file, name));
    ++cases;
  }
  EXPECT_EQ(cases, 24);
}

}  // namespace
}  // namespace bitpager::kernels
