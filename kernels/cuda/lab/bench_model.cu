// The laboratory's model, its comparison with the reference, timing and copy ceilings. Main thread.
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "kernels/cuda/lab/bench_step.h"
#include "optim8bit/reference_step.h"
#include "quant/encode.h"

namespace bitpager::kernels::cuda::lab {
namespace {

__device__ float Noise(std::uint64_t i, std::uint64_t seed) {  // roughly normal: a sum of four uniforms
  std::uint64_t x = i * 0x9E3779B97F4A7C15ULL + seed * 0xD1342543DE82EF95ULL;
  x ^= x >> 32;
  x *= 0xD6E8FEB86659FD93ULL;
  x ^= x >> 32;
  float sum = 0;
  for (int k = 0; k < 4; ++k) sum += static_cast<float>(x >> (16 * k) & 0xFFFFU) / 65536.0F;
  return (sum - 2.0F) * 1.7F;
}
__global__ void FillKernel(std::byte* to, std::uint64_t elements, wire::DType dtype, float scale,
                           std::uint64_t seed) {
  const std::uint64_t step = std::uint64_t{gridDim.x} * blockDim.x;
  for (std::uint64_t i = std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < elements; i += step) {
    const float x = Noise(i, seed) * scale;
    if (dtype == wire::DType::kF32) {
      reinterpret_cast<float*>(to)[i] = x;
    } else if (dtype == wire::DType::kF16) {
      reinterpret_cast<__half*>(to)[i] = __float2half_rn(x);
    } else {
      reinterpret_cast<std::uint16_t*>(to)[i] = static_cast<std::uint16_t>(__float_as_uint(x) >> 16);
    }
  }
}
__global__ void CopyKernel(uint4* to, const uint4* from, std::uint64_t words) {
  const std::uint64_t step = std::uint64_t{gridDim.x} * blockDim.x;
  std::uint64_t i = std::uint64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + 3 * step < words; i += 4 * step) {
    const uint4 a = from[i];
    const uint4 b = from[i + step];
    const uint4 c = from[i + 2 * step];
    const uint4 d = from[i + 3 * step];
    to[i] = a;
    to[i + step] = b;
    to[i + 2 * step] = c;
    to[i + 3 * step] = d;
  }
  for (; i < words; i += step) to[i] = from[i];
}

double UlpOf(wire::DType dtype, double x) {
  const int bits = dtype == wire::DType::kF32 ? 23 : (dtype == wire::DType::kBF16 ? 7 : 10);
  return std::ldexp(1.0, (x == 0 ? -126 : std::ilogb(x)) - bits);
}

}  // namespace

std::size_t PageBytes() {
  const char* const said = std::getenv("LAB_PAGE_BYTES");
  return said == nullptr ? std::size_t{512} << 10 : std::strtoull(said, nullptr, 10);
}

void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

Model::Model(wire::Rule rule, wire::StateBits bits, wire::DType dtype,
             const std::vector<std::uint64_t>& sizes)
    : dtype_(dtype) {
  args_.layout = optim8bit::MakeStateLayout(rule, bits, PageBytes()).value();
  std::uint64_t units = 0;
  for (const std::uint64_t size : sizes) {
    units += optim8bit::UnitsOf(size);
    elements_ += size;
  }
  const std::uint64_t width = wire::DTypeBytes(dtype);
  const std::uint64_t pages = (units - 1) / args_.layout.units_per_page + 1;
  param_bytes_ = units * 256 * width;
  Check(cudaMalloc(&pages_, pages * PageBytes()), "pages");
  Check(cudaMalloc(&params_, param_bytes_), "parameters");
  Check(cudaMalloc(&grads_, param_bytes_), "gradients");
  Check(cudaMemset(pages_, 0, pages * PageBytes()), "zero the pages");
  std::uint64_t unit = 0;
  for (std::size_t tensor = 0; tensor < sizes.size(); ++tensor) {
    const std::uint64_t first = unit;
    const std::uint64_t end = first + optim8bit::UnitsOf(sizes[tensor]);
    while (unit < end) {
      StepSpan span;
      const std::uint64_t slot = unit % args_.layout.units_per_page;
      span.page = pages_ + unit / args_.layout.units_per_page * PageBytes();
      span.first_unit = static_cast<std::uint32_t>(slot);
      span.units = static_cast<std::uint32_t>(std::min(end - unit, args_.layout.units_per_page - slot));
      span.param = params_ + unit * 256 * width;
      span.grad = grads_ + unit * 256 * width;
      span.elements = std::min<std::uint64_t>(span.units * 256ULL, sizes[tensor] - (unit - first) * 256);
      span.tensor = static_cast<std::uint32_t>(tensor);
      span.param_dtype = span.grad_dtype = dtype;
      args_.spans.push_back(span);
      unit += span.units;
    }
  }
  args_.hypers = {
      optim8bit::DeriveHyper(rule, {1e-3, 0.9, rule == wire::Rule::kAdam ? 0.999 : 0.99, 1e-8, 0.01}, 7)};
  FillKernel<<<2048, 256>>>(params_, param_bytes_ / width, dtype, 0.02F, 1);
  FillGradients(2);
}

