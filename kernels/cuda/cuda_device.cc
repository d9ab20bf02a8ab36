#include "kernels/cuda/cuda_device.h"

#include <cuda_runtime_api.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "client/wire/unique_fd.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device_scratch.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/host_frames.h"
#include "kernels/cuda/imports.h"
#include "kernels/cuda/list.h"
#include "kernels/cuda/queues.h"
#include "kernels/cuda/scratch.h"
#include "kernels/cuda/segments.h"
#include "kernels/cuda/shared_words.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/table_ring.h"

namespace bitpager::kernels::cuda {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

constexpr std::uint64_t kSegmentBytes = std::uint64_t{64} << 20;
// Resident windows in one launch: 8 GiB of pages of 512 KiB.
constexpr std::uint32_t kLaunchPages = 16384;

// CUDA keeps the current device per thread. The device thread of several devices switches; a call on the
// device that is current already costs one comparison.
Status BindTo(int ordinal) {
  thread_local int bound = -1;
  if (bound == ordinal) return {};
  Status s = StatusOf(cudaSetDevice(ordinal), "make the device the thread's own");
  if (s.ok()) bound = ordinal;
  return s;
}

struct Parts {
  const Driver* driver = nullptr;
  DeviceListing listing;
  DeviceOptions options;
  int multiprocessors = 0;
  int capability = 0;
  std::unique_ptr<Queues> queues;
  wire::UniqueFd silent;
};

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(Parts parts)
      : driver_(*parts.driver),
        listing_(std::move(parts.listing)),
        options_(std::move(parts.options)),
        ordinal_(listing_.index),
        multiprocessors_(parts.multiprocessors),
        capability_(parts.capability),
        silent_(std::move(parts.silent)),
        queues_(std::move(parts.queues)),
        segments_(driver_, *queues_,
                  {ordinal_, options_.managed, options_.managed_beyond_free, listing_.total_bytes}),
        host_(driver_, *queues_, HostOptions()),
        imports_(driver_, ordinal_),
        kernel_scratch_(ordinal_, queues_->stream(Queue::kCompute)),
        tables_(*queues_) {
    // The first request must not pay for pinning.
    if (options_.bare) return;
    scratch_.Free(scratch_.Allocate(1));
    queues_->Note(tables_.Prepare());
  }
  ~CudaDevice() override {
    Bind();
    for (const Event& event : queues_->Newest()) queues_->Synchronize(event);
  }

  [[nodiscard]] DeviceInfo Info() const override;
  [[nodiscard]] DeviceMemory Memory() const override;

  [[nodiscard]] Result<DeviceSegment> AllocateSegment(std::uint32_t frames, std::uint64_t page_bytes,
                                                      std::uint32_t domain) override {
    Bind();
    return segments_.Allocate(frames, page_bytes, domain);
  }
  void FreeSegment(std::uint32_t segment_id) override {
    Bind();
    segments_.Free(segment_id);
  }
  [[nodiscard]] Result<HostRegion> ReserveHost(std::uint64_t bytes) override { return host_.Reserve(bytes); }
  Event DecommitHost(std::byte* at, std::uint64_t bytes) override {
    Bind();
    host_.Decommit(at, bytes);
    return queues_->Publish(Queue::kStore);
  }
  void ExpectHost(std::byte* at, std::uint64_t bytes) override { host_.Expect(at, bytes); }
  [[nodiscard]] std::byte* AllocateScratch(std::uint64_t bytes) override {
    Bind();
    return scratch_.Allocate(bytes);
  }
  [[nodiscard]] std::byte* AllocateKernelScratch(std::uint64_t bytes) override {
    Bind();
    std::byte* const at = kernel_scratch_.Allocate(bytes);
    return at != nullptr ? at : scratch_.Allocate(bytes);
  }
  void FreeScratch(std::byte* at) override {
    Bind();
    if (!kernel_scratch_.Free(at)) scratch_.Free(at);
  }
  [[nodiscard]] Result<Import> ImportMemory(const ImportSource& source) override {
    Bind();
    return imports_.Open(source);
  }
  void ReleaseImport(std::uint64_t import_id) override {
    Bind();
    imports_.Release(import_id);
  }
  [[nodiscard]] bool ImportFailed(std::uint64_t import_id) const override {
    return imports_.Failed(import_id);
  }

