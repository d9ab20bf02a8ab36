// The laboratory of the optimizer step: each rung is one idea, timed beside the copy ceiling of the same run
// and compared with the scalar reference. Built by hand (README.md beside this), linked into nothing.
//   bench_step [rung...]: all rungs, or those named.
#include <cstdio>
#include <cstring>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/lab/bench_step.h"
#include "kernels/cuda/step8.cuh"

namespace bitpager::kernels::cuda {

// Stands in for the device's ring: every table gets memory of its own.
class TableRing {};
wire::Result<const void*> LaunchContext::Upload(const void* host, std::size_t bytes, std::size_t) {
  static std::byte* ring = nullptr;
  static std::size_t used = 0;
  constexpr std::size_t kRing = 64 << 20;
  if (ring == nullptr) lab::Check(cudaMalloc(&ring, kRing), "table ring");
  if (used + bytes > kRing) used = 0;
  std::byte* const at = ring + used;
  used += (bytes + 255) / 256 * 256;
  lab::Check(cudaMemcpyAsync(at, host, bytes, cudaMemcpyDefault, stream_), "table");
  return static_cast<const void*>(at);
}

namespace lab {
namespace {

// Rungs differ from the daemon's kernel in one thing each.
template <DType kType, std::uint32_t kTheWarps, std::uint32_t kTheSlots>
struct Cut : SameTypes<kType> {
  static constexpr std::uint32_t kWarps = kTheWarps;
  static constexpr std::uint32_t kSlots = kTheSlots;
};

// Moves the bytes of an 8-bit Adam step of bf16 and computes nothing: what memory alone allows.
__global__ void __launch_bounds__(512, 3) MemoryKernel(const __grid_constant__ StepLaunch launch) {
  using Types = SameTypes<DType::kBF16>;
  const std::uint32_t lane = threadIdx.x;
  StepWalk walk(launch, threadIdx.y * gridDim.x + blockIdx.x);
  StepSegment segment;
  while (walk.Next(launch, lane, gridDim.x * blockDim.y, segment)) {
    const StepEntry entry = launch.entries[segment.span];
#pragma unroll 2
    for (std::uint32_t i = 0; i < segment.units; ++i) {
      const StepUnit unit = UnitOf<Types>(entry, segment.first + i, kBlock);
      auto* const param = reinterpret_cast<uint4*>(unit.param) + lane;
      auto* const m = reinterpret_cast<uint2*>(unit.states) + lane;
      auto* const v = reinterpret_cast<uint2*>(unit.states + launch.plane_bytes) + lane;
      uint4 p = __ldcg(param);
      const uint4 g = __ldcg(reinterpret_cast<const uint4*>(unit.grad) + lane);
      uint2 a = __ldcg(m);
      uint2 b = __ldcg(v);
      p.x ^= g.x & 1;
      p.w ^= g.w & 1;
      a.x ^= 1;
      b.x ^= 1;
      __stcg(param, p);
      __stcg(m, a);
      __stcg(v, b);
      if (lane == 0) {
        unit.absmax[0] += 1;
        unit.absmax[launch.absmax_stride] += 1;
      }
    }
  }
}
void LaunchMemory(const StepLaunch& like) {
  MemoryKernel<<<132 * 3, dim3(kLanes, 16)>>>(like);
  Check(cudaGetLastError(), "launch");
}

// Counts the mantissas for which the kernels' inverse is not the rounded quotient.
__global__ void InverseKernel(std::uint32_t* wrong) {
  const std::uint32_t mantissa = blockIdx.x * blockDim.x + threadIdx.x;
  const float absmax = __uint_as_float(0x3F800000U | mantissa);
  if (ScaledInverse(absmax) != __frcp_rn(absmax) * 0x1p-103F) atomicAdd(wrong, 1U);
}
void CheckInverse() {
  std::uint32_t* wrong = nullptr;
  Check(cudaMallocManaged(&wrong, 4), "counter");
  *wrong = 0;
  InverseKernel<<<(1 << 23) / 256, 256>>>(wrong);
  Check(cudaDeviceSynchronize(), "inverse");
  std::printf("inverse: wrong for %u of %u mantissas\n", *wrong, 1U << 23);
  static_cast<void>(cudaFree(wrong));
}

template <typename Rule, typename Types, bool kWide>
void Launch(const StepLaunch& like) {
  using Shape = StepShape<Rule, Types, kWide>;
  constexpr int kShared = static_cast<int>(Shape::kSharedEnd) - 1024;
  const auto kernel = Step8Kernel<Rule, Types, kWide>;
  Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared), "shared");
  kernel<<<132 * Shape::kBlocks, dim3(kLanes, Shape::kWarps), kShared>>>(like);
  Check(cudaGetLastError(), "launch");
}

struct Rung {
  const char* name;
  wire::Rule rule;
  wire::StateBits bits;
  DType dtype;
  bool exact;                         // compared with the reference
  void (*launch)(const StepLaunch&);  // null: LaunchStep, as the daemon calls it
  std::uint32_t run_shift;
};

constexpr DType kB = DType::kBF16;
constexpr DType kF = DType::kF32;
constexpr auto kAdam = wire::Rule::kAdam;
constexpr auto kLion = wire::Rule::kLion;
constexpr auto k8 = wire::StateBits::k8;
constexpr auto k32 = wire::StateBits::k32;
const Rung kRungs[] = {
    {"adam-bf16", kAdam, k8, kB, true, nullptr, 0},
    {"adam-bf16-memory", kAdam, k8, kB, false, LaunchMemory, 5},
    {"adam-bf16-run1", kAdam, k8, kB, true, Launch<AdamStep, SameTypes<kB>, true>, 0},
    {"adam-bf16-run8", kAdam, k8, kB, true, Launch<AdamStep, SameTypes<kB>, true>, 3},
    {"adam-bf16-1-slot", kAdam, k8, kB, true, Launch<AdamStep, Cut<kB, 24, 1>, true>, 5},
    {"adam-bf16-28-warps", kAdam, k8, kB, true, Launch<AdamStep, Cut<kB, 28, 2>, true>, 5},
    {"adam-bf16-16-warps-4-slots", kAdam, k8, kB, true, Launch<AdamStep, Cut<kB, 16, 4>, true>, 5},
    {"adam-bf16-narrow", kAdam, k8, kB, true, Launch<AdamStep, AnyTypes, false>, 5},
    {"adam-f16", kAdam, k8, DType::kF16, true, nullptr, 0},
    {"adam-f32", kAdam, k8, kF, true, nullptr, 0},
    {"lion-bf16", kLion, k8, kB, true, nullptr, 0},
    {"lion-f32", kLion, k8, kF, true, nullptr, 0},
    {"adam-bf16-32-bit", kAdam, k32, kB, false, nullptr, 0},
    {"adam-f32-32-bit", kAdam, k32, kF, false, nullptr, 0},
    {"lion-bf16-32-bit", kLion, k32, kB, false, nullptr, 0},
};

// A 1B-Llama's shapes: 999,999,488 parameters.
std::vector<std::uint64_t> Llama() {
  const std::uint64_t h = 2048;
  std::vector<std::uint64_t> sizes{13112 * h};
  for (int layer = 0; layer < 16; ++layer) {
    for (const std::uint64_t size : {h * h, 512 * h, 512 * h, h * h, 8192 * h, 8192 * h, 8192 * h, h, h}) {
      sizes.push_back(size);
    }
  }
  sizes.push_back(h);
  return sizes;
}

// The launch that LaunchStep would make, for kernels that it does not know.
StepLaunch TableOf(const StepArgs& args, LaunchContext& context) {
  std::vector<StepEntry> entries;
  std::vector<std::uint32_t> firsts;
  StepLaunch launch{};
  for (const StepSpan& span : args.spans) {
    const StepEntry entry = EntryOf(args.layout, span, launch.units);
    firsts.push_back(launch.units);
    launch.units += span.units;
    entries.push_back(entry);
  }
  launch.entries = static_cast<const StepEntry*>(
      context.Upload(entries.data(), entries.size() * sizeof(StepEntry), 16).value());
  launch.firsts =
      static_cast<const std::uint32_t*>(context.Upload(firsts.data(), firsts.size() * 4, 16).value());
  launch.hypers = static_cast<const Hyper*>(
      context.Upload(args.hypers.data(), args.hypers.size() * sizeof(Hyper), 16).value());
  launch.spans = static_cast<std::uint32_t>(entries.size());
  launch.plane_bytes = args.layout.plane_bytes;
  launch.absmax_stride = args.layout.absmax_stride / 4;
  launch.skip_nonfinite = true;
  return launch;
}

void Run(const Rung& rung, const Ceilings& ceilings, std::vector<std::uint64_t> sizes, const char* where) {
  Model model(rung.rule, rung.bits, rung.dtype, sizes);
  TableRing ring;
  LaunchContext context(nullptr, 132, 90, ring);
  StepLaunch table = TableOf(model.args(), context);
  table.run_shift = rung.run_shift;
  const auto step = [&] {
    if (rung.launch != nullptr) {
      rung.launch(table);
    } else if (const wire::Status status = LaunchStep(context, model.args()); !status.ok()) {
      std::printf("%s\n", std::string(status.message()).c_str());
    }
  };
  for (std::uint64_t seed = 3; seed < 6; ++seed) {
    step();
    model.FillGradients(seed);
  }
  std::string wrong = rung.exact ? model.Compare(step, 3000) : "not compared";
  model.FillGradients(9);
  const double ms = MedianMs(step, 15);
  const double floor_ms = 1e3 * model.bytes() / ceilings.driver;
  std::printf("%-28s %-6s %8.3f ms  %5.1f%% of the ceiling  %s\n", rung.name, where, ms, 100 * floor_ms / ms,
              wrong.empty() ? "equal" : wrong.c_str());
  std::fflush(stdout);
}

}  // namespace
}  // namespace lab
}  // namespace bitpager::kernels::cuda

int main(int argc, char** argv) {
  namespace lab = bitpager::kernels::cuda::lab;
  const lab::Ceilings ceilings = lab::MeasureCopies();
  std::printf("copy ceilings: driver %.3f TB/s, kernel %.3f TB/s\n", ceilings.driver / 1e12,
              ceilings.kernel / 1e12);
  lab::CheckInverse();
  const std::vector<std::uint64_t> odd = {1, 255, 256, 257, 4097, 100000, 65536, 999, 31, 7777};
  for (const lab::Rung& rung : lab::kRungs) {
    bool wanted = argc < 2;
    for (int i = 1; i < argc; ++i) wanted = wanted || std::strcmp(argv[i], rung.name) == 0;
    if (!wanted) continue;
    if (rung.launch == nullptr) lab::Run(rung, ceilings, odd, "odd");
    lab::Run(rung, ceilings, lab::Llama(), "1e9");
  }
}
