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

TEST(DynamicEncoder, IsNearestAroundEveryMidpointOfTheSignedMap) {
  ExpectNearest(true, AroundMidpoints(true, 600));
}
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

// ---- the step ----
struct StepData {
  std::vector<std::byte> param, grad, states[2];
  std::vector<float> absmax[2];
};

void Fill(StepData& data, DType p, DType g, wire::StateBits bits, std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const std::size_t units = (n + 255) / 256;
  data.param.resize(n * wire::DTypeBytes(p));
  data.grad.resize(n * wire::DTypeBytes(g));
  for (std::size_t i = 0; i < n; ++i) {
    quant::StoreAs(p, data.param.data(), i, normal(random));
    quant::StoreAs(g, data.grad.data(), i, normal(random) * (i / 256 % 3 == 0 ? 1e-3F : 1.0F));
  }
  for (int k = 0; k < 2; ++k) {
    data.absmax[k].assign(units, 0.25F);
    data.states[k].resize(units * (bits == wire::StateBits::k8 ? 256 : 1024));
    for (std::size_t i = 0; i < units * 256; ++i) {
      if (bits == wire::StateBits::k8) {
        data.states[k][i] = std::byte(random() % 256);
      } else {
        quant::StoreAs(DType::kF32, data.states[k].data(), i, std::fabs(normal(random)));
      }
    }
  }
}

StepRun RunOf(StepData& data, wire::Rule rule, wire::StateBits bits, DType p, DType g, std::size_t n,
              const optim8bit::Hyper* hyper) {
  StepRun run;
  run.rule = rule;
  run.bits = bits;
  run.param_dtype = p;
  run.grad_dtype = g;
  for (int k = 0; k < 2; ++k) {
    run.states[k] = data.states[k].data();
    run.absmax[k] = data.absmax[k].data();
  }
  run.param = data.param.data();
  run.grad = data.grad.data();
  run.elements = n;
  run.hyper = hyper;
  return run;
}

void ReferenceRun(const StepRun& run) {
  for (std::uint64_t first = 0, unit = 0; first < run.elements; first += 256, ++unit) {
    optim8bit::BlockTensor t{
        static_cast<std::byte*>(run.param) + first * wire::DTypeBytes(run.param_dtype),
        static_cast<const std::byte*>(run.grad) + first * wire::DTypeBytes(run.grad_dtype),
        std::min<std::uint64_t>(256, run.elements - first), run.param_dtype, run.grad_dtype};
    if (run.skip_nonfinite && optim8bit::HasNonFinite(t)) continue;
    optim8bit::BlockStates8 coded;
    optim8bit::BlockStates32 plain;
    for (std::uint32_t k = 0; k < 2; ++k) {
      coded.codes[k] = reinterpret_cast<std::uint8_t*>(run.states[k]) + 256 * unit;
      coded.absmax[k] = run.absmax[k] + unit;
      plain.values[k] = reinterpret_cast<float*>(run.states[k]) + 256 * unit;
    }
    if (run.bits == wire::StateBits::k8) {
      optim8bit::ReferenceStep8(run.rule, *run.hyper, t, coded);
    } else {
      optim8bit::ReferenceStep32(run.rule, *run.hyper, t, plain);
    }
  }
}

// Runs both ways from the same start; every byte must agree.
void ExpectSameStep(wire::Rule rule, wire::StateBits bits, DType p, DType g, std::size_t n, double decay) {
  StepData fast;
  Fill(fast, p, g, bits, n, static_cast<unsigned>(n));
  StepData slow = fast;
  for (int t = 1; t <= 3; ++t) {
    const auto hyper =
        optim8bit::DeriveHyper(rule, {1e-2, 0.9, 0.99, 1e-8, decay}, static_cast<std::uint64_t>(t));
    (void)Step(RunOf(fast, rule, bits, p, g, n, &hyper));
    ReferenceRun(RunOf(slow, rule, bits, p, g, n, &hyper));
  }
  ASSERT_TRUE(fast.param == slow.param);
  for (std::uint32_t k = 0; k < wire::StatesOf(rule); ++k) {
    ASSERT_TRUE(fast.states[k] == slow.states[k]) << k;
    ASSERT_EQ(fast.absmax[k], slow.absmax[k]) << k;
  }
}

TEST(Step, EqualsTheReferenceBitForBit) {
  for (const auto rule : {wire::Rule::kAdam, wire::Rule::kLion}) {
    for (const auto bits : {wire::StateBits::k8, wire::StateBits::k32}) {
      for (const auto p : {DType::kF32, DType::kF16, DType::kBF16}) {
        for (const auto g : {DType::kF32, DType::kF16, DType::kBF16}) {
          for (const std::size_t n : {1UL, 255UL, 256UL, 700UL, 8192UL}) {
            SCOPED_TRACE(testing::Message() << int(rule) << int(bits) << int(p) << int(g) << " n " << n);
            ExpectSameStep(rule, bits, p, g, n, n == 700 ? 0.0 : 0.1);
          }
        }
      }
    }
  }
}

