#include "kernels/cuda/table_ring.h"

#include <algorithm>
#include <cstring>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/table_copy.h"

namespace bitpager::kernels::cuda {
namespace {

using wire::Status;

// Room for tables of more pages than most devices hold: no later request has to find memory.
constexpr std::size_t kFirstBytes = std::size_t{4} << 20;
// From here on a full ring waits for the oldest launch instead of growing.
constexpr std::size_t kEnoughBytes = std::size_t{64} << 20;
// Smaller tables are copied sooner than two streams are put in order.
constexpr std::size_t kLargeBytes = std::size_t{16} << 10;

std::size_t AlignUp(std::size_t at, std::size_t align) {
  return (at + align - 1) & ~(align - 1);
}

}  // namespace

TableRing::~TableRing() {
  for (const Ring& ring : retired_) Free(ring);
  Free(ring_);
  if (copied_ != nullptr) static_cast<void>(cudaEventDestroy(copied_));
  if (beside_ != nullptr) static_cast<void>(cudaStreamDestroy(beside_));
}

void TableRing::Free(const Ring& ring) {
  if (ring.device != nullptr) static_cast<void>(cudaFree(ring.device));
  if (ring.host != nullptr) static_cast<void>(cudaFreeHost(ring.host));
}

void TableRing::Reclaim() {
  while (!marks_.empty() && queues_.Done(marks_.front().event)) {
    tail_ = marks_.front().end;
    marks_.pop_front();
  }
  if (marks_.empty() && !open_) head_ = tail_ = 0;
}

// One byte stays free, so that a full ring is not an empty one.
std::size_t TableRing::Place(std::size_t bytes, std::size_t align) const {
  const std::size_t at = AlignUp(head_, align);
  if (head_ >= tail_) {
    if (at < ring_.bytes && bytes <= ring_.bytes - at) return at;
    return bytes < tail_ ? 0 : ring_.bytes;
  }
  return at + bytes < tail_ ? at : ring_.bytes;
}

Status TableRing::Grow(std::size_t least) {
  Ring fresh;
  fresh.bytes = std::max(kFirstBytes, ring_.bytes * 2);
  while (fresh.bytes < least) fresh.bytes *= 2;
  void* host = nullptr;
  void* device = nullptr;
  Status s =
      StatusOf(cudaHostAlloc(&host, fresh.bytes, cudaHostAllocDefault), "pin memory for launch tables");
  if (s.ok()) s = StatusOf(cudaMalloc(&device, fresh.bytes), "allocate memory for launch tables");
  fresh.host = static_cast<std::byte*>(host);
  fresh.device = static_cast<std::byte*>(device);
  if (!s.ok()) {
    Free(fresh);
    return s;
  }
  if (ring_.bytes != 0) retired_.push_back(ring_);
  ring_ = fresh;
  marks_.clear();  // they speak of the ring that retired
  head_ = tail_ = 0;
  return {};
}

Status TableRing::MakeRoom(std::size_t bytes) {
  const std::size_t room = bytes + 1;
  if (ring_.bytes < kEnoughBytes || room > ring_.bytes || marks_.empty()) {
    Status grown = Grow(room);
    if (grown.code() != wire::Code::kOutOfMemory || room > ring_.bytes || marks_.empty()) return grown;
    static_cast<void>(cudaGetLastError());  // handled here: no later launch is to find it
  }
  queues_.Synchronize(marks_.front().event);
  if (Status s = queues_.TakeFault(); !s.ok()) return s;
  Reclaim();
  return {};
}

Status TableRing::Prepare() {
  if (Status s = Grow(0); !s.ok()) return s;
  int least = 0;
  int greatest = 0;
  Status s = StatusOf(cudaDeviceGetStreamPriorityRange(&least, &greatest), "ask for stream priorities");
  if (s.ok()) {
    s = StatusOf(cudaStreamCreateWithPriority(&beside_, cudaStreamNonBlocking, greatest),
                 "make a stream for launch tables");
  }
  if (s.ok()) {
    s = StatusOf(cudaEventCreateWithFlags(&copied_, cudaEventDisableTiming),
                 "make an event of launch tables");
  }
  return s;
}

// The place's readers before are done, so the copy need not come behind any launch.
Status TableRing::Copy(std::size_t at, std::size_t bytes) {
  const cudaStream_t compute = queues_.stream(Queue::kCompute);
  const bool waits = !marks_.empty();  // for launches that are not done
  if (!waits || bytes < kLargeBytes || copied_ == nullptr)
    return CopyTable(ring_.device + at, ring_.host + at, bytes, compute);
  Status s = CopyTable(ring_.device + at, ring_.host + at, bytes, beside_);
  if (s.ok()) s = StatusOf(cudaEventRecord(copied_, beside_), "record the copy of a launch table");
  if (s.ok()) s = StatusOf(cudaStreamWaitEvent(compute, copied_), "wait for the copy of a launch table");
  return s;
}

wire::Result<const void*> TableRing::Put(const void* host, std::size_t bytes, std::size_t align) {
  Reclaim();
  align = std::max(align, kTableGranule);
  const std::size_t whole = AlignUp(bytes, kTableGranule);
  std::size_t at = Place(whole, align);
  while (at == ring_.bytes) {
    if (Status s = MakeRoom(whole); !s.ok()) return s;
    at = Place(whole, align);
  }
  std::memcpy(ring_.host + at, host, bytes);
  Status copied = Copy(at, whole);
  if (!copied.ok()) return copied;
  head_ = at + whole;
  open_ = true;
  return static_cast<const void*>(ring_.device + at);
}

void TableRing::Seal(Event event) {
  if (!open_) return;
  open_ = false;
  marks_.push_back({head_, event});
}

wire::Result<const void*> LaunchContext::Upload(const void* host, std::size_t bytes, std::size_t align) {
  return tables_.Put(host, bytes, align);
}

}  // namespace bitpager::kernels::cuda
