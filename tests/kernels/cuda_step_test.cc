// The CUDA steps against the scalar reference: random tensors of every dtype, with ragged tails, misaligned
// pointers, gradients that are not finite and states of every magnitude, all in one launch; the golden runs.
// States must be equal bit for bit, and so must every byte that a step has no business with; parameters may
// differ by the rounding of their dtype, since the device's ratio is approximate. Skipped without a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/device.h"
#include "optim8bit/reference_step.h"
#include "quant/codebook.h"
#include "quant/encode.h"
#include "tests/support/safetensors.h"

namespace bitpager::kernels {
namespace {

using optim8bit::Hyper;
using wire::DType;
using wire::Rule;
using wire::StateBits;

struct Tensor {
  std::uint64_t elements = 0;
  DType param_dtype = DType::kF32;
  DType grad_dtype = DType::kF32;
  std::uint32_t shift = 0;  // elements by which its pointers miss the alignment of 256 bytes
  std::uint32_t hyper = 0;
  std::uint64_t param_at = 0;  // bytes in the memory of parameters
  std::uint64_t grad_at = 0;
};

// Some tensors and their states, on the host; one step of it on the device and by the reference.
class StepModel {
 public:
  StepModel(Device& device, Rule rule, StateBits bits, std::vector<Tensor> tensors)
      : device_(device), tensors_(std::move(tensors)) {
    layout_ = optim8bit::MakeStateLayout(rule, bits, kPage).value();
    std::uint64_t params = 0;
    std::uint64_t grads = 0;
    std::uint64_t units = 0;
    for (Tensor& tensor : tensors_) {
      tensor.param_at = Place(params, tensor, tensor.param_dtype);
      tensor.grad_at = Place(grads, tensor, tensor.grad_dtype);
      units += optim8bit::UnitsOf(tensor.elements);
    }
    pages = std::vector<std::byte>(((units - 1) / layout_.units_per_page + 1) * kPage, std::byte{0xA5});
    param = std::vector<std::byte>(params + 256, std::byte{0x5A});
    grad = std::vector<std::byte>(grads + 256, std::byte{0x5A});
  }

  [[nodiscard]] const std::vector<Tensor>& tensors() const { return tensors_; }
  [[nodiscard]] const optim8bit::StateLayout& layout() const { return layout_; }

  // Calls visit(tensor, span) for runs of units that lie in one page; the span points into the given memory.
  template <typename Visit>
  void EachSpan(std::byte* page_memory, std::byte* param_memory, std::byte* grad_memory,
                const Visit& visit) const {
    std::uint64_t unit = 0;
    for (std::size_t t = 0; t < tensors_.size(); ++t) {
      const Tensor& tensor = tensors_[t];
      for (std::uint64_t at = 0; at < tensor.elements;) {
        StepSpan span;
        const std::uint64_t in_page = unit % layout_.units_per_page;
        span.page = page_memory + unit / layout_.units_per_page * kPage;
        span.first_unit = static_cast<std::uint32_t>(in_page);
        span.units = static_cast<std::uint32_t>(std::min<std::uint64_t>(
            layout_.units_per_page - in_page, optim8bit::UnitsOf(tensor.elements - at)));
        span.elements = std::min<std::uint64_t>(span.units * 256ULL, tensor.elements - at);
        span.param = param_memory + tensor.param_at + at * wire::DTypeBytes(tensor.param_dtype);
        span.grad = grad_memory + tensor.grad_at + at * wire::DTypeBytes(tensor.grad_dtype);
        span.tensor = static_cast<std::uint32_t>(t);
        span.hyper = tensor.hyper;
        span.param_dtype = tensor.param_dtype;
        span.grad_dtype = tensor.grad_dtype;
        visit(span);
        at += span.elements;
        unit += span.units;
      }
    }
  }

