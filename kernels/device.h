// A device: its memory, its copy and compute queues, its events, and the ops. The only interface through
// which the daemon touches memory of pages or of clients. Opened in one place (OpenDevice); nothing above
// this folder asks which kind it got. One thread, the device thread, makes all calls of one Device; the ops
// only enqueue and complete asynchronously, on the CPU device too.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/wire/status.h"
#include "kernels/ops.h"

namespace bitpager::kernels {

enum class Queue : std::uint8_t { kLoad = 0, kStore = 1, kCompute = 2 };  // host to device, back, kernels
inline constexpr int kQueues = 3;

// A point in a queue. Zero is complete from the start. Points of one queue complete in order.
struct Event {
  Queue queue = Queue::kCompute;
  std::uint64_t sequence = 0;
};

struct DeviceInfo {
  std::string kind;  // "cpu", "cuda"
  std::string name;  // for people
  std::string uuid;  // label of every figure; "cpu-0" for the CPU
  std::uint64_t total_bytes = 0;
  std::uint64_t free_bytes = 0;     // available to this process now
  std::uint64_t segment_bytes = 0;  // device frames come and go in runs of so many bytes; 0: one by one
  bool synchronous_clients = true;  // step() waits on the CPU; false where streams wait on the timeline
  bool in_host_memory = true;       // device frames are host memory: both budgets share one room
  bool pins_host = false;           // host frames are locked in memory that RLIMIT_MEMLOCK counts
  std::uint32_t launch_pages =
      0;                       // resident windows are launched together up to so many pages; 0: each alone
  bool rings_progress = true;  // false: progress_fd stays silent, whoever waits must poll Done
  bool imports_handles =
      false;            // clients lend memory by handle, which may end with them (daemon/ipc_self_test.h)
  bool exports = true;  // segments of a share domain have an fd; false: weights by request only
  std::string simd;     // instruction set of the CPU kernels, or "sm_90" and the like
  // Host memory that is locked now: frames and scratch. Copies whose frames could not be locked, and why the
  // first one could not; empty when all could.
  std::uint64_t pinned_host_bytes = 0;
  std::uint64_t unpinned_copies = 0;
  std::string pinning_problem;
};

// Memory as the driver, or the system, tells it now, and what of it this device holds.
struct DeviceMemory {
  std::uint64_t total_bytes = 0;
  std::uint64_t free_bytes = 0;         // for whoever asks first
  std::uint64_t own_bytes = 0;          // of segments, rounded up as they are mapped, and of kernels' scratch
  std::uint64_t pinned_host_bytes = 0;  // locked host memory: frames and scratch
};

// A run of `frames` page slots of device memory. `fd` (owned by the device) and `fd_offset` are set for
// segments of a share domain: clients map that range to read leased weights in place. Several segments of one
// domain may lie in one fd (the CPU device: one sparse memfd a domain, holes punched when a segment is freed;
// CUDA: one fd a segment, offset 0). -1 for private segments.
struct DeviceSegment {
  std::uint32_t id = 0;
  std::byte* base = nullptr;
  std::uint32_t frames = 0;
  int fd = -1;
  std::uint64_t fd_offset = 0;
};

// Host memory for frames: one contiguous region, reserved at once and committed frame by frame. Pinned where
// the device asks for it.
struct HostRegion {
  std::byte* base = nullptr;
  std::uint64_t bytes = 0;
};

// A client's memory, mapped here.
struct Import {
  std::byte* base = nullptr;
  std::uint64_t bytes = 0;
  std::uint64_t id = 0;
};

// What kind of memory a client offers; the values of wire::BufferKind.
using MemoryKind = wire::BufferKind;

struct ImportSource {
  int fd = -1;              // kFile: memfd or shm_open file, duplicated by the device if it keeps it
  std::uint64_t bytes = 0;  // expected size; checked against the file or the allocation
  bool sealed = false;      // kFile. true: SHRINK sealed, no guard is needed
  bool writable = true;
  MemoryKind kind = MemoryKind::kFile;
  std::array<std::byte, wire::kIpcHandleBytes> handle{};  // kDeviceIpc: of the base of the allocation
  std::span<const int> fds = {};   // kDeviceVmm: the physical handles that make up the range, in order
  std::uint64_t handle_bytes = 0;  // kDeviceVmm: size of each of them
};

class Device {
 public:
  virtual ~Device() = default;
  Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  [[nodiscard]] virtual DeviceInfo Info() const = 0;
  // Cheaper than Info: for whoever looks often.
  [[nodiscard]] virtual DeviceMemory Memory() const = 0;

  // ---- memory ----
  // A segment of frames of `page_bytes`. `domain` 0 is private; segments of any other share domain are
  // exported. kOutOfMemory with the bytes.
  [[nodiscard]] virtual wire::Result<DeviceSegment> AllocateSegment(std::uint32_t frames,
                                                                    std::uint64_t page_bytes,
                                                                    std::uint32_t domain) = 0;
  virtual void FreeSegment(std::uint32_t segment_id) = 0;
  [[nodiscard]] virtual wire::Result<HostRegion> ReserveHost(std::uint64_t bytes) = 0;
  // Gives the physical memory of a host range back to the system, behind what Queue::kStore holds; its
  // content is lost. Where host frames are pinned, memory goes back in pieces of 256 MiB, each once nothing
  // in it is used: a page cannot leave alone while its piece is pinned, and pinning a piece anew costs
  // milliseconds. What stays is reused by later frames.
  virtual Event DecommitHost(std::byte* at, std::uint64_t bytes) = 0;
  // Frames of this host range are committed: a device that pins may begin to, in the background.
  virtual void ExpectHost(std::byte* at, std::uint64_t bytes) {
    static_cast<void>(at);
    static_cast<void>(bytes);
  }

