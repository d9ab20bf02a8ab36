// The operations of a device, on resident pages and mapped client memory. Interface only: kernels/cpu and
// kernels/cuda implement it. Calls are made on the one device thread and only enqueue; pointers must stay
// valid until the op's event completes. All sizes were validated before: an op never checks a client.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "client/wire/types.h"
#include "optim8bit/hyper.h"
#include "optim8bit/layout.h"
#include "quant/weight_layout.h"

namespace bitpager::kernels {

// A run of consecutive units of one tensor inside one resident page.
struct StepSpan {
  std::byte* page = nullptr;     // device frame
  std::uint32_t first_unit = 0;  // slot in the page
  std::uint32_t units = 0;
  void* param = nullptr;       // first element of the run, param_dtype, updated in place
  const void* grad = nullptr;  // first element of the run, grad_dtype
  std::uint64_t elements = 0;  // 256 * (units - 1) < elements <= 256 * units
  std::uint32_t tensor = 0;    // index reported with a non-finite block
  std::uint32_t hyper = 0;     // index into StepArgs::hypers
  wire::DType param_dtype = wire::DType::kF32;
  wire::DType grad_dtype = wire::DType::kF32;
  bool zero_page = false;  // the page was never written: its states read as zero
};

// What a step found. Written by the device, read after the op's event.
struct StepReport {
  std::uint64_t nonfinite_blocks = 0;
  std::uint32_t first_tensor = ~0U;  // least `tensor` with such a block; ~0 when none
};

// One fused multi-tensor launch over the resident window.
// Per block of 256 (formats: optim8bit/): states dequantized, updated in fp32, parameter updated from the
// unquantized states and rounded to its dtype, new absmax, nearest-entry requantization with the sign rule.
struct StepArgs {
  optim8bit::StateLayout layout;
  wire::OnNonFinite on_nonfinite = wire::OnNonFinite::kSkip;
  std::vector<StepSpan> spans;
  std::vector<optim8bit::Hyper> hypers;
  StepReport* report = nullptr;  // accumulated into: several windows share one
};

// A run of consecutive blocks of one weight inside one resident page.
struct WeightSpan {
  std::byte* page = nullptr;
  std::uint32_t first_block = 0;  // slot in the page
  std::uint32_t blocks = 0;
  std::uint64_t first_global_block = 0;  // of the run, in the weight (nested groups are global)
  std::uint64_t page_global_block = 0;   // of slot 0 of this page
  std::uint64_t elements = 0;            // of the run; the last block may be short
};

// Weight format of an op. `offset` is the nested offset (mean of absmax); 0 when not nested.
struct WeightFormat {
  wire::QuantType type = wire::QuantType::kNF4;
  quant::WeightLayout layout;
  float offset = 0.0F;
};

// out[i] = code[i] * absmax (in fp32, then cast). `out` of span s starts at outs[s].
struct DequantizeArgs {
  WeightFormat format;
  wire::DType out_dtype = wire::DType::kF32;
  std::vector<WeightSpan> spans;
  std::vector<void*> outs;
};

// First pass of quantization: absmax of every block of `in`, fp32.
struct BlockAbsmaxArgs {
  const void* in = nullptr;
  wire::DType in_dtype = wire::DType::kF32;
  std::uint64_t elements = 0;
  std::uint32_t blocksize = 64;
  float* absmax = nullptr;  // BlocksOf(elements, blocksize)
};

// Double quantization of block absmaxes: offset = mean (fixed order), then signed dynamic 8-bit map over
// blocks of 256 of (absmax - offset).
struct NestAbsmaxArgs {
  const float* absmax = nullptr;
  std::uint64_t blocks = 0;
  std::uint8_t* codes = nullptr;  // blocks
  float* absmax2 = nullptr;       // ceil(blocks / 256)
  float* offset = nullptr;        // 1
};

// Second pass: packs pages. Codes are nearest to x * (1 / absmax) with the unquantized absmax.
// The planes below belong to the whole weight; each page receives its part. A weight that is not nested needs
// no first pass: with `absmax` null, the absmaxes are computed here and the input is read once.
struct QuantizeArgs {
  WeightFormat format;
  wire::DType in_dtype = wire::DType::kF32;
  std::vector<WeightSpan> spans;
  std::vector<const void*> ins;                // first element of each span
  const float* absmax = nullptr;               // of all blocks; null: see above, only when not nested
  const std::uint8_t* nested_codes = nullptr;  // of all blocks; null when not nested
  const float* absmax2 = nullptr;              // of all groups; null when not nested
  // Of all blocks; only when nested, with the three above null: the absmaxes are computed here and go there,
  // and the pages get their packed codes alone. The rest comes with MovePacked.
  float* absmax_out = nullptr;
};

// Moves a packed weight (interchange layout: packed codes, absmax planes) into or out of pages.
struct PackedArgs {
  WeightFormat format;
  std::vector<WeightSpan> spans;
  std::byte* packed = nullptr;  // of the whole weight, even element in the high nibble; null: absmaxes alone
  float* absmax = nullptr;      // of all blocks; null when nested
  std::uint8_t* nested_codes = nullptr;
  float* absmax2 = nullptr;
  bool into_pages = true;
};

// Moves states of one tensor into or out of pages. Planes are of the whole tensor: 8-bit codes (n bytes) or
// fp32 values (4 n bytes) for each state, and one fp32 absmax a block for each 8-bit state.
struct StatePlanesArgs {
  optim8bit::StateLayout layout;
  std::vector<StepSpan> spans;  // param, grad and hyper unused; `elements` counts
  std::byte* planes[2] = {nullptr, nullptr};
  float* absmax[2] = {nullptr, nullptr};
  bool into_pages = true;
};

}  // namespace bitpager::kernels
