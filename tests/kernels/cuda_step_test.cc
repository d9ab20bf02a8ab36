// The CUDA steps against the scalar reference: random tensors of every dtype, with ragged tails, misaligned
// pointers, gradients that are not finite and states of every magnitude, all in one launch.
// States must be equal bit for bit, and so must every byte that a step has no business with; parameters may
// differ by the rounding of their dtype, since the device's ratio is approximate. Skipped without a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/device.h"
#include "quant/codebook.h"
#include "quant/encode.h"
#include "tests/kernels/step_model.h"

namespace bitpager::kernels {
namespace {

// Fills a model: any code, absmaxes from 1e-30 to 1e8 with some zeros, gradients of very different sizes, and
// every 50th block or so with one that is not finite.
void FillAtRandom(StepModel& model, std::mt19937_64& random, bool nonfinite) {
  std::normal_distribution<float> normal;
  const auto below = [&](std::uint64_t n) { return random() % n; };
  model.EachSpan(model.pages.data(), model.param.data(), model.grad.data(), [&](const StepSpan& span) {
    auto* const grad = const_cast<std::byte*>(static_cast<const std::byte*>(span.grad));
    const float least = span.grad_dtype == DType::kF16 ? -4 : -12;
    for (std::uint32_t unit = 0; unit < span.units; ++unit) {
      const std::uint64_t count = std::min<std::uint64_t>(256, span.elements - unit * 256ULL);
      const float scale = std::pow(10.0F, least + static_cast<float>(below(1000)) / 1000 * -least);
      for (std::uint64_t i = unit * 256ULL; i < unit * 256ULL + count; ++i) {
        quant::StoreAs(span.param_dtype, span.param, i, normal(random));
        quant::StoreAs(span.grad_dtype, grad, i, below(20) == 0 ? 0.0F : scale * normal(random));
      }
      if (nonfinite && below(50) == 0) {
        const float bad[3] = {INFINITY, -INFINITY, std::nanf("")};
        quant::StoreAs(span.grad_dtype, grad, unit * 256ULL + below(count), bad[below(3)]);
      }
      for (std::uint32_t k = 0; k < model.layout().states; ++k) {
        const float size = std::pow(10.0F, static_cast<float>(below(1000)) / 1000 * 38 - 30);
        auto* const state = model.StateAt(span, k, unit);
        if (model.layout().bits == StateBits::k32) {
          for (std::uint64_t i = 0; i < 256; ++i) {
            const float value = i < count ? size * normal(random) : 0.0F;
            quant::StoreAs(DType::kF32, state, i, k == 0 ? value : std::fabs(value));
          }
          continue;
        }
        const std::uint8_t zero = k == 0 ? quant::kSignedZeroCode : quant::kUnsignedZeroCode;
        for (std::uint64_t i = 0; i < 256; ++i) {
          state[i] = std::byte{i < count ? static_cast<std::uint8_t>(random()) : zero};
        }
        *model.AbsmaxAt(span, k, unit) = below(10) == 0 ? 0.0F : size;
      }
    }
  });
}

double UlpOf(DType dtype, double x) {
  const int bits = dtype == DType::kF32 ? 23 : (dtype == DType::kBF16 ? 7 : 10);
  const int least = dtype == DType::kF16 ? -14 : -126;
  return std::ldexp(1.0, (x == 0 ? least : std::max(least, std::ilogb(x))) - bits);
}

// Two roundings of the dtype (the update's, the decay's), and 1e-6 of the update for the approximate ratio.
bool IsClose(DType dtype, float have, float want, float before) {
  if (std::isnan(want)) return std::isnan(have);
  if (std::isinf(want) || std::isinf(have)) return have == want;
  const double tolerance = 2 * UlpOf(dtype, want) + 1e-6 * std::fabs(double{want} - before);
  return std::fabs(double{have} - want) <= tolerance;
}

void ExpectEqual(const StepModel& have, const StepModel& want, const std::vector<std::byte>& before) {
  const auto differs = std::mismatch(have.pages.begin(), have.pages.end(), want.pages.begin());
  ASSERT_TRUE(differs.first == have.pages.end()) << "byte " << differs.first - have.pages.begin()
                                                 << " of the pages: " << std::to_integer<int>(*differs.first)
                                                 << ", want " << std::to_integer<int>(*differs.second);
  ASSERT_TRUE(have.grad == want.grad);
  std::vector<std::byte> outside = have.param;
  for (std::size_t t = 0; t < want.tensors().size(); ++t) {
    const Tensor& tensor = want.tensors()[t];
    for (std::uint64_t i = 0; i < tensor.elements; ++i) {
      const auto at = [&](const std::vector<std::byte>& memory) {
        return quant::LoadAs(tensor.param_dtype, memory.data() + tensor.param_at, i);
      };
      ASSERT_TRUE(IsClose(tensor.param_dtype, at(have.param), at(want.param), at(before)))
          << "tensor " << t << " element " << i << ": " << at(have.param) << ", want " << at(want.param)
          << ", before " << at(before);
    }
    std::fill_n(outside.begin() + static_cast<std::ptrdiff_t>(tensor.param_at),
                tensor.elements * wire::DTypeBytes(tensor.param_dtype), std::byte{0x5A});
  }
  EXPECT_EQ(std::count(outside.begin(), outside.end(), std::byte{0x5A}),
            static_cast<std::ptrdiff_t>(outside.size()))
      << "bytes between the parameters were written";
}

// States that are not finite have to be so on both sides, and count as equal from then on: which NaN it is,
// and the codes that belong to it, are the device's own.
void EquateNonFinite(const StepModel& have, StepModel& want) {
  StepModel other = have;
  std::vector<StepSpan> theirs;
  other.EachSpan(other.pages.data(), other.param.data(), other.grad.data(),
                 [&](const StepSpan& span) { theirs.push_back(span); });
  std::size_t at = 0;
  want.EachSpan(want.pages.data(), want.param.data(), want.grad.data(), [&](const StepSpan& span) {
    const StepSpan& same = theirs[at++];
    for (std::uint32_t unit = 0; unit < span.units; ++unit) {
      for (std::uint32_t k = 0; k < want.layout().states; ++k) {
        const bool coded = want.layout().bits == StateBits::k8;
        auto* const ours =
            coded ? want.AbsmaxAt(span, k, unit) : reinterpret_cast<float*>(want.StateAt(span, k, unit));
        const auto* const others =
            coded ? other.AbsmaxAt(same, k, unit) : reinterpret_cast<float*>(other.StateAt(same, k, unit));
        for (int i = 0; i < (coded ? 1 : 256); ++i) {
          if (std::isfinite(ours[i])) continue;
          ASSERT_FALSE(std::isfinite(others[i])) << "tensor " << span.tensor << " unit " << unit;
          ours[i] = others[i];
          if (coded) std::copy_n(other.StateAt(same, k, unit), 256, want.StateAt(span, k, unit));
        }
      }
    }
  });
}

std::vector<Hyper> SomeHypers(Rule rule) {
  const double beta2 = rule == Rule::kAdam ? 0.999 : 0.99;
  return {optim8bit::DeriveHyper(rule, {1e-3, 0.9, beta2, 1e-8, 0.01}, 7),
          optim8bit::DeriveHyper(rule, {1e-2, 0.9, beta2, 1e-8, 0.0}, 1),
          optim8bit::DeriveHyper(rule, {1e-4, 0.95, beta2, 1e-15, 0.1}, 1000)};
}

// The shared memory of a thread block on a GPU of compute capability 7.5.
constexpr int kLittleShared = 64 << 10;

using Case = std::tuple<Rule, StateBits, int>;  // the last: shared bytes, 0: all

class CudaStep : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    std::string why;
    static_cast<void>(ListDevices(&why));
    if (!why.empty()) GTEST_SKIP() << why;
    kernels::DeviceOptions options{"cuda"};
    options.shared_bytes = std::get<2>(GetParam());
    auto opened = OpenDevice(options);
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    device_ = std::move(*opened);
  }
  [[nodiscard]] Rule rule() const { return std::get<0>(GetParam()); }
  [[nodiscard]] StateBits bits() const { return std::get<1>(GetParam()); }

