// What the step's laboratory shares: a model of many tensors in device memory with pages in the daemon's
// layout, checks of it against the scalar reference, and timing. Main thread.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <string>
#include <vector>

#include "kernels/ops.h"

namespace bitpager::kernels::cuda::lab {

// LAB_PAGE_BYTES in the environment, or the daemon's.
[[nodiscard]] std::size_t PageBytes();

// Ends the program with a message when a call failed.
void Check(cudaError_t error, const char* what);

class Model {
 public:
  // `sizes` in elements. Parameters and gradients are random; states come from two steps before.
  Model(wire::Rule rule, wire::StateBits bits, wire::DType dtype, const std::vector<std::uint64_t>& sizes);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  [[nodiscard]] const StepArgs& args() const { return args_; }
  [[nodiscard]] std::uint64_t elements() const { return elements_; }
  [[nodiscard]] double bytes() const;  // that a step must move
  // Gradients anew, by `seed`.
  void FillGradients(std::uint64_t seed);
  // Takes `samples` random units (each tensor's last among them), runs `step`, and compares with the
  // reference: states bit for bit, parameters within one rounding. Returns what differs, in words; empty: ok.
  [[nodiscard]] std::string Compare(const std::function<void()>& step, std::uint32_t samples);

 private:
  struct Host {
    std::vector<unsigned char> param, grad, codes[2];
    float absmax[2];
  };
  [[nodiscard]] Host Read(const StepSpan& span, std::uint32_t unit) const;
  [[nodiscard]] std::string CompareUnit(const StepSpan& span, std::uint32_t unit, Host before) const;

  StepArgs args_;
  std::uint64_t elements_ = 0;
  wire::DType dtype_;
  std::byte* pages_ = nullptr;
  std::byte* params_ = nullptr;
  std::byte* grads_ = nullptr;
  std::uint64_t param_bytes_ = 0;
};

// Median milliseconds of `launch` by events, with every cache cold, over `repeats` runs.
double MedianMs(const std::function<void()>& launch, int repeats);

// Two ceilings, bytes read plus written a second: the driver's copy and a kernel's.
struct Ceilings {
  double driver = 0;
  double kernel = 0;
};
Ceilings MeasureCopies();

}  // namespace bitpager::kernels::cuda::lab