TEST(Step, SkipsOrPropagatesNonFiniteBlocks) {
  for (const bool skip : {true, false}) {
    StepData data;
    Fill(data, DType::kF32, DType::kF32, wire::StateBits::k8, 1024, 1);
    quant::StoreAs(DType::kF32, data.grad.data(), 300, NAN);
    StepData before = data;
    const auto hyper = optim8bit::DeriveHyper(wire::Rule::kAdam, {}, 1);
    StepRun run = RunOf(data, wire::Rule::kAdam, wire::StateBits::k8, DType::kF32, DType::kF32, 1024, &hyper);
    run.skip_nonfinite = skip;
    EXPECT_EQ(Step(run), skip ? 1U : 0U);
    const bool untouched =
        std::equal(data.param.begin() + 1024, data.param.begin() + 2048, before.param.begin() + 1024);
    EXPECT_EQ(untouched, skip);
    EXPECT_EQ(std::isnan(quant::LoadAs(DType::kF32, data.param.data(), 300)), !skip);
    EXPECT_EQ(std::isnan(data.absmax[0][1]), !skip);
  }
}

TEST(Step, KeepsTinyAndHugeStates) {
  for (const float scale : {1e-22F, 1e-19F, 1e18F, 3e19F}) {
    StepData fast;
    Fill(fast, DType::kF32, DType::kF32, wire::StateBits::k8, 512, 9);
    for (std::size_t i = 0; i < 512; ++i) {
      quant::StoreAs(DType::kF32, fast.grad.data(), i, scale * static_cast<float>(i + 1));
    }
    fast.absmax[0].assign(2, 0.0F);
    fast.absmax[1].assign(2, 0.0F);
    StepData slow = fast;
    const auto hyper = optim8bit::DeriveHyper(wire::Rule::kAdam, {}, 1);
    (void)Step(RunOf(fast, wire::Rule::kAdam, wire::StateBits::k8, DType::kF32, DType::kF32, 512, &hyper));
    ReferenceRun(RunOf(slow, wire::Rule::kAdam, wire::StateBits::k8, DType::kF32, DType::kF32, 512, &hyper));
    EXPECT_TRUE(fast.param == slow.param) << scale;
    EXPECT_TRUE(fast.states[1] == slow.states[1]) << scale;
    EXPECT_EQ(fast.absmax[1], slow.absmax[1]) << scale;
  }
}

// ---- 4 bits ----
TEST(FourBit, EqualsTheReferenceBitForBit) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (const auto type : {wire::QuantType::kNF4, wire::QuantType::kFP4}) {
    for (const auto dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      for (const std::size_t n : {1UL, 33UL, 4096UL, 20001UL}) {
        for (std::uint32_t blocksize = 32; blocksize <= 4096; blocksize *= 2) {
          std::vector<std::byte> in(n * wire::DTypeBytes(dtype));
          for (std::size_t i = 0; i < n; ++i) {
            quant::StoreAs(dtype, in.data(), i, i / 64 % 5 == 4 ? 0.0F : normal(random));
          }
          const std::size_t blocks = (n + blocksize - 1) / blocksize;
          std::vector<float> absmax(blocks), want_absmax(blocks);
          std::vector<std::uint8_t> packed((n + 1) / 2), want((n + 1) / 2);
          BlockAbsmax(dtype, in.data(), n, blocksize, absmax.data());
          Pack4(type, dtype, in.data(), n, blocksize, absmax.data(), packed.data());
          std::vector<std::byte> out(in.size()), want_out(in.size());
          Unpack4(type, dtype, packed.data(), n, blocksize, absmax.data(), out.data(), blocksize == 64);
          for (std::size_t b = 0; b < blocks; ++b) {
            const std::size_t count = std::min<std::size_t>(blocksize, n - b * blocksize);
            const std::byte* block = in.data() + b * blocksize * wire::DTypeBytes(dtype);
            want_absmax[b] = quant::AbsmaxOf(dtype, block, count);
            quant::PackBlock4(type, dtype, block, count, want_absmax[b], want.data() + b * blocksize / 2);
            quant::UnpackBlock4(type, dtype, want.data() + b * blocksize / 2, count, want_absmax[b],
                                want_out.data() + b * blocksize * wire::DTypeBytes(dtype));
          }
          ASSERT_EQ(absmax, want_absmax);
          ASSERT_EQ(packed, want) << "n " << n << " blocksize " << blocksize;
          ASSERT_TRUE(out == want_out) << "n " << n << " blocksize " << blocksize;
        }
      }
    }
  }
}

TEST(FourBit, NestsAbsmaxesLikeTheReference) {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> uniform(0.0F, 3.0F);
  for (const std::size_t n : {0UL, 1UL, 7UL, 255UL, 256UL, 257UL, 1000UL, 40001UL}) {
    std::vector<float> absmax(n);
    for (float& a : absmax) a = uniform(random);
    std::vector<float> absmax2(n / 256 + 1), want_absmax2(n / 256 + 1);
    std::vector<std::uint8_t> codes(n), want(n);
    float want_mean = -1.0F;
    quant::NestAbsmax(absmax, want.data(), want_absmax2.data(), &want_mean);
    const float mean = NestMean(absmax.data(), n);
    EXPECT_EQ(mean, want_mean) << n;
    NestRun(absmax.data(), n, mean, codes.data(), absmax2.data());
    EXPECT_EQ(codes, want) << n;
    EXPECT_EQ(absmax2, want_absmax2) << n;
  }
}