  // Bytes of state k (8 bits: codes) of a span's unit, and its absmax.
  [[nodiscard]] std::byte* StateAt(const StepSpan& span, std::uint32_t k, std::uint32_t unit) const {
    const std::uint64_t bytes = layout_.bits == StateBits::k8 ? 256 : 1024;
    return span.page + std::uint64_t{k} * layout_.plane_bytes + (span.first_unit + unit) * bytes;
  }
  [[nodiscard]] float* AbsmaxAt(const StepSpan& span, std::uint32_t k, std::uint32_t unit) const {
    return reinterpret_cast<float*>(span.page + layout_.absmax_offset +
                                    std::uint64_t{k} * layout_.absmax_stride) +
           span.first_unit + unit;
  }

  // One step on the device of what the vectors hold; they are overwritten by its results.
  void StepOnDevice(const std::vector<Hyper>& hypers, wire::OnNonFinite on_nonfinite, StepReport& report) {
    const std::uint64_t bytes = pages.size() + param.size() + grad.size();
    const auto frames = static_cast<std::uint32_t>(bytes / kPage + 4);
    auto segment = device_.AllocateSegment(frames, kPage, 0);
    ASSERT_TRUE(segment.ok()) << segment.status().message();
    std::byte* const at[3] = {segment->base, segment->base + pages.size(),
                              segment->base + pages.size() + (param.size() + 255) / 256 * 256};
    std::vector<std::byte>* const host[3] = {&pages, &param, &grad};
    std::byte* const staging = device_.AllocateScratch(std::max({pages.size(), param.size(), grad.size()}));
    auto* const found = reinterpret_cast<StepReport*>(device_.AllocateScratch(sizeof(StepReport)));
    ASSERT_NE(staging, nullptr);
    *found = StepReport{};
    for (int i = 0; i < 3; ++i) {
      std::memcpy(staging, host[i]->data(), host[i]->size());
      device_.Synchronize(device_.Copy(Queue::kCompute, at[i], staging, host[i]->size()));
    }
    StepArgs args;
    args.layout = layout_;
    args.on_nonfinite = on_nonfinite;
    args.hypers = hypers;
    args.report = found;
    EachSpan(at[0], at[1], at[2], [&](const StepSpan& span) { args.spans.push_back(span); });
    device_.Synchronize(device_.Step(std::move(args)));
    for (int i = 0; i < 3; ++i) {
      device_.Synchronize(device_.Copy(Queue::kCompute, staging, at[i], host[i]->size()));
      std::memcpy(host[i]->data(), staging, host[i]->size());
    }
    report = *found;
    device_.FreeScratch(staging);
    device_.FreeScratch(reinterpret_cast<std::byte*>(found));
    device_.FreeSegment(segment->id);
    ASSERT_TRUE(device_.TakeFault().ok());
  }

  // The same by the reference.
  void StepOnHost(const std::vector<Hyper>& hypers, wire::OnNonFinite on_nonfinite, StepReport& report) {
    report = StepReport{};
    EachSpan(pages.data(), param.data(), grad.data(), [&](const StepSpan& span) {
      for (std::uint32_t unit = 0; unit < span.units; ++unit) {
        const std::uint64_t first = unit * 256ULL;
        const optim8bit::BlockTensor block{
            static_cast<std::byte*>(span.param) + first * wire::DTypeBytes(span.param_dtype),
            static_cast<const std::byte*>(span.grad) + first * wire::DTypeBytes(span.grad_dtype),
            std::min<std::uint64_t>(256, span.elements - first), span.param_dtype, span.grad_dtype};
        if (on_nonfinite == wire::OnNonFinite::kSkip && HasNonFinite(block)) {
          ++report.nonfinite_blocks;
          report.first_tensor = std::min(report.first_tensor, span.tensor);
          continue;
        }
        StepBlock(hypers[span.hyper], block, span, unit);
      }
    });
  }

  std::vector<std::byte> pages, param, grad;

 private:
  static constexpr std::uint64_t kPage = 256 << 10;

