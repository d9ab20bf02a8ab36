// A device around another device, with faults to order: segments or scratch refused, a fault after the nth
// step, imports counted. Every other call goes through. The device thread; the counters too.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "kernels/device.h"

namespace bitpager::testing {

class ScriptedDevice : public kernels::Device {
 public:
  explicit ScriptedDevice(std::unique_ptr<kernels::Device> inner) : inner_(std::move(inner)) {}

  // ---- the script
  std::uint64_t segments_left = ~std::uint64_t{0};  // AllocateSegment refuses when it is 0
  // Once this many steps were launched TakeFault reports, nothing is seen to end and no word is stored.
  std::int64_t fault_at_step = -1;
  bool refuse_scratch = false;
  bool refuse_imports = false;
  bool hold_decommit = false;  // the newest DecommitHost is not reported as done
  bool hold_compute = false;   // nothing on Queue::kCompute is reported as done
  bool hold_copies = false;    // nothing on the other queues is
  bool hold_signals = false;   // words are stored, and reported as done, by ReleaseSignals
  // Not 0: what Info tells instead of the device's own.
  std::uint32_t launch_pages = 0;
  std::string uuid;  // likewise, where it is not empty
  // Not 0: memory of its own, of so many bytes, of which others hold some.
  std::uint64_t card_bytes = 0;
  std::uint64_t others_bytes = 0;
  // ---- what was seen
  std::function<void()> on_step = [] {};  // while a step is being launched
  std::int64_t steps = 0;
  std::int64_t segments = 0;  // alive
  std::int64_t imports = 0;   // alive
  std::int64_t scratches = 0;
  std::int64_t shared_words = 0;
  std::uint64_t copied_bytes = 0;
  std::int64_t absmax_passes = 0;
  std::int64_t quantize_launches = 0;
  std::int64_t expected = 0;  // calls of ExpectKernels

  [[nodiscard]] kernels::DeviceInfo Info() const override {
    kernels::DeviceInfo info = inner_->Info();
    if (launch_pages > 0) info.launch_pages = launch_pages;
    if (!uuid.empty()) info.uuid = uuid;
    if (card_bytes > 0) info.in_host_memory = false;
    return info;
  }
  [[nodiscard]] kernels::DeviceMemory Memory() const override {
    kernels::DeviceMemory memory = inner_->Memory();
    if (card_bytes == 0) return memory;
    memory.total_bytes = card_bytes;
    memory.own_bytes = 0;
    for (const auto& [id, bytes] : segment_bytes_) memory.own_bytes += bytes;
    const std::uint64_t held = memory.own_bytes + others_bytes;
    memory.free_bytes = card_bytes - std::min(card_bytes, held);
    return memory;
  }
  [[nodiscard]] wire::Result<kernels::DeviceSegment> AllocateSegment(std::uint32_t frames,
                                                                     std::uint64_t page_bytes,
                                                                     std::uint32_t domain) override {
    if (segments_left == 0) {
      return wire::Status(wire::Code::kOutOfMemory,
                          "no memory for " + std::to_string(frames * page_bytes) + " bytes (scripted)");
    }
    auto made = inner_->AllocateSegment(frames, page_bytes, domain);
    if (made.ok()) {
      --segments_left;
      ++segments;
      segment_bytes_[made->id] = frames * page_bytes;
    }
    return made;
  }
  void FreeSegment(std::uint32_t segment_id) override {
    --segments;
    segment_bytes_.erase(segment_id);
    inner_->FreeSegment(segment_id);
  }
  [[nodiscard]] wire::Result<kernels::HostRegion> ReserveHost(std::uint64_t bytes) override {
    return inner_->ReserveHost(bytes);
  }
  void ExpectHost(std::byte* at, std::uint64_t bytes) override { inner_->ExpectHost(at, bytes); }
  kernels::Event DecommitHost(std::byte* at, std::uint64_t bytes) override {
    return decommit_ = inner_->DecommitHost(at, bytes);
  }
  [[nodiscard]] std::byte* AllocateScratch(std::uint64_t bytes) override {
    if (refuse_scratch) return nullptr;
    ++scratches;
    return inner_->AllocateScratch(bytes);
  }
  void FreeScratch(std::byte* at) override {
    --scratches;
    inner_->FreeScratch(at);
  }
  [[nodiscard]] wire::Result<kernels::Import> ImportMemory(const kernels::ImportSource& source) override {
    if (refuse_imports) return wire::Status(wire::Code::kOutOfMemory, "no memory to map (scripted)");
    auto made = inner_->ImportMemory(source);
    if (made.ok()) ++imports;
    return made;
  }
  void ReleaseImport(std::uint64_t import_id) override {
    --imports;
    inner_->ReleaseImport(import_id);
  }
  [[nodiscard]] bool ImportFailed(std::uint64_t import_id) const override {
    return inner_->ImportFailed(import_id);
  }

