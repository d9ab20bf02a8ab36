#include "kernels/cpu/cpu_device.h"

#include <signal.h>
#include <sys/eventfd.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <utility>

#include "client/wire/unique_fd.h"
#include "kernels/cpu/cpu_memory.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/task_queue.h"
#include "kernels/cpu/worker_pool.h"
#include "kernels/local.h"
#include "kernels/simd/copy.h"

namespace bitpager::kernels::cpu {
namespace {

using wire::Code;
using wire::Status;

// While alive, threads started here inherit a mask that leaves process signals to the program's own threads;
// faults stay deliverable.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    for (const int fault : {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGPROF})
      sigdelset(&all, fault);
    pthread_sigmask(SIG_BLOCK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_{};
};

// More is no scratch.
constexpr std::uint64_t kMostScratchBytes = std::uint64_t{1} << 36;

std::uint64_t TotalBytes() {
  struct sysinfo system {};
  return sysinfo(&system) == 0 ? std::uint64_t{system.totalram} * system.mem_unit : 0;
}

// Bytes of /proc/meminfo's MemAvailable; 0 when unreadable.
std::uint64_t AvailableBytes() {
  unsigned long long kib = 0;
  if (std::FILE* file = std::fopen("/proc/meminfo", "re"); file != nullptr) {
    char line[128];
    while (std::fgets(line, sizeof(line), file) != nullptr) {
      if (std::sscanf(line, "MemAvailable: %llu kB", &kib) == 1) break;
    }
    std::fclose(file);
  }
  return kib * 1024;
}

std::string ProcessorName() {
  std::string name = "CPU";
  if (std::FILE* file = std::fopen("/proc/cpuinfo", "re"); file != nullptr) {
    char line[256];
    while (std::fgets(line, sizeof(line), file) != nullptr) {
      if (std::strncmp(line, "model name", 10) != 0) continue;
      const char* colon = std::strchr(line, ':');
      if (colon != nullptr) name.assign(colon + 2, std::strcspn(colon + 2, "\n"));
      break;
    }
    std::fclose(file);
  }
  return name;
}

class CpuDevice final : public Device {
 public:
  CpuDevice(int threads, int progress_fd)
      : progress_(progress_fd),
        pool_(threads),
        queues_{TaskQueue("bp-load", progress_fd), TaskQueue("bp-store", progress_fd),
                TaskQueue("bp-compute", progress_fd)} {}
  ~CpuDevice() override {
    // Waits between queues only point at work that was pushed before them, so all of it ends.
    for (int q = 0; q < kQueues; ++q) queues_[q].Await(queues_[q].pushed());
  }

  [[nodiscard]] DeviceInfo Info() const override {
    DeviceInfo info;
    info.kind = "cpu";
    info.name = ProcessorName();
    info.uuid = "cpu-0";
    info.total_bytes = TotalBytes();
    info.free_bytes = AvailableBytes();
    info.synchronous_clients = true;
    info.simd = simd::InstructionSet();
    return info;
  }
  [[nodiscard]] DeviceMemory Memory() const override {
    return {TotalBytes(), AvailableBytes(), memory_.segment_bytes(), 0};
  }

  [[nodiscard]] wire::Result<DeviceSegment> AllocateSegment(std::uint32_t frames, std::uint64_t page_bytes,
                                                            std::uint32_t domain) override {
    return memory_.AllocateSegment(frames, page_bytes, domain);
  }
  void FreeSegment(std::uint32_t segment_id) override { memory_.FreeSegment(segment_id); }
  [[nodiscard]] wire::Result<HostRegion> ReserveHost(std::uint64_t bytes) override {
    return memory_.ReserveHost(bytes);
  }
  Event DecommitHost(std::byte* at, std::uint64_t bytes) override {
    return Push(Queue::kStore, [at, bytes] { CpuMemory::DecommitHost(at, bytes); });
  }
  [[nodiscard]] std::byte* AllocateScratch(std::uint64_t bytes) override {
    if (bytes > kMostScratchBytes) return nullptr;
    return static_cast<std::byte*>(std::calloc(bytes == 0 ? 1 : bytes, 1));
  }
  void FreeScratch(std::byte* at) override { std::free(at); }
  [[nodiscard]] wire::Result<Import> ImportMemory(const ImportSource& source) override {
    return memory_.ImportMemory(source);
  }
  void ReleaseImport(std::uint64_t import_id) override { memory_.ReleaseImport(import_id); }
  [[nodiscard]] bool ImportFailed(std::uint64_t import_id) const override {
    return memory_.ImportFailed(import_id);
  }