  static std::uint64_t Place(std::uint64_t& end, const Tensor& tensor, DType dtype) {
    const std::uint64_t at = (end + 255) / 256 * 256 + tensor.shift * wire::DTypeBytes(dtype);
    end = at + tensor.elements * wire::DTypeBytes(dtype);
    return at;
  }

  void StepBlock(const Hyper& hyper, const optim8bit::BlockTensor& block, const StepSpan& span,
                 std::uint32_t unit) const {
    optim8bit::BlockStates8 coded;
    optim8bit::BlockStates32 plain;
    for (std::uint32_t k = 0; k < layout_.states; ++k) {
      coded.codes[k] = reinterpret_cast<std::uint8_t*>(StateAt(span, k, unit));
      coded.absmax[k] = AbsmaxAt(span, k, unit);
      plain.values[k] = reinterpret_cast<float*>(StateAt(span, k, unit));
    }
    if (layout_.bits == StateBits::k8) {
      ReferenceStep8(layout_.rule, hyper, block, coded);
    } else {
      ReferenceStep32(layout_.rule, hyper, block, plain);
    }
  }

  Device& device_;
  std::vector<Tensor> tensors_;
  optim8bit::StateLayout layout_;
};

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
        for (std::uint64_t i = 0; i < count; ++i) state[i] = std::byte{static_cast<unsigned char>(random())};
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
  for (std::size_t i = 0; i < want.pages.size(); ++i) {
    ASSERT_EQ(have.pages[i], want.pages[i]) << "byte " << i << " of the pages";
  }
  ASSERT_EQ(have.grad, want.grad);
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

std::vector<Hyper> SomeHypers(Rule rule) {
  const double beta2 = rule == Rule::kAdam ? 0.999 : 0.99;
  return {optim8bit::DeriveHyper(rule, {1e-3, 0.9, beta2, 1e-8, 0.01}, 7),
          optim8bit::DeriveHyper(rule, {1e-2, 0.9, beta2, 1e-8, 0.0}, 1),
          optim8bit::DeriveHyper(rule, {1e-4, 0.95, beta2, 1e-15, 0.1}, 1000)};
}

using Case = std::tuple<Rule, StateBits>;

class CudaStep : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    std::string why;
    static_cast<void>(ListDevices(&why));
    if (!why.empty()) GTEST_SKIP() << why;
    auto opened = OpenDevice({"cuda"});
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
    ASSERT_NO_FATAL_FAILURE(
        CompareOneStep(ManyTensors(random), seed, false, wire::OnNonFinite::kSkip));
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
    const std::vector<Tensor> tensors = {{9'000'001, dtype, dtype, 0, 0}, {700, dtype, dtype, 0, 1},
                                         {4'000'000, dtype, dtype, 0, 2}};
    ASSERT_NO_FATAL_FAILURE(CompareOneStep(tensors, 21, false, wire::OnNonFinite::kSkip));
  }
}

INSTANTIATE_TEST_SUITE_P(Rules, CudaStep,
                         ::testing::Combine(::testing::Values(Rule::kAdam, Rule::kLion),
                                            ::testing::Values(StateBits::k8, StateBits::k32)),
                         [](const ::testing::TestParamInfo<Case>& info) {
                           return std::string(std::get<0>(info.param) == Rule::kAdam ? "Adam" : "Lion") +
                                  (std::get<1>(info.param) == StateBits::k8 ? "8" : "32");
                         });

// ---- the golden runs ----
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

double Rounding(DType dtype) { return dtype == DType::kF32 ? 0x1p-23 : 0x1p-7; }

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
    const auto grads = file.at(name + ".grads").bytes.begin() + static_cast<std::ptrdiff_t>((step - 1) * step_bytes);
    for (StepModel* model : {&have, &want}) std::copy_n(grads, step_bytes, model->grad.begin());
    const std::vector<Hyper> hypers = {optim8bit::DeriveHyper(
        rule, {lr, json.at("betas").at(0), json.at("betas").at(1), json.value("eps", 0.0), json.at("weight_decay")},
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