  Event Copy(Queue queue, void* to, const void* from, std::uint64_t bytes) override;
  Event Fill(Queue queue, void* at, int byte, std::uint64_t bytes) override;
  Event Signal(Queue queue, std::atomic<std::uint64_t>* word, std::uint64_t value) override {
    Bind();
    queues_->Store(queue, word, value);  // partner: the client's acquire load, or its stream's wait
    const Event event = queues_->Publish(queue);
    words_.Wrote(word, event);
    return event;
  }
  [[nodiscard]] Status ShareWords(void* at, std::uint64_t bytes) override {
    Bind();
    Status s = StatusOf(
        driver_.MemHostRegister(at, bytes, CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP),
        "pin " + std::to_string(bytes) + " bytes of a session's shared memory");
    if (s.ok()) words_.Add(at, bytes);
    return s;
  }
  void UnshareWords(void* at) override {
    Bind();
    for (const Event& write : words_.Take(at)) queues_->Synchronize(write);
    queues_->Note(StatusOf(driver_.MemHostUnregister(at), "unpin a session's shared memory"));
  }
  void Wait(Queue queue, Event event) override {
    Bind();
    queues_->Wait(queue, event);
  }
  [[nodiscard]] bool Done(Event event) const override { return queues_->Done(event); }
  void Synchronize(Event event) override {
    Bind();
    queues_->Synchronize(event);
  }
  [[nodiscard]] int progress_fd() const override { return silent_.get(); }
  [[nodiscard]] Status TakeFault() override {
    Bind();
    queues_->Note(host_.fault());
    Status fault = queues_->TakeFault();
    if (!fault.ok()) host_.Stop();  // what it waits for is never done
    return fault;
  }

  void ExpectKernels() override {
    Bind();
    queues_->Note(LaunchNothing(queues_->stream(Queue::kCompute)));
  }

  Event Step(StepArgs args) override { return Launch(LaunchStep, args); }
  Event Dequantize(DequantizeArgs args) override { return Launch(LaunchDequantize, args); }
  Event BlockAbsmax(BlockAbsmaxArgs args) override { return Launch(LaunchBlockAbsmax, args); }
  Event NestAbsmax(NestAbsmaxArgs args) override { return Launch(LaunchNestAbsmax, args); }
  Event Quantize(QuantizeArgs args) override { return Launch(LaunchQuantize, args); }
  Event MovePacked(PackedArgs args) override { return Launch(LaunchMovePacked, args); }
  Event MoveStates(StatePlanesArgs args) override { return Launch(LaunchMoveStates, args); }

 private:
  [[nodiscard]] HostFrames::Options HostOptions() const {
    HostFrames::Options out;
    out.ordinal = ordinal_;
    return out;
  }

  // Every call that reaches the driver begins with it. What cannot be bound has failed.
  void Bind() const {
    if (Status s = BindTo(ordinal_); !s.ok()) queues_->Note(std::move(s));
  }

  // Before a copy or fill of `bytes` at `at`: how many of them one call may take.
  [[nodiscard]] std::uint64_t Prepare(const std::byte* at, std::uint64_t bytes) {
    return segments_.InOneCopy(at, host_.Prepare(at, bytes));
  }

  template <typename Args>
  Event Launch(Status (*launch)(LaunchContext&, const Args&), const Args& args) {
    Bind();
    LaunchContext context(queues_->stream(Queue::kCompute), multiprocessors_, capability_, tables_,
                          options_.shared_bytes);
    queues_->Note(launch(context, args));
    const Event event = queues_->Publish(Queue::kCompute);
    tables_.Seal(event);
    return event;
  }

  const Driver& driver_;
  const DeviceListing listing_;
  const DeviceOptions options_;
  const int ordinal_;
  const int multiprocessors_;
  const int capability_;
  const wire::UniqueFd silent_;  // never rung
  // Before whatever its streams use: the destructor waits for them, then the rest ends, queues_ last.
  const std::unique_ptr<Queues> queues_;
  Segments segments_;
  HostFrames host_;
  Imports imports_;
  ScratchPool scratch_;
  DeviceScratch kernel_scratch_;
  TableRing tables_;
  SharedWords words_;
};