// Hyperparameters and magnitudes at the edges of the format: roots and quotients of every size, down to
// subnormal, in every lane.
TEST(Step, RoundsRootsAndQuotientsLikeTheReferenceOverAllMagnitudes) {
  std::mt19937 random(11);
  constexpr std::size_t kElements = 65536;
  for (const double eps : {1e-8, 1e-30, 0.0}) {
    StepData fast;
    Fill(fast, DType::kF32, DType::kF32, wire::StateBits::k32, kElements, 12);
    for (std::size_t i = 0; i < kElements; ++i) {
      // Any finite bit pattern; v is not negative.
      const auto finite = [&] {
        return std::bit_cast<float>(static_cast<std::uint32_t>(random()) % 0x7F800000U);
      };
      const float m = finite();
      quant::StoreAs(DType::kF32, fast.states[0].data(), i, i % 2 == 0 ? m : -m);
      quant::StoreAs(DType::kF32, fast.states[1].data(), i, i % 97 == 0 ? 0.0F : finite());
      quant::StoreAs(DType::kF32, fast.grad.data(), i, i % 3 == 0 ? 0.0F : finite() * 0x1p-64F);
    }
    StepData slow = fast;
    const auto hyper = optim8bit::DeriveHyper(wire::Rule::kAdam, {1e-3, 0.9, 0.999, eps, 0.01}, 3);
    const auto run = [&](StepData& data) {
      return RunOf(data, wire::Rule::kAdam, wire::StateBits::k32, DType::kF32, DType::kF32, kElements,
                   &hyper);
    };
    (void)Step(run(fast));
    ReferenceRun(run(slow));
    for (std::size_t i = 0; i < kElements; ++i) {
      const float a = quant::LoadAs(DType::kF32, fast.param.data(), i);
      const float b = quant::LoadAs(DType::kF32, slow.param.data(), i);
      ASSERT_TRUE(std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) ||
                  (std::isnan(a) && std::isnan(b)))
          << i << ": " << a << " " << b;
    }
  }
}

TEST(DynamicDecoder, EqualsTheMapForEveryCodeAtEveryPlace) {
  std::vector<std::uint8_t> codes;
  for (int turn = 0; turn < 64; ++turn) {
    for (int c = 0; c < 256; ++c) codes.push_back(static_cast<std::uint8_t>(c + turn));
  }
  quant::Map256 odd{};  // neither ascending nor symmetric
  for (std::size_t c = 0; c < 256; ++c) odd[c] = static_cast<float>((c * 37 + 11) % 256) * 0.37F - 40.0F;
  for (const auto& map : {quant::kSignedDynamicMap, quant::kUnsignedDynamicMap, odd}) {
    for (const auto dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      const std::size_t width = wire::DTypeBytes(dtype);
      std::vector<std::byte> out(codes.size() * width), want(codes.size() * width);
      const std::vector<float> absmax(codes.size() / 64, 0.7F);
      Decode8(map, dtype, codes.data(), codes.size(), 64, absmax.data(), out.data());
      for (std::size_t i = 0; i < codes.size(); i += 64) {
        quant::DecodeBlock8(map, dtype, &codes[i], 64, 0.7F, &want[i * width]);
      }
      EXPECT_TRUE(out == want);
    }
  }
}

// One step from every code of both states: what the step decodes is what the map says.
TEST(Step, DecodesEveryCodeAtEveryPlace) {
  for (const auto rule : {wire::Rule::kAdam, wire::Rule::kLion}) {
    constexpr std::size_t kElements = 256 * 64;
    StepData fast;
    Fill(fast, DType::kF32, DType::kF32, wire::StateBits::k8, kElements, 13);
    for (std::size_t i = 0; i < kElements; ++i) {
      for (std::size_t k = 0; k < 2; ++k) fast.states[k][i] = std::byte((i + i / 256 * (k + 1)) % 256);
    }
    StepData slow = fast;
    const auto hyper = optim8bit::DeriveHyper(rule, {1e-3, 0.9, 0.999, 1e-8, 0.01}, 5);
    (void)Step(RunOf(fast, rule, wire::StateBits::k8, DType::kF32, DType::kF32, kElements, &hyper));
    ReferenceRun(RunOf(slow, rule, wire::StateBits::k8, DType::kF32, DType::kF32, kElements, &hyper));
    EXPECT_TRUE(fast.param == slow.param);
    for (std::uint32_t k = 0; k < wire::StatesOf(rule); ++k) {
      EXPECT_TRUE(fast.states[k] == slow.states[k]);
      EXPECT_EQ(fast.absmax[k], slow.absmax[k]);
    }
  }
}

}  // namespace
}  // namespace bitpager::kernels::simd
