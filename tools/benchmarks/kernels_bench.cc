// Times the kernels alone, on all usable processors, beside a memory copy of the same traffic.
// Run: kernels_bench [millions of parameters, default 32]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "kernels/device.h"
#include "kernels/local.h"
#include "optim8bit/layout.h"

namespace bitpager {
namespace {

using Clock = std::chrono::steady_clock;

// Median seconds of `runs` calls, after one to warm up.
double Median(int runs, const std::function<void()>& body) {
  body();
  std::vector<double> seconds;
  for (int i = 0; i < runs; ++i) {
    const auto start = Clock::now();
    body();
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

void Row(const char* name, double seconds, double elements, double bytes) {
  std::printf("%-34s %9.3f ms %8.3f ns/element %8.2f GB/s\n", name, seconds * 1e3, seconds * 1e9 / elements,
              bytes / seconds * 1e-9);
}

void BenchStep(kernels::Device& device, wire::Rule rule, wire::StateBits bits, wire::DType dtype,
               std::size_t elements) {
  const std::size_t page_bytes = 2 << 20;
  const auto layout = optim8bit::MakeStateLayout(rule, bits, page_bytes).value();
  const std::uint64_t per_page = std::uint64_t{layout.units_per_page} * wire::kStateBlock;
  const auto pages = static_cast<std::uint32_t>((elements + per_page - 1) / per_page);
  const auto segment = device.AllocateSegment(pages, page_bytes, 0).value();
  const std::size_t width = wire::DTypeBytes(dtype);
  std::vector<std::byte> param(elements * width), grad(elements * width);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (std::size_t i = 0; i < elements; ++i) {
    const float x = normal(random);
    const float g = 0.01F * normal(random);
    if (dtype == wire::DType::kF32) {
      std::memcpy(&param[4 * i], &x, 4);
      std::memcpy(&grad[4 * i], &g, 4);
    } else {
      std::memcpy(&param[2 * i], reinterpret_cast<const std::byte*>(&x) + 2, 2);
      std::memcpy(&grad[2 * i], reinterpret_cast<const std::byte*>(&g) + 2, 2);
    }
  }
  kernels::StepReport report;
  bool fresh = true;
  std::uint64_t step = 0;
  const double seconds = Median(9, [&] {
    kernels::StepArgs args;
    args.layout = layout;
    args.report = &report;
    args.hypers = {optim8bit::DeriveHyper(rule, {1e-4, 0.9, 0.999, 1e-8, 0.01}, ++step)};
    for (std::uint32_t p = 0; p < pages; ++p) {
      kernels::StepSpan span;
      span.page = segment.base + std::size_t{p} * page_bytes;
      span.elements = std::min<std::uint64_t>(per_page, elements - p * per_page);
      span.units = static_cast<std::uint32_t>(optim8bit::UnitsOf(span.elements));
      span.param = &param[p * per_page * width];
      span.grad = &grad[p * per_page * width];
      span.param_dtype = span.grad_dtype = dtype;
      span.zero_page = fresh;
      args.spans.push_back(span);
    }
    fresh = false;
    device.Synchronize(device.Step(std::move(args)));
  });
  const double state = layout.states * (bits == wire::StateBits::k8 ? 1.0 + 4.0 / 256 : 4.0);
  char name[64];
  std::snprintf(name, sizeof(name), "%s %d-bit, %s", rule == wire::Rule::kAdam ? "AdamW" : "Lion",
                static_cast<int>(bits), dtype == wire::DType::kF32 ? "fp32" : "bf16");
  const auto n = static_cast<double>(elements);
  Row(name, seconds, n, n * (3.0 * static_cast<double>(width) + 2 * state));
  device.FreeSegment(segment.id);
}

void BenchFourBit(int threads) {
  const std::size_t n = 4096 * 4096;
  std::vector<float> in(n), out(n);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (float& x : in) x = normal(random);
  std::vector<std::uint8_t> packed(n / 2);
  std::vector<float> absmax(n / 64);
  kernels::Packed4 planes;
  planes.packed = packed.data();
  planes.absmax = absmax.data();
  const auto nf4 = wire::QuantType::kNF4;
  const auto f32 = wire::DType::kF32;
  const double count = static_cast<double>(n);
  Row("NF4 quantize 4096x4096 fp32",
      Median(9, [&] { (void)kernels::Quantize4Bit(nf4, f32, in.data(), n, 64, &planes, threads); }), count,
      4.5625 * count);
  Row("NF4 dequantize 4096x4096 fp32",
      Median(9, [&] { (void)kernels::Dequantize4Bit(nf4, planes, n, 64, f32, out.data(), threads); }), count,
      4.5625 * count);
  Row("NF4 dequantize 4096x4096 bf16",
      Median(9,
             [&] {
               (void)kernels::Dequantize4Bit(nf4, planes, n, 64, wire::DType::kBF16, out.data(), threads);
             }),
      count, 2.5625 * count);
  Row("copy 64 MiB", Median(9, [&] { kernels::ParallelCopy(out.data(), in.data(), 4 * n, threads); }), count,
      8 * count);
}

void BenchLatency(kernels::Device& device) {
  std::vector<double> micros;
  std::byte a[64] = {}, b[64];
  for (int i = 0; i < 2000; ++i) {
    const auto start = Clock::now();
    device.Synchronize(device.Copy(kernels::Queue::kCompute, b, a, 64));
    micros.push_back(std::chrono::duration<double>(Clock::now() - start).count() * 1e6);
  }
  std::sort(micros.begin(), micros.end());
  std::printf("tiny op, queue asleep: p50 %.1f us, p99 %.1f us\n", micros[1000], micros[1980]);
}

}  // namespace
}  // namespace bitpager

int main(int argc, char** argv) {
  using namespace bitpager;
  const std::size_t elements = (argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 32) * 1000000;
  const int threads = kernels::UsableProcessors();
  auto device = std::move(kernels::OpenDevice({}).value());
  std::printf("%s, %d threads, %s\n", device->Info().name.c_str(), threads, device->Info().simd.c_str());
  for (const auto dtype : {wire::DType::kF32, wire::DType::kBF16}) {
    for (const auto rule : {wire::Rule::kAdam, wire::Rule::kLion}) {
      BenchStep(*device, rule, wire::StateBits::k8, dtype, elements);
    }
  }
  BenchStep(*device, wire::Rule::kAdam, wire::StateBits::k32, wire::DType::kF32, elements);
  BenchFourBit(threads);
  BenchLatency(*device);
}