  void CompareOneStep(const std::vector<Tensor>& tensors, std::uint64_t seed, bool nonfinite,
                      wire::OnNonFinite on_nonfinite) {
    std::mt19937_64 random(seed);
    StepModel have(*device_, rule(), bits(), tensors);
    FillAtRandom(have, random, nonfinite);
    StepModel want = have;
    const std::vector<std::byte> before = have.param;
    StepReport found;
    StepReport expected;
    ASSERT_NO_FATAL_FAILURE(have.StepOnDevice(SomeHypers(rule()), on_nonfinite, found));
    want.StepOnHost(SomeHypers(rule()), on_nonfinite, expected);
    if (on_nonfinite == wire::OnNonFinite::kPropagate) {
      ASSERT_NO_FATAL_FAILURE(EquateNonFinite(have, want));
    }
    ASSERT_NO_FATAL_FAILURE(ExpectEqual(have, want, before));
    EXPECT_EQ(found.nonfinite_blocks, expected.nonfinite_blocks);
    EXPECT_EQ(found.first_tensor, expected.first_tensor);
    if (nonfinite && on_nonfinite == wire::OnNonFinite::kSkip) {
      EXPECT_GT(found.nonfinite_blocks, 0U);
    }
  }

  std::unique_ptr<Device> device_;
};

