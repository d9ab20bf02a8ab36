// Golden vectors of the formats and the optimizers, through the fast kernels, and the float64 oracle.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>

#include "kernels/local.h"
#include "kernels/simd/step.h"
#include "optim8bit/hyper.h"
#include "optim8bit/layout.h"
#include "quant/codebook.h"
#include "quant/encode.h"
#include "tests/oracle/optimizer_oracle.h"
#include "tests/support/safetensors.h"

namespace bitpager::kernels {
namespace {

using testing::GoldenFile;
using testing::GoldenTensor;
using testing::ReadSafetensors;
using wire::DType;
using wire::QuantType;

DType TypeOf(const GoldenTensor& t) {
  return t.dtype == "F32" ? DType::kF32 : (t.dtype == "BF16" ? DType::kBF16 : DType::kF16);
}

std::vector<std::string> Split(const std::string& text) {
  std::vector<std::string> parts;
  std::size_t at = 0;
  for (std::size_t dot = text.find('.'); dot != std::string::npos; dot = text.find('.', at)) {
    parts.push_back(text.substr(at, dot - at));
    at = dot + 1;
  }
  parts.push_back(text.substr(at));
  return parts;
}

// ---- 4 bits ----
// Codes are equal, but in all-zero blocks (any code decodes to zero) and for values within a rounding of a
// pivot (the reference multiplies by an approximate reciprocal): those are neighbours.
void CheckNibble(QuantType type, int ours, int theirs, float x, float absmax, const std::string& where) {
  if (ours == theirs || absmax == 0) return;
  const float* table = quant::Table4(type);
  const double middle = (double{table[ours]} + double{table[theirs]}) / 2;
  EXPECT_NEAR(double{x} / absmax, middle, 1e-6 * std::fabs(middle)) << where;
}

void CheckFourBit(const GoldenFile& file, const std::string& base, bool nested) {
  const auto parts = Split(base);  // {size, dtype, type, bs[, nested]}
  const GoldenTensor& x = file.at(parts[0] + "." + parts[1] + ".x");
  const auto type = parts[2] == "nf4" ? QuantType::kNF4 : QuantType::kFP4;
  const auto blocksize = static_cast<std::uint32_t>(std::stoul(parts[3].substr(2)));
  const std::size_t n = x.elements();
  const std::size_t blocks = quant::BlocksOf(n, blocksize);
  std::vector<std::uint8_t> packed((n + 1) / 2), codes(blocks);
  std::vector<float> absmax(blocks), absmax2(blocks / 256 + 1);
  Packed4 out;
  out.packed = packed.data();
  out.absmax = absmax.data();
  if (nested) {
    out.nested_codes = codes.data();
    out.absmax2 = absmax2.data();
  }
  ASSERT_TRUE(Quantize4Bit(type, TypeOf(x), x.bytes.data(), n, blocksize, &out).ok());
  const GoldenTensor& want = file.at(base + ".packed");
  for (std::size_t i = 0; i < n; ++i) {
    const int shift = i % 2 == 0 ? 4 : 0;
    CheckNibble(type, (packed[i / 2] >> shift) & 15, (want.u8()[i / 2] >> shift) & 15,
                quant::LoadAs(TypeOf(x), x.bytes.data(), i), absmax[i / blocksize],
                base + " element " + std::to_string(i));
  }
  const auto want_absmax = file.at(base + ".absmax").Floats();
  std::size_t moved = 0;
  for (std::size_t b = 0; b < blocks; ++b) {
    if (!nested) {
      EXPECT_EQ(absmax[b], want_absmax[b]) << base;
    } else if (codes[b] != file.at(base + ".absmax").u8()[b]) {
      ++moved;
    }
  }
  if (nested) {
    EXPECT_LE(moved, 1U) << base;
    EXPECT_NEAR(out.offset, file.at(base + ".offset").Floats()[0], 2e-7F * out.offset);
    const auto want2 = file.at(base + ".absmax2").Floats();
    for (std::size_t g = 0; g < want2.size(); ++g) EXPECT_NEAR(absmax2[g], want2[g], 2e-6F * want2[g]);
  }
  if (file.tensors.count(base + ".dequantized") == 0) return;
  const GoldenTensor& plain = file.at(base + ".dequantized");
  std::vector<std::byte> values(plain.bytes.size());
  ASSERT_TRUE(Dequantize4Bit(type, out, n, blocksize, TypeOf(plain), values.data()).ok());
  for (std::size_t i = 0; i < n; ++i) {
    const float ours = quant::LoadAs(TypeOf(plain), values.data(), i);
    if (absmax[i / blocksize] == 0) {  // exactly zero here, also under double quantization
      ASSERT_EQ(ours, 0.0F) << base;
      continue;
    }
    const float theirs = quant::LoadAs(TypeOf(plain), plain.bytes.data(), i);
    const float rounding =
        TypeOf(plain) == DType::kF32 ? 1e-6F : (TypeOf(plain) == DType::kF16 ? 0x1p-10F : 0x1p-7F);
    if (nested) {
      ASSERT_NEAR(ours, theirs, std::fabs(theirs) * rounding) << base << " element " << i;
    } else {
      ASSERT_EQ(ours, theirs) << base << " element " << i;
    }
  }
}

TEST(Golden, FourBitOfEveryBlockSizeAndDtype) {
  const auto file = ReadSafetensors(BITPAGER_GOLDEN_DIR "/quant4-golden.safetensors");
  int cases = 0;
  for (const auto& [name, tensor] : file.tensors) {
    const std::string suffix = ".packed";
    if (name.size() < suffix.size() || name.substr(name.size() - suffix.size()) != suffix) continue;
    const std::string base = name.substr(0, name.size() - suffix.size());
    CheckFourBit(file, base, base.find(".nested") != std::string::npos);
    ++cases;
  }
  EXPECT_GE(cases, 60);
}

// ---- 8 bits ----
void CheckBlockwise(const GoldenFile& file, bool is_signed, std::uint32_t blocksize) {
  const std::string base = std::string(is_signed ? "signed" : "unsigned") + ".bs" + std::to_string(blocksize);
  const auto& map = is_signed ? quant::kSignedDynamicMap : quant::kUnsignedDynamicMap;
  const auto x = file.at(is_signed ? "x" : "x_abs").Floats();
  std::vector<std::uint8_t> codes(x.size());
  std::vector<float> absmax(x.size() / blocksize);
  ASSERT_TRUE(
      QuantizeBlockwise(map, DType::kF32, x.data(), x.size(), blocksize, codes.data(), absmax.data()).ok());
  const auto want_absmax = file.at(base + ".absmax").Floats();
  for (std::size_t b = 0; b < absmax.size(); ++b) EXPECT_EQ(absmax[b], want_absmax[b]);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::uint8_t want = file.at(base + ".codes").u8()[i];
    if (codes[i] == want) continue;
    ASSERT_EQ(std::abs(codes[i] - want), 1) << base << " element " << i;
    const double middle = (double{map[codes[i]]} + double{map[want]}) / 2;
    EXPECT_NEAR(double{x[i]} / absmax[i / blocksize], middle, 1e-6 * std::fabs(middle)) << base;
  }
  if (file.tensors.count(base + ".dequantized") == 0) return;
  const auto want = file.at(base + ".dequantized").Floats();
  std::vector<float> out(x.size());
  ASSERT_TRUE(DequantizeBlockwise(map, file.at(base + ".codes").u8(), absmax.data(), x.size(), blocksize,
                                  DType::kF32, out.data())
                  .ok());
  for (std::size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], want[i]);
}