  // Memory that both the device and this process read and write, zeroed: reports, copies out of pages. Null
  // when there is none left.
  [[nodiscard]] virtual std::byte* AllocateScratch(std::uint64_t bytes) = 0;
  // Kernels come in a moment: what takes time before the first of them can begin is to happen now. Where
  // processes take turns on the device, it is this one's turn afterwards.
  virtual void ExpectKernels() {}

  // For kernels on Queue::kCompute alone, not zeroed: statistics of a weight that is being quantized. Device
  // memory while there is some, else AllocateScratch's: slower, the same numbers.
  [[nodiscard]] virtual std::byte* AllocateKernelScratch(std::uint64_t bytes) {
    return AllocateScratch(bytes);
  }
  // Of both kinds. Null is fine.
  virtual void FreeScratch(std::byte* at) = 0;

  // Maps a client's memory. Errors: kInvalidArgument (not a memory file, a handle that does not open),
  // kOutOfRange (shorter than said), kUnsupported (a kind of memory that this device does not reach).
  [[nodiscard]] virtual wire::Result<Import> ImportMemory(const ImportSource& source) = 0;
  virtual void ReleaseImport(std::uint64_t import_id) = 0;
  // True once a guarded import was found shrunk under us: its owner's session must be failed.
  [[nodiscard]] virtual bool ImportFailed(std::uint64_t import_id) const = 0;

  // ---- queues ----
  virtual Event Copy(Queue queue, void* to, const void* from, std::uint64_t bytes) = 0;
  virtual Event Fill(Queue queue, void* at, int byte, std::uint64_t bytes) = 0;
  // Stores `value` (release) into a word of a session's shared segment, behind what `queue` holds. The
  // segment was announced by ShareWords, which pins it where the device asks for it.
  virtual Event Signal(Queue queue, std::atomic<std::uint64_t>* word, std::uint64_t value) = 0;
  [[nodiscard]] virtual wire::Status ShareWords(void* at, std::uint64_t bytes) = 0;
  virtual void UnshareWords(void* at) = 0;
  // Work enqueued on `queue` from now on starts after `event`.
  virtual void Wait(Queue queue, Event event) = 0;
  [[nodiscard]] virtual bool Done(Event event) const = 0;
  // Blocks until `event` is complete. For shutdown and tests; the daemon's loop never calls it.
  virtual void Synchronize(Event event) = 0;
  // An eventfd that becomes readable after any queue's progress since it was last read (DeviceInfo::
  // rings_progress).
  [[nodiscard]] virtual int progress_fd() const = 0;
  // First error of any finished op since the last call; Ok when none. A fault is sticky.
  [[nodiscard]] virtual wire::Status TakeFault() = 0;

  // ---- ops, all on Queue::kCompute ----
  virtual Event Step(StepArgs args) = 0;
  virtual Event Dequantize(DequantizeArgs args) = 0;
  virtual Event BlockAbsmax(BlockAbsmaxArgs args) = 0;
  virtual Event NestAbsmax(NestAbsmaxArgs args) = 0;
  virtual Event Quantize(QuantizeArgs args) = 0;
  virtual Event MovePacked(PackedArgs args) = 0;
  virtual Event MoveStates(StatePlanesArgs args) = 0;
};

struct DeviceOptions {
  std::string kind = "cpu";
  int index = 0;
  int threads = 0;                   // CPU device: compute threads; 0 = the processors this process may use
  std::string uuid = {};             // CUDA: "GPU-..." names the device, whatever its index; empty: `index`
  bool managed = false;              // CUDA: device frames are managed memory, for machines that like it
  bool managed_beyond_free = false;  // CUDA, managed: more than the device has free may be allocated
  bool bare = false;                 // CUDA: nothing is made ahead of its first use
  // CUDA, for tests: steps do with so much shared memory of a thread block, as other GPUs' have to; 0: all.
  int shared_bytes = 0;
};

// A device that this machine has, or why it cannot be used.
struct DeviceListing {
  std::string kind;
  int index = 0;
  std::string name;
  std::string uuid;
  std::uint64_t total_bytes = 0;
  std::string architecture;          // "sm_90"; empty on the CPU
  std::string driver;                // of the driver, "13.0"; empty on the CPU
  std::string problem;               // empty: usable
  std::string managed_problem = {};  // why its frames cannot be managed memory; empty where they can
};

// kUnsupported when frames are to be managed memory and cannot be: before the device is opened, and when it
// is.
[[nodiscard]] inline wire::Status CheckManaged(bool managed, const DeviceListing& listing) {
  if (!managed || listing.managed_problem.empty()) return {};
  return {wire::Code::kUnsupported, listing.kind + " device " + listing.uuid + " (" + listing.name +
                                        "): no managed frames: " + listing.managed_problem +
                                        ". Hint: memory.frames = \"explicit\", or --frames explicit"};
}

// The one place that opens a device.
[[nodiscard]] wire::Result<std::unique_ptr<Device>> OpenDevice(const DeviceOptions& options);
// Every device of this machine, the CPU first. `why_no_cuda` says why no GPU is listed: no driver, one below
// the floor, no device, or a build without CUDA; empty when one is usable.
[[nodiscard]] std::vector<DeviceListing> ListDevices(std::string* why_no_cuda = nullptr);

}  // namespace bitpager::kernels