  kernels::Event Copy(kernels::Queue queue, void* to, const void* from, std::uint64_t bytes) override {
    copied_bytes += bytes;
    return inner_->Copy(queue, to, from, bytes);
  }
  kernels::Event Fill(kernels::Queue queue, void* at, int byte, std::uint64_t bytes) override {
    return inner_->Fill(queue, at, byte, bytes);
  }
  kernels::Event Signal(kernels::Queue queue, std::atomic<std::uint64_t>* word,
                        std::uint64_t value) override {
    if (faulted()) return inner_->Signal(queue, &scratch_word_, value);
    if (!hold_signals) return inner_->Signal(queue, word, value);
    signals_.push_back({word, value, inner_->Signal(queue, &scratch_word_, value)});
    return signals_.back().event;
  }
  [[nodiscard]] std::size_t held_signals() const { return signals_.size(); }
  void ReleaseSignals() {
    hold_signals = false;
    for (const HeldSignal& held : signals_) held.word->store(held.value, std::memory_order_release);
    signals_.clear();
  }
  [[nodiscard]] wire::Status ShareWords(void* at, std::uint64_t bytes) override {
    ++shared_words;
    return inner_->ShareWords(at, bytes);
  }
  void UnshareWords(void* at) override {
    --shared_words;
    inner_->UnshareWords(at);
  }
  void Wait(kernels::Queue queue, kernels::Event event) override { inner_->Wait(queue, event); }
  [[nodiscard]] bool Done(kernels::Event event) const override {
    bool held = faulted() ||
                (hold_decommit && event.queue == decommit_.queue && event.sequence == decommit_.sequence);
    held = held || (hold_compute && event.queue == kernels::Queue::kCompute);
    held = held || (hold_copies && event.queue != kernels::Queue::kCompute);
    for (const HeldSignal& signal : signals_) {
      held = held || (event.queue == signal.event.queue && event.sequence >= signal.event.sequence);
    }
    return !held && inner_->Done(event);
  }
  void Synchronize(kernels::Event event) override { inner_->Synchronize(event); }
  [[nodiscard]] int progress_fd() const override { return inner_->progress_fd(); }
  [[nodiscard]] wire::Status TakeFault() override {
    if (faulted()) {
      return {wire::Code::kDeviceFault, "the device stopped (scripted)"};
    }
    return inner_->TakeFault();
  }

  void ExpectKernels() override { ++expected; }
  kernels::Event Step(kernels::StepArgs args) override {
    ++steps;
    on_step();
    return inner_->Step(std::move(args));
  }
  kernels::Event Dequantize(kernels::DequantizeArgs args) override {
    return inner_->Dequantize(std::move(args));
  }
  kernels::Event BlockAbsmax(kernels::BlockAbsmaxArgs args) override {
    ++absmax_passes;
    return inner_->BlockAbsmax(std::move(args));
  }
  kernels::Event NestAbsmax(kernels::NestAbsmaxArgs args) override {
    return inner_->NestAbsmax(std::move(args));
  }
  kernels::Event Quantize(kernels::QuantizeArgs args) override {
    ++quantize_launches;
    return inner_->Quantize(std::move(args));
  }
  kernels::Event MovePacked(kernels::PackedArgs args) override { return inner_->MovePacked(std::move(args)); }
  kernels::Event MoveStates(kernels::StatePlanesArgs args) override {
    return inner_->MoveStates(std::move(args));
  }

 private:
  std::map<std::uint32_t, std::uint64_t> segment_bytes_;  // alive
  [[nodiscard]] bool faulted() const { return fault_at_step >= 0 && steps >= fault_at_step; }

  struct HeldSignal {
    std::atomic<std::uint64_t>* word;
    std::uint64_t value;
    kernels::Event event;
  };
  kernels::Event decommit_;  // the newest
  std::vector<HeldSignal> signals_;
  std::atomic<std::uint64_t> scratch_word_{0};
  std::unique_ptr<kernels::Device> inner_;
};

}  // namespace bitpager::testing