Model::~Model() {
  for (std::byte* at : {pages_, params_, grads_}) static_cast<void>(cudaFree(at));
}

double Model::bytes() const {
  const double width = static_cast<double>(wire::DTypeBytes(dtype_));
  const double state = args_.layout.bits == wire::StateBits::k8 ? 1 + 4.0 / 256 : 4;
  return static_cast<double>(elements_) * (3 * width + 2 * state * args_.layout.states);
}

void Model::FillGradients(std::uint64_t seed) {
  FillKernel<<<2048, 256>>>(grads_, param_bytes_ / wire::DTypeBytes(dtype_), dtype_, 1e-3F, seed);
  Check(cudaDeviceSynchronize(), "fill");
}

Model::Host Model::Read(const StepSpan& span, std::uint32_t unit) const {
  Host out;
  const std::uint64_t width = wire::DTypeBytes(dtype_);
  const auto count = std::min<std::uint64_t>(256, span.elements - unit * 256ULL);
  const auto fetch = [](std::vector<unsigned char>& to, const void* from, std::uint64_t bytes) {
    to.resize(1024);
    Check(cudaMemcpy(to.data(), from, bytes, cudaMemcpyDefault), "read a unit");
  };
  fetch(out.param, static_cast<std::byte*>(span.param) + unit * 256 * width, count * width);
  fetch(out.grad, static_cast<const std::byte*>(span.grad) + unit * 256 * width, count * width);
  const std::uint64_t at = std::uint64_t{span.first_unit} + unit;
  for (std::uint32_t k = 0; k < args_.layout.states; ++k) {
    fetch(out.codes[k], span.page + k * args_.layout.plane_bytes + at * 256, 256);
    const std::byte* absmax =
        span.page + args_.layout.absmax_offset + k * args_.layout.absmax_stride + 4 * at;
    Check(cudaMemcpy(&out.absmax[k], absmax, 4, cudaMemcpyDefault), "read an absmax");
  }
  return out;
}

std::string Model::CompareUnit(const StepSpan& span, std::uint32_t unit, Host want) const {
  const Host have = Read(span, unit);
  const std::vector<unsigned char> old_param = want.param;
  optim8bit::BlockTensor tensor{want.param.data(), want.grad.data(),
                                std::min<std::uint64_t>(256, span.elements - unit * 256ULL), dtype_, dtype_};
  optim8bit::BlockStates8 states;
  for (std::uint32_t k = 0; k < args_.layout.states; ++k) {
    states.codes[k] = want.codes[k].data();
    states.absmax[k] = &want.absmax[k];
  }
  optim8bit::ReferenceStep8(args_.layout.rule, args_.hypers[0], tensor, states);
  const std::string at = "tensor " + std::to_string(span.tensor) + " unit " + std::to_string(unit);
  for (std::uint32_t k = 0; k < args_.layout.states; ++k) {
    if (std::memcmp(&have.absmax[k], &want.absmax[k], 4) != 0) return at + ": absmax";
    for (std::uint32_t i = 0; i < 256; ++i) {
      if (have.codes[k][i] != want.codes[k][i]) {
        return at + ": code " + std::to_string(i) + " of state " + std::to_string(k) + ": " +
               std::to_string(have.codes[k][i]) + ", want " + std::to_string(want.codes[k][i]);
      }
    }
  }
  for (std::size_t i = 0; i < tensor.elements; ++i) {
    const double p = quant::LoadAs(dtype_, have.param.data(), i);
    const double q = quant::LoadAs(dtype_, want.param.data(), i);
    // One rounding of the dtype and one of the decay behind it, and what the approximate ratio may differ by:
    // 1e-6 of the update.
    const double update = std::fabs(q - quant::LoadAs(dtype_, old_param.data(), i));
    if (!(std::fabs(p - q) <= 2 * UlpOf(dtype_, q) + 1e-6 * update))
      return at + ": parameter " + std::to_string(i);
  }
  return "";
}