TEST(Golden, EightBitBlockwise) {
  const auto file = ReadSafetensors(BITPAGER_GOLDEN_DIR "/quant8-golden.safetensors");
  for (std::uint32_t blocksize = 64; blocksize <= 4096; blocksize *= 2) {
    CheckBlockwise(file, true, blocksize);
    CheckBlockwise(file, false, blocksize);
  }
}

// ---- optimizers ----
struct Trainer {
  wire::Rule rule;
  wire::StateBits bits;
  DType dtype;
  std::size_t n;
  oracle::Settings settings;
  std::vector<std::byte> param;
  std::vector<std::byte> states[2];
  std::vector<float> absmax[2];

  void Start(const GoldenTensor& p0) {
    param = p0.bytes;
    const std::size_t units = optim8bit::UnitsOf(n);
    for (int k = 0; k < 2; ++k) {
      const bool coded = bits == wire::StateBits::k8;
      states[k].assign(units * (coded ? 256 : 1024),
                       std::byte{static_cast<unsigned char>(coded && k == 0 ? 127 : 0)});
      absmax[k].assign(units, 0.0F);
    }
  }
  // State k of element i, decoded.
  [[nodiscard]] float State(int k, std::size_t i) const {
    if (bits == wire::StateBits::k32) return quant::LoadAs(DType::kF32, states[k].data(), i);
    const auto& map = k == 0 ? quant::kSignedDynamicMap : quant::kUnsignedDynamicMap;
    return map[std::to_integer<std::size_t>(states[k][i])] * absmax[k][i / 256];
  }
  void Step(const void* grad, int t) {
    const auto hyper = optim8bit::DeriveHyper(
        rule, {settings.lr, settings.beta1, settings.beta2, settings.eps, settings.weight_decay},
        static_cast<std::uint64_t>(t));
    simd::StepRun run;
    run.rule = rule;
    run.bits = bits;
    run.param_dtype = run.grad_dtype = dtype;
    for (int k = 0; k < 2; ++k) {
      run.states[k] = states[k].data();
      run.absmax[k] = absmax[k].data();
    }
    run.param = param.data();
    run.grad = grad;
    run.elements = n;
    run.hyper = &hyper;
    ASSERT_EQ(simd::Step(run), 0U);
  }
};

