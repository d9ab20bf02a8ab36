// Tensors and their states on the host, for the tests of a device's steps: one step of them on the device and
// by the scalar reference. Main thread.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/device.h"
#include "optim8bit/reference_step.h"

namespace bitpager::kernels {

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

}  // namespace bitpager::kernels
