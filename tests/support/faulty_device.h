// Decorates a Device with faults: fails the nth call of a kind, holds completions until released, shrinks
// capacity. Tests only; called on the device thread like the device it wraps.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>

#include "kernels/device.h"

namespace bitpager::testing {

struct FaultPlan {
  // Counted from 1; 0 never. Each fails with kOutOfMemory (scratch: null), only that once.
  std::uint64_t fail_segment = 0;
  std::uint64_t fail_reserve = 0;
  std::uint64_t fail_import = 0;
  std::uint64_t fail_scratch = 0;
  // From this op or copy on, TakeFault tells a sticky kDeviceFault.
  std::uint64_t fault_at_work = 0;
  // Private and exported segments together may not exceed this; 0 = no limit.
  std::uint64_t capacity_bytes = 0;
};

class FaultyDevice final : public kernels::Device {
 public:
  FaultyDevice(std::unique_ptr<kernels::Device> inner, FaultPlan plan);

  // While held, Done() is false for events that were not complete when Hold was called. The work itself goes
  // on; only its completion is hidden.
  void Hold();
  void Release();
  [[nodiscard]] std::uint64_t work_calls() const { return work_calls_; }

  [[nodiscard]] kernels::DeviceInfo Info() const override;
  [[nodiscard]] kernels::DeviceMemory Memory() const override;
  [[nodiscard]] wire::Result<kernels::DeviceSegment> AllocateSegment(std::uint32_t frames,
                                                                     std::uint64_t page_bytes,
                                                                     std::uint32_t domain) override;
  void FreeSegment(std::uint32_t segment_id) override;
  [[nodiscard]] wire::Result<kernels::HostRegion> ReserveHost(std::uint64_t bytes) override;
  void ExpectHost(std::byte* at, std::uint64_t bytes) override { inner_->ExpectHost(at, bytes); }
  kernels::Event DecommitHost(std::byte* at, std::uint64_t bytes) override {
    return Note(inner_->DecommitHost(at, bytes));
  }
  [[nodiscard]] std::byte* AllocateScratch(std::uint64_t bytes) override;
  void FreeScratch(std::byte* at) override { inner_->FreeScratch(at); }
  [[nodiscard]] wire::Result<kernels::Import> ImportMemory(const kernels::ImportSource& source) override;
  void ReleaseImport(std::uint64_t id) override { inner_->ReleaseImport(id); }
  [[nodiscard]] bool ImportFailed(std::uint64_t id) const override { return inner_->ImportFailed(id); }
  kernels::Event Copy(kernels::Queue queue, void* to, const void* from, std::uint64_t bytes) override;
  kernels::Event Fill(kernels::Queue queue, void* at, int byte, std::uint64_t bytes) override;
  kernels::Event Signal(kernels::Queue queue, std::atomic<std::uint64_t>* word, std::uint64_t value) override;
  [[nodiscard]] wire::Status ShareWords(void* at, std::uint64_t bytes) override {
    return inner_->ShareWords(at, bytes);
  }
  void UnshareWords(void* at) override { inner_->UnshareWords(at); }
  void Wait(kernels::Queue queue, kernels::Event event) override { inner_->Wait(queue, event); }
  [[nodiscard]] bool Done(kernels::Event event) const override;
  void Synchronize(kernels::Event event) override { inner_->Synchronize(event); }
  [[nodiscard]] int progress_fd() const override { return inner_->progress_fd(); }
  [[nodiscard]] wire::Status TakeFault() override;
  kernels::Event Step(kernels::StepArgs args) override;
  kernels::Event Dequantize(kernels::DequantizeArgs args) override;
  kernels::Event BlockAbsmax(kernels::BlockAbsmaxArgs args) override;
  kernels::Event NestAbsmax(kernels::NestAbsmaxArgs args) override;
  kernels::Event Quantize(kernels::QuantizeArgs args) override;
  kernels::Event MovePacked(kernels::PackedArgs args) override;
  kernels::Event MoveStates(kernels::StatePlanesArgs args) override;

 private:
  struct Live {
    std::uint32_t id;
    std::uint64_t bytes;
  };
  kernels::Event Note(kernels::Event event);

  const FaultPlan plan_;
  std::uint64_t segment_calls_ = 0, reserve_calls_ = 0, import_calls_ = 0, scratch_calls_ = 0,
                work_calls_ = 0;
  std::uint64_t used_bytes_ = 0;
  std::deque<Live> live_;
  bool held_ = false;
  std::atomic<std::uint64_t> released_{0};        // a word to signal on Release
  std::uint64_t newest_[kernels::kQueues] = {};   // sequences handed out
  std::uint64_t visible_[kernels::kQueues] = {};  // complete when Hold was called
  std::unique_ptr<kernels::Device> inner_;        // last: its queues may still write released_
};

}  // namespace bitpager::testing