DeviceInfo CudaDevice::Info() const {
  Bind();
  DeviceInfo info;
  info.kind = "cuda";
  info.name = listing_.name;
  info.uuid = listing_.uuid;
  info.total_bytes = listing_.total_bytes;
  const DeviceMemory memory = Memory();
  info.free_bytes = memory.free_bytes;
  info.pinned_host_bytes = memory.pinned_host_bytes;
  info.segment_bytes = kSegmentBytes;
  info.synchronous_clients = false;
  info.in_host_memory = false;
  info.pins_host = false;  // the driver pins by itself: RLIMIT_MEMLOCK does not count it
  info.launch_pages = kLaunchPages;
  info.rings_progress = false;
  info.imports_handles = true;
  info.exports = !options_.managed;
  info.simd = listing_.architecture;
  const HostFrames::Counts counts = host_.counts();
  info.unpinned_copies = counts.unpinned_copies;
  info.pinning_problem = counts.problem;
  return info;
}

DeviceMemory CudaDevice::Memory() const {
  Bind();
  DeviceMemory memory;
  memory.total_bytes = listing_.total_bytes;
  std::size_t free = 0;
  std::size_t total = 0;
  if (cudaMemGetInfo(&free, &total) == cudaSuccess) memory.free_bytes = free;
  memory.own_bytes = segments_.mapped_bytes() + kernel_scratch_.reserved_bytes();
  memory.pinned_host_bytes = host_.counts().pinned_bytes + scratch_.pinned_bytes();
  return memory;
}

Event CudaDevice::Copy(Queue queue, void* to, const void* from, std::uint64_t bytes) {
  Bind();
  auto* out = static_cast<std::byte*>(to);
  const auto* in = static_cast<const std::byte*>(from);
  while (bytes != 0) {
    const std::uint64_t take = std::min(Prepare(out, bytes), Prepare(in, bytes));
    queues_->Note(StatusOf(cudaMemcpyAsync(out, in, take, cudaMemcpyDefault, queues_->stream(queue)),
                           "copy " + std::to_string(take) + " bytes"));
    out += take;
    in += take;
    bytes -= take;
  }
  return queues_->Publish(queue);
}

Event CudaDevice::Fill(Queue queue, void* at, int byte, std::uint64_t bytes) {
  Bind();
  auto* out = static_cast<std::byte*>(at);
  while (bytes != 0) {
    const std::uint64_t take = Prepare(out, bytes);
    queues_->Note(StatusOf(cudaMemsetAsync(out, byte, take, queues_->stream(queue)),
                           "fill " + std::to_string(take) + " bytes"));
    out += take;
    bytes -= take;
  }
  return queues_->Publish(queue);
}

Status Begin(const Driver& driver, int ordinal, Parts* parts) {
  if (Status s = BindTo(ordinal); !s.ok()) return s;
  // Makes the context: the first call that needs one.
  if (Status s = StatusOf(cudaFree(nullptr), "start the device"); !s.ok()) return s;
  const Result<QueueOptions> options = FindQueueOptions(driver, ordinal);
  if (!options.ok()) return options.status();
  Result<std::unique_ptr<Queues>> queues = Queues::Make(driver, *options);
  if (!queues.ok()) return queues.status();
  parts->queues = std::move(*queues);
  Status s =
      StatusOf(cudaDeviceGetAttribute(&parts->multiprocessors, cudaDevAttrMultiProcessorCount, ordinal),
               "count multiprocessors");
  if (!s.ok()) return s;
  parts->silent.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!parts->silent) return {Code::kInternal, std::string("no eventfd: ") + std::strerror(errno)};
  return {};
}

}  // namespace

Result<std::unique_ptr<Device>> OpenCudaDevice(const DeviceOptions& options) {
  const Result<const Driver*> driver = LoadDriver();
  if (!driver.ok()) return Status(driver.status().code(), "cuda device: " + driver.status().message());
  const Result<int> ordinal = FindDevice(**driver, options.uuid, options.index);
  if (!ordinal.ok()) return ordinal.status();
  Parts parts;
  parts.driver = *driver;
  parts.listing = Describe(**driver, *ordinal);
  parts.options = options;
  if (Status s = CheckManaged(options.managed, parts.listing); !s.ok()) return s;
  parts.capability = CapabilityOf(**driver, *ordinal);
  if (Status s = Begin(**driver, *ordinal, &parts); !s.ok()) {
    return Status(s.code(), "cuda device " + parts.listing.uuid + ": " + s.message());
  }
  return std::unique_ptr<Device>(std::make_unique<CudaDevice>(std::move(parts)));
}

}  // namespace bitpager::kernels::cuda