std::string Model::Compare(const std::function<void()>& step, std::uint32_t samples) {
  std::mt19937_64 random(args_.spans.size());
  std::vector<std::pair<std::size_t, std::uint32_t>> units;
  for (std::uint32_t i = 0; i < samples; ++i) {
    const std::size_t span = random() % args_.spans.size();
    const std::uint32_t last = args_.spans[span].units - 1;
    units.emplace_back(span, i % 4 == 0 ? last : static_cast<std::uint32_t>(random() % (last + 1)));
  }
  std::sort(units.begin(), units.end());
  units.erase(std::unique(units.begin(), units.end()), units.end());
  std::vector<Host> before;
  for (const auto& [span, unit] : units) before.push_back(Read(args_.spans[span], unit));
  step();
  Check(cudaDeviceSynchronize(), "step");
  for (std::size_t i = 0; i < units.size(); ++i) {
    std::string wrong = CompareUnit(args_.spans[units[i].first], units[i].second, std::move(before[i]));
    if (!wrong.empty()) return wrong;
  }
  return "";
}

double MedianMs(const std::function<void()>& launch, int repeats) {
  constexpr std::size_t kFlushBytes = 256 << 20;  // several times the second-level cache
  static void* flush = nullptr;
  if (flush == nullptr) Check(cudaMalloc(&flush, kFlushBytes), "flush buffer");
  cudaEvent_t from = nullptr;
  cudaEvent_t to = nullptr;
  Check(cudaEventCreate(&from), "event");
  Check(cudaEventCreate(&to), "event");
  std::vector<float> times;
  for (int i = 0; i < repeats + 2; ++i) {
    Check(cudaMemsetAsync(flush, i, kFlushBytes), "flush");
    Check(cudaEventRecord(from), "event");
    launch();
    Check(cudaEventRecord(to), "event");
    Check(cudaEventSynchronize(to), "launch");
    float ms = 0;
    Check(cudaEventElapsedTime(&ms, from, to), "time");
    if (i >= 2) times.push_back(ms);
  }
  static_cast<void>(cudaEventDestroy(from));
  static_cast<void>(cudaEventDestroy(to));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

Ceilings MeasureCopies() {
  constexpr std::uint64_t kBytes = std::uint64_t{5} << 30;
  void* from = nullptr;
  void* to = nullptr;
  Check(cudaMalloc(&from, kBytes), "copy source");
  Check(cudaMalloc(&to, kBytes), "copy target");
  FillKernel<<<2048, 256>>>(static_cast<std::byte*>(from), kBytes / 4, wire::DType::kF32, 1.0F, 3);
  Ceilings out;
  out.driver =
      2e3 * kBytes /
      MedianMs([&] { Check(cudaMemcpyAsync(to, from, kBytes, cudaMemcpyDeviceToDevice), "copy"); }, 11);
  out.kernel = 2e3 * kBytes /
               MedianMs(
                   [&] {
                     CopyKernel<<<132 * 4, 512>>>(static_cast<uint4*>(to), static_cast<const uint4*>(from),
                                                  kBytes / 16);
                   },
                   11);
  static_cast<void>(cudaFree(from));
  static_cast<void>(cudaFree(to));
  return out;
}

}  // namespace bitpager::kernels::cuda::lab
