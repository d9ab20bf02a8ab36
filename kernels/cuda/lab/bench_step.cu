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
// Neither decodes nor updates nor encodes much: what the memory side alone costs. Its numbers are wrong.
struct NoMath {
  static constexpr int kStates = 2;
  static constexpr bool kDecayFirst = false;
  __device__ static bool NeedsCare(const Hyper&) { return false; }
  template <bool kCareful>
  __device__ static float Update(const Hyper&, float p, float g, float* m, float* v) {
    *m = g;
    *v = g * g;
    return p;
  }
};

template <typename Rule, typename Types, bool kWide>
void Launch(const StepLaunch& like) {
  using Shape = StepShape<Rule, Types, kWide>;
  const auto kernel = Step8Kernel<Rule, Types, kWide>;
  Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes),
        "shared");
  kernel<<<132 * Shape::kBlocks, dim3(kLanes, Shape::kWarps), Shape::kSharedBytes>>>(like);
  Check(cudaGetLastError(), "launch");
}

struct Rung {
  const char* name;
  wire::Rule rule;
  DType dtype;
  bool exact;
  void (*launch)(const StepLaunch&);  // null: LaunchStep, as the daemon calls it
  std::uint32_t run_shift;
};

constexpr DType kB = DType::kBF16;
constexpr DType kF = DType::kF32;
const Rung kRungs[] = {
    {"adam-bf16", wire::Rule::kAdam, kB, true, nullptr, 0},
    {"adam-bf16-no-math", wire::Rule::kAdam, kB, false, Launch<NoMath, SameTypes<kB>, true>, 4},
    {"adam-bf16-no-math-run256", wire::Rule::kAdam, kB, false, Launch<NoMath, SameTypes<kB>, true>, 8},
    {"adam-bf16-run1", wire::Rule::kAdam, kB, true, Launch<AdamStep, SameTypes<kB>, true>, 0},
    {"adam-bf16-run4", wire::Rule::kAdam, kB, true, Launch<AdamStep, SameTypes<kB>, true>, 2},
    {"adam-bf16-run8", wire::Rule::kAdam, kB, true, Launch<AdamStep, SameTypes<kB>, true>, 3},
    {"adam-bf16-run32", wire::Rule::kAdam, kB, true, Launch<AdamStep, SameTypes<kB>, true>, 5},
    {"adam-bf16-run64", wire::Rule::kAdam, kB, true, Launch<AdamStep, SameTypes<kB>, true>, 6},
    {"adam-bf16-run256", wire::Rule::kAdam, kB, true, Launch<AdamStep, SameTypes<kB>, true>, 8},
    {"adam-bf16-1-slot", wire::Rule::kAdam, kB, true, Launch<AdamStep, Cut<kB, 32, 1>, true>, 4},
    {"adam-bf16-24-warps", wire::Rule::kAdam, kB, true, Launch<AdamStep, Cut<kB, 24, 2>, true>, 4},
    {"adam-bf16-28-warps", wire::Rule::kAdam, kB, true, Launch<AdamStep, Cut<kB, 28, 2>, true>, 4},
    {"adam-bf16-narrow", wire::Rule::kAdam, kB, true, Launch<AdamStep, AnyTypes, false>, 4},
    {"adam-bf16-any", wire::Rule::kAdam, kB, true, Launch<AdamStep, AnyTypes, true>, 4},
    {"adam-f32", wire::Rule::kAdam, kF, true, nullptr, 0},
    {"adam-f32-run64", wire::Rule::kAdam, kF, true, Launch<AdamStep, SameTypes<kF>, true>, 6},
    {"adam-f32-16-warps-3-slots", wire::Rule::kAdam, kF, true, Launch<AdamStep, Cut<kF, 16, 3>, true>, 4},
    {"adam-f32-20-warps", wire::Rule::kAdam, kF, true, Launch<AdamStep, Cut<kF, 20, 2>, true>, 4},
    {"lion-bf16", wire::Rule::kLion, kB, true, nullptr, 0},
    {"lion-bf16-24-warps-3-slots", wire::Rule::kLion, kB, true, Launch<LionStep, Cut<kB, 24, 3>, true>, 4},
    {"lion-f32", wire::Rule::kLion, kF, true, nullptr, 0},
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
  Model model(rung.rule, wire::StateBits::k8, rung.dtype, sizes);
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
  const std::vector<std::uint64_t> odd = {1, 255, 256, 257, 4097, 100000, 65536, 999, 31, 7777};
  for (const lab::Rung& rung : lab::kRungs) {
    bool wanted = argc < 2;
    for (int i = 1; i < argc; ++i) wanted = wanted || std::strcmp(argv[i], rung.name) == 0;
    if (!wanted) continue;
    if (rung.launch == nullptr) lab::Run(rung, ceilings, odd, "odd");
    lab::Run(rung, ceilings, lab::Llama(), "1e9");
  }
}