// Of every pair of dtypes, ragged, a third of them misaligned, with different settings.
std::vector<Tensor> ManyTensors(std::mt19937_64& random) {
  const DType types[3] = {DType::kF32, DType::kBF16, DType::kF16};
  const std::uint64_t sizes[] = {1, 31, 255, 256, 257, 511, 1000, 4096, 4097, 30000};
  std::vector<Tensor> out;
  for (const std::uint64_t size : sizes) {
    for (int pair = 0; pair < 9; ++pair) {
      const auto shift = static_cast<std::uint32_t>(random() % 3 == 0 ? 1 + random() % 7 : 0);
      out.push_back({size + random() % 3, types[pair / 3], types[pair % 3], shift,
                     static_cast<std::uint32_t>(random() % 3)});
    }
  }
  std::shuffle(out.begin(), out.end(), random);
  return out;
}

TEST_P(CudaStep, EqualsTheReferenceOnManyTensorsAtOnce) {
  std::mt19937_64 random(11);
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    ASSERT_NO_FATAL_FAILURE(CompareOneStep(ManyTensors(random), seed, false, wire::OnNonFinite::kSkip));
  }
}

TEST_P(CudaStep, SkipsAndCountsBlocksThatAreNotFinite) {
  std::mt19937_64 random(12);
  CompareOneStep(ManyTensors(random), 5, true, wire::OnNonFinite::kSkip);
}

TEST_P(CudaStep, ComputesOnWhenToldToPropagate) {
  std::mt19937_64 random(13);
  CompareOneStep(ManyTensors(random), 6, true, wire::OnNonFinite::kPropagate);
}

// Long enough that every warp takes several runs of several units.
TEST_P(CudaStep, EqualsTheReferenceOnALongLaunch) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const std::vector<Tensor> tensors = {
        {9'000'001, dtype, dtype, 0, 0}, {700, dtype, dtype, 0, 1}, {4'000'000, dtype, dtype, 0, 2}};
    ASSERT_NO_FATAL_FAILURE(CompareOneStep(tensors, 21, false, wire::OnNonFinite::kSkip));
  }
}

INSTANTIATE_TEST_SUITE_P(Rules, CudaStep,
                         ::testing::Combine(::testing::Values(Rule::kAdam, Rule::kLion),
                                            ::testing::Values(StateBits::k8, StateBits::k32),
                                            ::testing::Values(0, kLittleShared)),
                         [](const ::testing::TestParamInfo<Case>& one) {
                           return std::string(std::get<0>(one.param) == Rule::kAdam ? "Adam" : "Lion") +
                                  (std::get<1>(one.param) == StateBits::k8 ? "8" : "32") +
                                  (std::get<2>(one.param) == 0 ? "" : "LittleSharedMemory");
                         });

}  // namespace
}  // namespace bitpager::kernels
