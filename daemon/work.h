// One admitted request: validated, holding all memory it names, able to launch itself on a resident window.
// Works are made by admission (admission.h), driven by the dispatcher; all on the dispatcher thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "client/wire/records.h"
#include "client/wire/status.h"
#include "daemon/buffer.h"
#include "daemon/extent.h"
#include "kernels/device.h"
#include "paging/pager.h"

namespace bitpager::daemon {

class WeightPiece;

// A page of a window, with the address of its frame.
struct ResidentPage {
  std::uint64_t index = 0;  // in its extent
  std::byte* at = nullptr;
  bool zero = false;  // never written: undefined memory that reads as zero
};

// Scratch of a device, freed with its owner.
class Scratch {
 public:
  Scratch() = default;
  // For kernels alone.
  [[nodiscard]] static Scratch ForKernels(kernels::Device& device, std::uint64_t bytes) {
    Scratch made;
    made.device_ = &device;
    made.at_ = device.AllocateKernelScratch(bytes);
    return made;
  }
  Scratch(kernels::Device& device, std::uint64_t bytes)
      : device_(&device), at_(device.AllocateScratch(bytes)) {}
  ~Scratch() {
    if (at_ != nullptr) device_->FreeScratch(at_);
  }
  Scratch(Scratch&& other) noexcept : device_(other.device_), at_(std::exchange(other.at_, nullptr)) {}
  Scratch& operator=(Scratch&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(at_, other.at_);
    return *this;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  [[nodiscard]] std::byte* get() const { return at_; }
  [[nodiscard]] explicit operator bool() const { return at_ != nullptr; }

 private:
  kernels::Device* device_ = nullptr;
  std::byte* at_ = nullptr;
};

class Work {
 public:
  virtual ~Work() = default;
  Work() = default;
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;

  // The pages to visit, in order. Empty ranges: no page is needed, Launch is not called.
  [[nodiscard]] virtual paging::RequestSpec Pages() const = 0;
  // Enqueues what must come before the first window; called right before its launch, so that a request which
  // is refused has touched nothing and left nothing on the device.
  virtual void Prepare(kernels::Device&) {}
  // Enqueues the work of one window. Windows come in order, each once.
  virtual kernels::Event Launch(kernels::Device& device, std::span<const ResidentPage> window) = 0;
  // All windows are done: fills values and, for an outcome that is not plain success, returns it.
  virtual wire::Status Finish(wire::CompletionRecord& completion) = 0;
  // What the work fills, all of it: a weight, and the start of its new content; null when it fills none.
  struct Filling {
    Extent* extent = nullptr;
    const WeightPiece* start = nullptr;
  };
  [[nodiscard]] virtual Filling Fills() const { return {}; }
  // The device failed in the middle: what was being written is not whole.
  virtual void Abandon() {}
  // True when a buffer that it uses was shrunk by its owner.
  [[nodiscard]] bool InputLost() const {
    for (const BufferRef& buffer : buffers_) {
      if (buffer->failed()) return true;
    }
    return false;
  }

 protected:
  void Hold(BufferRef buffer) {
    if (buffers_.empty() || buffers_.back() != buffer) buffers_.push_back(std::move(buffer));
  }

 private:
  std::vector<BufferRef> buffers_;
};

}  // namespace bitpager::daemon
