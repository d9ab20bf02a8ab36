#include "tests/support/faulty_device.h"

#include <algorithm>
#include <utility>

namespace bitpager::testing {

using kernels::Event;
using wire::Code;
using wire::Status;

FaultyDevice::FaultyDevice(std::unique_ptr<kernels::Device> inner, FaultPlan plan)
    : plan_(plan), inner_(std::move(inner)) {}

void FaultyDevice::Hold() {
  held_ = true;
  for (int q = 0; q < kernels::kQueues; ++q) {
    std::uint64_t done = newest_[q];
    while (done > 0 && !inner_->Done({static_cast<kernels::Queue>(q), done})) --done;
    visible_[q] = done;
  }
}

void FaultyDevice::Release() {
  held_ = false;
  // A completion that was hidden must still wake whoever sleeps on the progress fd.
  (void)Note(inner_->Signal(kernels::Queue::kCompute, &released_, 1));
}

Event FaultyDevice::Note(Event event) {
  ++work_calls_;
  auto& newest = newest_[static_cast<int>(event.queue)];
  newest = std::max(newest, event.sequence);
  return event;
}

kernels::DeviceInfo FaultyDevice::Info() const {
  kernels::DeviceInfo info = inner_->Info();
  if (plan_.capacity_bytes != 0) {
    info.total_bytes = std::min(info.total_bytes, plan_.capacity_bytes);
    info.free_bytes = std::min(info.free_bytes, plan_.capacity_bytes - used_bytes_);
  }
  return info;
}

kernels::DeviceMemory FaultyDevice::Memory() const {
  kernels::DeviceMemory memory = inner_->Memory();
  if (plan_.capacity_bytes != 0) {
    memory.total_bytes = std::min(memory.total_bytes, plan_.capacity_bytes);
    memory.free_bytes = std::min(memory.free_bytes, plan_.capacity_bytes - used_bytes_);
  }
  return memory;
}

wire::Result<kernels::DeviceSegment> FaultyDevice::AllocateSegment(std::uint32_t frames,
                                                                   std::uint64_t page_bytes,
                                                                   std::uint32_t domain) {
  const std::uint64_t bytes = std::uint64_t{frames} * page_bytes;
  if (++segment_calls_ == plan_.fail_segment) return Status(Code::kOutOfMemory, "injected: segment");
  if (plan_.capacity_bytes != 0 && used_bytes_ + bytes > plan_.capacity_bytes) {
    return Status(Code::kOutOfMemory,
                  "injected: capacity of " + std::to_string(plan_.capacity_bytes) + " bytes");
  }
  auto segment = inner_->AllocateSegment(frames, page_bytes, domain);
  if (segment.ok()) {
    used_bytes_ += bytes;
    live_.push_back({segment->id, bytes});
  }
  return segment;
}

void FaultyDevice::FreeSegment(std::uint32_t segment_id) {
  const auto found =
      std::find_if(live_.begin(), live_.end(), [&](const Live& l) { return l.id == segment_id; });
  if (found != live_.end()) {
    used_bytes_ -= found->bytes;
    live_.erase(found);
  }
  inner_->FreeSegment(segment_id);
}

wire::Result<kernels::HostRegion> FaultyDevice::ReserveHost(std::uint64_t bytes) {
  if (++reserve_calls_ == plan_.fail_reserve) return Status(Code::kOutOfMemory, "injected: host region");
  return inner_->ReserveHost(bytes);
}

std::byte* FaultyDevice::AllocateScratch(std::uint64_t bytes) {
  if (++scratch_calls_ == plan_.fail_scratch) return nullptr;
  return inner_->AllocateScratch(bytes);
}

wire::Result<kernels::Import> FaultyDevice::ImportMemory(const kernels::ImportSource& source) {
  if (++import_calls_ == plan_.fail_import) return Status(Code::kOutOfMemory, "injected: import");
  return inner_->ImportMemory(source);
}

bool FaultyDevice::Done(Event event) const {
  if (held_ && event.sequence > visible_[static_cast<int>(event.queue)]) return false;
  return inner_->Done(event);
}

wire::Status FaultyDevice::TakeFault() {
  if (plan_.fault_at_work != 0 && work_calls_ >= plan_.fault_at_work) {
    return {Code::kDeviceFault, "injected: device fault"};
  }
  return inner_->TakeFault();
}

Event FaultyDevice::Copy(kernels::Queue queue, void* to, const void* from, std::uint64_t bytes) {
  return Note(inner_->Copy(queue, to, from, bytes));
}
Event FaultyDevice::Fill(kernels::Queue queue, void* at, int byte, std::uint64_t bytes) {
  return Note(inner_->Fill(queue, at, byte, bytes));
}
Event FaultyDevice::Signal(kernels::Queue queue, std::atomic<std::uint64_t>* word, std::uint64_t value) {
  return Note(inner_->Signal(queue, word, value));
}
Event FaultyDevice::Step(kernels::StepArgs args) {
  return Note(inner_->Step(std::move(args)));
}
Event FaultyDevice::Dequantize(kernels::DequantizeArgs args) {
  return Note(inner_->Dequantize(std::move(args)));
}
Event FaultyDevice::BlockAbsmax(kernels::BlockAbsmaxArgs args) {
  return Note(inner_->BlockAbsmax(args));
}
Event FaultyDevice::NestAbsmax(kernels::NestAbsmaxArgs args) {
  return Note(inner_->NestAbsmax(args));
}
Event FaultyDevice::Quantize(kernels::QuantizeArgs args) {
  return Note(inner_->Quantize(std::move(args)));
}
Event FaultyDevice::MovePacked(kernels::PackedArgs args) {
  return Note(inner_->MovePacked(std::move(args)));
}
Event FaultyDevice::MoveStates(kernels::StatePlanesArgs args) {
  return Note(inner_->MoveStates(std::move(args)));
}

}  // namespace bitpager::testing
