#include "tests/client/fake_cuda.h"

#include <fcntl.h>

#include <chrono>
#include <cstdlib>

namespace bitpager::testing {
namespace {

using client::DeviceAddress;
using client::DeviceAllocation;
using client::StreamHandle;
using wire::Code;
using wire::Result;
using wire::Status;

constexpr DeviceAddress kHostSkew = 0x7000'0000'0000'0000;
constexpr DeviceAddress kSharedStride = 0x100'0000'0000;

}  // namespace

FakeCuda::FakeCuda() : thread_([this] { Run(); }) {}

FakeCuda::~FakeCuda() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  thread_.join();
}

void FakeCuda::Run() {
  for (;;) {
    {
      const std::lock_guard lock(mutex_);
      if (stop_) return;
      for (auto& [stream, queue] : streams_) {
        while (!faulted && !queue.empty() && queue.front()()) queue.pop_front();
      }
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

void FakeCuda::Enqueue(StreamHandle stream, Work work) {
  const std::lock_guard lock(mutex_);
  streams_[stream].push_back(std::move(work));
}

void FakeCuda::Allocate(DeviceAddress base, std::uint64_t bytes, int ordinal) {
  const std::lock_guard lock(mutex_);
  memory_[base] = {{base, bytes, ordinal, ++last_id_, true, false}, false};
}

void FakeCuda::Map(DeviceAddress base, std::uint64_t piece_bytes, std::size_t count, bool exportable) {
  const std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < count; ++i) {
    const DeviceAddress at = base + i * piece_bytes;
    memory_[at] = {{at, piece_bytes, 0, ++last_id_, false, false}, exportable};
  }
}

void FakeCuda::AllocateFromPool(DeviceAddress base, std::uint64_t bytes) {
  Map(base, bytes, 1, false);
}

void FakeCuda::Free(DeviceAddress base) {
  const std::lock_guard lock(mutex_);
  memory_.erase(base);
}

void FakeCuda::Launch(StreamHandle stream, const std::atomic<bool>& gate) {
  Enqueue(stream, [&gate] { return gate.load(); });
}

bool FakeCuda::Drained(StreamHandle stream, int limit_ms) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(limit_ms);
  for (;;) {
    {
      const std::lock_guard lock(mutex_);
      if (streams_[stream].empty()) return true;
    }
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
}

bool FakeCuda::registered() {
  const std::lock_guard lock(mutex_);
  return host_ != nullptr;
}

void FakeCuda::ForgetContexts() {
  const std::lock_guard lock(mutex_);
  contexts_.emplace();
}

Result<int> FakeCuda::CurrentDevice() {
  const std::lock_guard lock(mutex_);
  if (!contexts_) return current.load();
  const auto found = contexts_->find(std::this_thread::get_id());
  if (found == contexts_->end()) return Status(Code::kInvalidArgument, "no current context");
  return found->second;
}

Status FakeCuda::UsePrimaryContext(int ordinal) {
  const std::lock_guard lock(mutex_);
  if (contexts_) (*contexts_)[std::this_thread::get_id()] = ordinal;
  return {};
}

Status FakeCuda::NeedContext() {
  const std::lock_guard lock(mutex_);
  if (!contexts_ || contexts_->count(std::this_thread::get_id()) != 0) return {};
  return {Code::kDeviceFault, "CUDA_ERROR_INVALID_CONTEXT"};
}

Result<bool> FakeCuda::IsCapturing(StreamHandle) {
  if (Status has = NeedContext(); !has.ok()) return has;
  return capturing.load();
}

const FakeCuda::Memory* FakeCuda::At(DeviceAddress at) const {
  auto after = memory_.upper_bound(at);
  if (after == memory_.begin()) return nullptr;
  const Memory& memory = std::prev(after)->second;
  return at - memory.allocation.base < memory.allocation.bytes ? &memory : nullptr;
}

Result<DeviceAllocation> FakeCuda::Describe(DeviceAddress at) {
  const std::lock_guard lock(mutex_);
  const Memory* memory = At(at);
  if (memory == nullptr) return Status(Code::kInvalidArgument, "no memory of a GPU lies at the address");
  return memory->allocation;
}

std::uint64_t FakeCuda::AllocationId(DeviceAddress at, bool) {
  ++identity_looks;
  const std::lock_guard lock(mutex_);
  const Memory* memory = At(at);
  return memory == nullptr ? 0 : memory->allocation.id;
}

Result<client::CudaDriver::IpcHandle> FakeCuda::GetIpcHandle(DeviceAddress base) {
  IpcHandle handle{};
  for (std::size_t i = 0; i < 8; ++i) handle[i] = static_cast<unsigned char>(base >> (8 * i));
  return handle;
}

Result<wire::UniqueFd> FakeCuda::ExportMapped(DeviceAddress at) {
  const std::lock_guard lock(mutex_);
  const Memory* memory = At(at);
  if (memory == nullptr) return Status(Code::kNotFound, "no physical memory is mapped at the address");
  if (!memory->exportable) return Status(Code::kUnsupported, "made without the right to share it");
  return wire::UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
}

Result<client::DeviceRange> FakeCuda::MapShared(int, std::uint64_t bytes, int) {
  ++shared_maps;
  const std::lock_guard lock(mutex_);
  next_shared_ += kSharedStride;
  return client::DeviceRange{next_shared_, bytes};
}

void FakeCuda::UnmapShared(const client::DeviceRange&) {
  --shared_maps;
}

Result<DeviceAddress> FakeCuda::RegisterHost(void* at, std::uint64_t bytes) {
  if (Status has = NeedContext(); !has.ok()) return has;
  const std::lock_guard lock(mutex_);
  host_ = at;
  host_bytes_ = bytes;
  return reinterpret_cast<DeviceAddress>(at) + kHostSkew;
}

void FakeCuda::UnregisterHost(void* at) {
  std::vector<StreamHandle> streams;
  {
    const std::lock_guard lock(mutex_);
    if (faulted) streams_.clear();  // there is nothing to wait for
    for (const auto& [stream, queue] : streams_) streams.push_back(stream);
  }
  for (StreamHandle stream : streams) {
    if (!Drained(stream, 10'000)) std::abort();
  }
  const std::lock_guard lock(mutex_);
  if (at != host_) std::abort();
  host_ = nullptr;
}

std::atomic<std::uint64_t>* FakeCuda::Word(DeviceAddress word) {
  const std::lock_guard lock(mutex_);
  const auto base = reinterpret_cast<DeviceAddress>(host_) + kHostSkew;
  if (host_ == nullptr || word < base || word - base > host_bytes_ - 8) std::abort();
  return reinterpret_cast<std::atomic<std::uint64_t>*>(word - kHostSkew);
}

Status FakeCuda::WriteWord(StreamHandle stream, DeviceAddress word, std::uint64_t value) {
  if (Status has = NeedContext(); !has.ok()) return has;
  ++enqueued;
  Enqueue(stream, [at = Word(word), value] {
    at->store(value, std::memory_order_release);
    return true;
  });
  return {};
}

Status FakeCuda::WaitWord(StreamHandle stream, DeviceAddress word, std::uint64_t value) {
  if (Status has = NeedContext(); !has.ok()) return has;
  if (refuse_waits) return {Code::kDeviceFault, "the context is broken"};
  ++enqueued;
  Enqueue(stream, [at = Word(word), value] {
    // As the hardware compares: the signed difference.
    return static_cast<std::int64_t>(at->load(std::memory_order_acquire) - value) >= 0;
  });
  return {};
}

bool FakeCuda::IsIdle(StreamHandle stream) {
  return NeedContext().ok() && Drained(stream, 0);
}

Status FakeCuda::ContextFault(const void* host) {
  ++fault_looks;
  if (host != host_) return {};
  return faulted ? Status(Code::kDeviceFault, "the context has failed") : Status();
}

Status FakeCuda::Synchronize(StreamHandle stream) {
  if (Status has = NeedContext(); !has.ok()) return has;
  ++synchronized;
  return Drained(stream, 10'000) ? Status() : Status(Code::kDeviceFault, "the stream hangs");
}

}  // namespace bitpager::testing