  Event Copy(Queue queue, void* to, const void* from, std::uint64_t bytes) override {
    if (queue == Queue::kCompute) {
      return Push(queue, [this, to, from, bytes] { RunCopy(pool_, to, from, bytes); });
    }
    return Push(queue, [to, from, bytes] { simd::BulkCopy(to, from, bytes); });
  }
  Event Fill(Queue queue, void* at, int byte, std::uint64_t bytes) override {
    return Push(queue, [at, byte, bytes] { std::memset(at, byte, bytes); });
  }
  Event Signal(Queue queue, std::atomic<std::uint64_t>* word, std::uint64_t value) override {
    // Partner: the client's acquire load of its timeline word.
    return Push(queue, [word, value] { word->store(value, std::memory_order_release); });
  }
  // Shared memory needs no preparation here.
  [[nodiscard]] wire::Status ShareWords(void* /*at*/, std::uint64_t /*bytes*/) override { return {}; }
  void UnshareWords(void* /*at*/) override {}
  void Wait(Queue queue, Event event) override {
    // Only what was enqueued before can be waited for: so no cycle of waits exists.
    if (event.sequence > At(event.queue).pushed()) std::abort();
    if (queue == event.queue || Done(event)) return;
    Push(queue, [other = &At(event.queue), sequence = event.sequence] { other->Await(sequence); });
  }
  [[nodiscard]] bool Done(Event event) const override { return At(event.queue).Done(event.sequence); }
  void Synchronize(Event event) override { At(event.queue).Await(event.sequence); }
  [[nodiscard]] int progress_fd() const override { return progress_.get(); }
  [[nodiscard]] wire::Status TakeFault() override {
    const std::lock_guard lock(fault_mutex_);
    return fault_;
  }

  Event Step(StepArgs args) override {
    return PushOp(std::move(args), [this](const StepArgs& a) { RunStep(pool_, a); });
  }
  Event Dequantize(DequantizeArgs args) override {
    return PushOp(std::move(args), [this](const DequantizeArgs& a) { RunDequantize(pool_, a); });
  }
  Event BlockAbsmax(BlockAbsmaxArgs args) override {
    return PushOp(args, [this](const BlockAbsmaxArgs& a) { RunBlockAbsmax(pool_, a); });
  }
  Event NestAbsmax(NestAbsmaxArgs args) override {
    return PushOp(args, [this](const NestAbsmaxArgs& a) { RunNestAbsmax(pool_, a); });
  }
  Event Quantize(QuantizeArgs args) override {
    return PushOp(std::move(args), [this](const QuantizeArgs& a) { RunQuantize(pool_, a); });
  }
  Event MovePacked(PackedArgs args) override {
    return PushOp(std::move(args), [this](const PackedArgs& a) { RunMovePacked(pool_, a); });
  }
  Event MoveStates(StatePlanesArgs args) override {
    return PushOp(std::move(args), [this](const StatePlanesArgs& a) { RunMoveStates(pool_, a); });
  }

 private:
  TaskQueue& At(Queue queue) { return queues_[static_cast<std::size_t>(queue)]; }
  [[nodiscard]] const TaskQueue& At(Queue queue) const { return queues_[static_cast<std::size_t>(queue)]; }

  Event Push(Queue queue, std::function<void()> work) { return {queue, At(queue).Push(std::move(work))}; }

  template <typename Args, typename Body>
  Event PushOp(Args args, Body body) {
    return Push(Queue::kCompute, [this, args = std::move(args), body] {
      try {
        body(args);
      } catch (const std::exception& e) {  // the system ran out of memory inside the op
        Fault(Status(Code::kDeviceFault, std::string("an op failed: ") + e.what()));
      }
    });
  }

  void Fault(Status status) {
    const std::lock_guard lock(fault_mutex_);
    if (fault_.ok()) fault_ = std::move(status);
  }

  const wire::UniqueFd progress_;  // first: the queues' threads ring it until they have ended
  CpuMemory memory_;
  std::mutex fault_mutex_;
  Status fault_;  // sticky: guarded by fault_mutex_
  WorkerPool pool_;
  std::array<TaskQueue, kQueues> queues_;  // last: their threads use everything above
};

}  // namespace

wire::Result<std::unique_ptr<Device>> OpenCpuDevice(int threads) {
  if (threads < 0 || threads > 1024) {
    return Status(Code::kInvalidArgument, "cpu device: " + std::to_string(threads) +
                                              " threads; give 1 to 1024, or 0 for the processors available");
  }
  const int progress = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (progress < 0) {
    return Status(Code::kInternal, std::string("cpu device: no eventfd: ") + std::strerror(errno));
  }
  const SignalsBlocked blocked;
  return std::unique_ptr<Device>(
      std::make_unique<CpuDevice>(threads == 0 ? UsableProcessors() : threads, progress));
}

}  // namespace bitpager::kernels::cpu