// Each state after one more step of the oracle, from our states before it.
std::vector<oracle::Element> OracleStep(const Trainer& t, const std::byte* grad, int step) {
  std::vector<oracle::Element> out(t.n);
  for (std::size_t i = 0; i < t.n; ++i) {
    const oracle::Element before{quant::LoadAs(t.dtype, t.param.data(), i), t.State(0, i), t.State(1, i)};
    const double g = quant::LoadAs(t.dtype, grad, i);
    out[i] = t.rule == wire::Rule::kAdam ? oracle::AdamStep(t.settings, before, g, step)
                                         : oracle::LionStep(t.settings, before, g);
  }
  return out;
}

double Rounding(DType dtype) {
  return dtype == DType::kF32 ? 0x1p-23 : (dtype == DType::kBF16 ? 0x1p-7 : 0x1p-10);
}

void CheckState(const GoldenFile& file, const std::string& at, const Trainer& t, int k,
                const std::vector<oracle::Element>& exact, bool from_zero) {
  int moved = 0;
  const GoldenTensor& want = file.at(at + ".state" + std::to_string(k + 1));
  if (t.bits == wire::StateBits::k32) {
    const auto values = want.Floats();
    double most = 0;
    for (const float value : values) most = std::max(most, double{std::fabs(value)});
    for (std::size_t i = 0; i < t.n; ++i) EXPECT_NEAR(t.State(k, i), values[i], 2e-6 * most);
    return;
  }
  const auto& map = k == 0 ? quant::kSignedDynamicMap : quant::kUnsignedDynamicMap;
  const auto want_absmax = file.at(at + ".absmax" + std::to_string(k + 1)).Floats();
  for (std::size_t i = 0; i < t.n; ++i) {
    const float absmax = t.absmax[k][i / 256];
    EXPECT_NEAR(absmax, want_absmax[i / 256], 2e-6F * want_absmax[i / 256]);
    const auto ours = std::to_integer<int>(t.states[k][i]);
    const int theirs = want.u8()[i];
    if (ours == theirs || absmax == 0) continue;
    ASSERT_EQ(std::abs(ours - theirs), 1) << at << " state " << k << " element " << i;
    ++moved;
    if (!from_zero) continue;  // the peer's own states before this step are not known
    const double middle =
        (double{map[static_cast<std::size_t>(ours)]} + double{map[static_cast<std::size_t>(theirs)]}) / 2;
    const double value = (k == 0 ? exact[i].m : exact[i].v) / absmax;
    EXPECT_NEAR(value, middle, 1e-6 * std::fabs(middle)) << at << " state " << k << " element " << i;
  }
  EXPECT_LE(moved, 5) << at << " state " << k;
}

void CheckCase(const GoldenFile& file, const std::string& name) {
  const auto parts = Split(name);  // {optimizer, bits, dtype, n}
  const auto json = nlohmann::json::parse(file.metadata.at(name));
  Trainer t{};
  t.rule = parts[0] == "lion" ? wire::Rule::kLion : wire::Rule::kAdam;
  t.bits = parts[1] == "8" ? wire::StateBits::k8 : wire::StateBits::k32;
  t.dtype = parts[2] == "bfloat16" ? DType::kBF16 : DType::kF32;
  t.n = std::stoul(parts[3].substr(1));
  t.settings = {json.at("lr"), json.at("betas").at(0), json.at("betas").at(1), json.value("eps", 0.0),
                json.at("weight_decay")};
  t.Start(file.at(name + ".p0"));
  const GoldenTensor& grads = file.at(name + ".grads");
  for (int step = 1; step <= 4; ++step) {
    const std::byte* grad = grads.bytes.data() + (step - 1) * t.n * wire::DTypeBytes(t.dtype);
    const auto exact = OracleStep(t, grad, step);
    t.Step(grad, step);
    for (std::size_t i = 0; i < t.n;
         ++i) {  // the oracle: two roundings of the dtype (update, decay), and fp32's
      const double p = quant::LoadAs(t.dtype, t.param.data(), i);
      EXPECT_NEAR(p, exact[i].p, 1.5 * Rounding(t.dtype) * std::fabs(p) + 1e-9) << name << " step " << step;
    }
    if (step != 1 && step != 4) continue;
    const std::string at = name + ".step" + std::to_string(step);
    const auto want = file.at(at + ".p").Floats();
    for (std::size_t i = 0; i < t.n; ++i) {
      const double p = quant::LoadAs(t.dtype, t.param.data(), i);
      // Each step rounds parameter and update once to the dtype; the peer's own fp32 update carries a
      // relative error of some 1e-6.
      const double tolerance =
          step * (Rounding(t.dtype) * (std::fabs(want[i]) + t.settings.lr) + 4e-6 * t.settings.lr);
      EXPECT_NEAR(p, want[i], tolerance) << at << " element " << i;
    }
    for (int k = 0; k < static_cast<int>(wire::StatesOf(t.rule)); ++k)
      CheckState(file, at, t, k, exact, step == 1);
  }
}

TEST(Golden, OptimizersOfEveryWidthDtypeAndSize) {
  const auto file = ReadSafetensors(BITPAGER_GOLDEN_DIR "/optim-golden.safetensors");
  int cases = 0;
  for (const auto& [name, json] : file.metadata) {
    const std::string optimizer = Split(name)[0];
    if (optimizer != "adam" && optimizer != "adamw" && optimizer != "lion") continue;
    CheckCase(file, name);
    ++cases;
  }
  EXPECT_EQ(cases, 24);
}

// ---- mean errors of the formats on normal data ----
struct MeanError {
  double absolute, relative;
};
MeanError FourBitError(QuantType type, std::uint32_t blocksize) {
  const std::size_t n = 1 << 20;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> x(n), y(n), absmax(n / 32);
  for (float& value : x) value = normal(random);
  std::vector<std::uint8_t> packed(n / 2);
  Packed4 planes;
  planes.packed = packed.data();
  planes.absmax = absmax.data();
  EXPECT_TRUE(Quantize4Bit(type, DType::kF32, x.data(), n, blocksize, &planes).ok());
  EXPECT_TRUE(Dequantize4Bit(type, planes, n, blocksize, DType::kF32, y.data()).ok());
  MeanError error{};
  for (std::size_t i = 0; i < n; ++i) {
    error.absolute += std::fabs(x[i] - y[i]);
    error.relative += std::fabs((x[i] - y[i]) / (x[i] == 0 ? 1e-8F : x[i]));
  }
  return {error.absolute / static_cast<double>(n), error.relative / static_cast<double>(n)};
}

TEST(MeanError, MatchesTheFormatsTable) {
  const double nf4[8][2] = {{.0677, .190}, {.0728, .203}, {.0768, .215}, {.0803, .226},
                            {.0835, .236}, {.0866, .245}, {.0896, .254}, {.0925, .262}};
  const double fp4[8][2] = {{.0889, .242}, {.0965, .260}, {.1030, .276}, {.1087, .290},
                            {.1141, .303}, {.1193, .315}, {.1246, .327}, {.1295, .337}};
  for (int i = 0; i < 8; ++i) {
    const auto blocksize = 32U << i;
    const MeanError n = FourBitError(QuantType::kNF4, blocksize);
    const MeanError f = FourBitError(QuantType::kFP4, blocksize);
    EXPECT_NEAR(n.absolute, nf4[i][0], 0.0005) << blocksize;
    EXPECT_NEAR(n.relative, nf4[i][1], 0.004) << blocksize;
    EXPECT_NEAR(f.absolute, fp4[i][0], 0.0005) << blocksize;
    EXPECT_NEAR(f.relative, fp4[i][1], 0.004) << blocksize;
  }
}

}  // namespace
}  // namespace bitpager::kernels
