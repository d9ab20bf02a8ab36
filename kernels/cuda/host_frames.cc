#include "kernels/cuda/host_frames.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "kernels/cuda/status.h"

namespace bitpager::kernels::cuda {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

constexpr std::uint64_t kGrainBytes = 4096;
constexpr std::uint64_t kHugePageBytes = 2U << 20;

// Has the system give [at, at + bytes) its memory, on this thread alone: the driver takes memory that is
// there far sooner, and one thread at a time. On failure, or on Linux before 5.14, pinning does it.
void Populate(std::byte* at, std::uint64_t bytes) {
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
  static_cast<void>(madvise(at, bytes, MADV_POPULATE_WRITE));
}

// Process signals belong to the program's own threads; faults stay deliverable.
void BlockSignals() {
  sigset_t all;
  sigfillset(&all);
  for (const int fault : {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGPROF}) sigdelset(&all, fault);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
}

}  // namespace

HostFrames::HostFrames(const Driver& driver, Queues& queues, Options options)
    : driver_(driver), queues_(queues), options_(options) {}

HostFrames::~HostFrames() {
  Stop();
  for (std::thread& thread : threads_) thread.join();
  for (const auto& region : regions_) {
    for (Piece& piece : region->pieces) {
      if (piece.registered) static_cast<void>(driver_.MemHostUnregister(piece.base));
    }
    munmap(region->mapped, region->mapped_bytes);
  }
}

void HostFrames::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  changed_.notify_all();
}

Result<HostRegion> HostFrames::Reserve(std::uint64_t bytes) {
  if (bytes == 0) return Status(Code::kInvalidArgument, "a host region of zero bytes");
  auto region = std::make_unique<Region>();
  region->bytes = bytes;
  region->mapped_bytes = bytes + kHugePageBytes;  // a mapping need not begin where a huge page does
  region->mapped = mmap(nullptr, region->mapped_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (region->mapped == MAP_FAILED) {
    const int why = errno;
    return Status(Code::kOutOfMemory,
                  "no addresses for " + std::to_string(bytes) +
                      " bytes of host frames: " + std::strerror(why) +
                      ". Hint: a smaller host budget; with vm.overcommit_memory = 2 all of "
                      "it counts as committed at once");
  }
  const auto beyond = reinterpret_cast<std::uintptr_t>(region->mapped) % kHugePageBytes;
  region->base = static_cast<std::byte*>(region->mapped) + (kHugePageBytes - beyond) % kHugePageBytes;
  // A hint. With huge pages, pinning takes a fraction of the time.
  madvise(region->mapped, region->mapped_bytes, MADV_HUGEPAGE);
  madvise(region->mapped, region->mapped_bytes, MADV_DONTFORK);
  region->pieces = std::vector<Piece>((bytes + options_.piece_bytes - 1) / options_.piece_bytes);
  std::uint64_t at = 0;
  for (Piece& piece : region->pieces) {
    piece.base = region->base + at;
    piece.bytes = std::min(options_.piece_bytes, bytes - at);
    piece.used.resize((piece.bytes / kGrainBytes + 64) / 64);
    at += piece.bytes;
  }
  while (threads_.size() < options_.threads) threads_.emplace_back([this] { Run(); });
  AskAhead(*region);
  const HostRegion out{region->base, bytes};
  regions_.push_back(std::move(region));
  return out;
}

HostFrames::Region* HostFrames::RegionOf(const void* at) const {
  const auto* byte = static_cast<const std::byte*>(at);
  for (const auto& region : regions_) {
    if (byte >= region->base && byte < region->base + region->bytes) return region.get();
  }
  return nullptr;
}

// As much again as is in use, so that waits are few and nothing is pinned that a small job does not need.
void HostFrames::AskAhead(Region& region) {
  const std::uint64_t least = options_.ahead_bytes / options_.piece_bytes;
  const std::uint64_t want = std::min<std::uint64_t>(region.pieces.size(), 2 * region.touched + least);
  while (region.asked < want) Ask(region.pieces[region.asked++]);
}

void HostFrames::Ask(Piece& piece) {
  {
    const std::lock_guard lock(mutex_);
    if (!work_.Expect(piece)) return;
  }
  wake_.notify_one();
}

void HostFrames::AwaitPinned(Piece& piece) {
  const auto start = std::chrono::steady_clock::now();
  std::unique_lock lock(mutex_);
  while (!stop_ && !work_.Need(piece)) {
    wake_.notify_one();
    changed_.wait(lock);
  }
  ++waits_;
  waited_ns_ +=
      static_cast<std::uint64_t>(std::chrono::nanoseconds(std::chrono::steady_clock::now() - start).count());
}

void HostFrames::Mark(Piece& piece, std::uint64_t offset, std::uint64_t bytes, bool used) {
  // Given back: whole grains only. Used: every grain touched.
  const std::uint64_t first = used ? offset / kGrainBytes : (offset + kGrainBytes - 1) / kGrainBytes;
  std::uint64_t end =
      used ? (offset + bytes + kGrainBytes - 1) / kGrainBytes : (offset + bytes) / kGrainBytes;
  if (!used && offset + bytes == piece.bytes) end = (piece.bytes + kGrainBytes - 1) / kGrainBytes;
  for (std::uint64_t i = first; i < end;) {
    const std::uint64_t low = i % 64;
    const std::uint64_t count = std::min(64 - low, end - i);
    const std::uint64_t mask = (count == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1) << low;
    std::uint64_t& word = piece.used[i / 64];
    const auto before = static_cast<std::uint64_t>(std::popcount(word & mask));
    word = used ? word | mask : word & ~mask;
    piece.used_count += used ? count - before : 0 - before;
    i += count;
  }
}

std::uint64_t HostFrames::Prepare(const void* at, std::uint64_t bytes) {
  Region* const region = RegionOf(at);
  if (region == nullptr || bytes == 0) return bytes;
  const auto offset = static_cast<std::uint64_t>(static_cast<const std::byte*>(at) - region->base);
  const std::uint64_t index = offset / options_.piece_bytes;
  Piece& piece = region->pieces[index];
  const std::uint64_t inside = offset - index * options_.piece_bytes;
  const std::uint64_t take = std::min(bytes, piece.bytes - inside);
  Mark(piece, inside, take, true);
  if (index >= region->touched) {
    region->touched = index + 1;
    AskAhead(*region);
  }
  // Partner: PinQueue::Set. Only this thread takes a piece out of kPinned, and none that is to leave comes
  // there.
  if (piece.state.load(std::memory_order_acquire) != State::kPinned) {
    if (piece.state.load(std::memory_order_relaxed) != State::kFailed) AwaitPinned(piece);
    if (piece.state.load(std::memory_order_relaxed) == State::kFailed) ++unpinned_copies_;
  }
  return take;
}

void HostFrames::Expect(const std::byte* at, std::uint64_t bytes) {
  Region* const region = RegionOf(at);
  if (region == nullptr) return;
  auto offset = static_cast<std::uint64_t>(at - region->base);
  const std::uint64_t end = std::min(region->bytes, offset + bytes);
  while (offset < end) {
    const std::uint64_t index = offset / options_.piece_bytes;
    Piece& piece = region->pieces[index];
    const std::uint64_t inside = offset - index * options_.piece_bytes;
    const std::uint64_t take = std::min(end - offset, piece.bytes - inside);
    Mark(piece, inside, take, true);  // so that Decommit finds it in use
    Ask(piece);
    offset += take;
  }
}

void HostFrames::Decommit(const std::byte* at, std::uint64_t bytes) {
  Region* const region = RegionOf(at);
  if (region == nullptr) return;
  auto offset = static_cast<std::uint64_t>(at - region->base);
  const std::uint64_t end = std::min(region->bytes, offset + bytes);
  while (offset < end) {
    const std::uint64_t index = offset / options_.piece_bytes;
    Piece& piece = region->pieces[index];
    const std::uint64_t inside = offset - index * options_.piece_bytes;
    const std::uint64_t take = std::min(end - offset, piece.bytes - inside);
    const bool held_any = piece.used_count != 0;
    Mark(piece, inside, take, false);
    offset += take;
    if (!held_any || piece.used_count != 0) continue;
    {
      const std::lock_guard lock(mutex_);
      work_.GiveBack(piece, queues_.Newest());
    }
    wake_.notify_one();
    changed_.notify_all();  // what was not begun is not waited for any more
  }
}

void HostFrames::Pin(Piece& piece) {
  Populate(piece.base, piece.bytes);
  const CUresult result = driver_.MemHostRegister(piece.base, piece.bytes,
                                                  CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP);
  const std::lock_guard lock(mutex_);
  if (result == CUDA_SUCCESS) {
    pinned_bytes_ += piece.bytes;
  } else if (problem_.empty()) {
    problem_ = StatusOf(result, "pin " + std::to_string(piece.bytes) + " bytes of host frames").message() +
               ". Hint: a smaller host budget, or more room in the memory cgroup; copies go on unpinned";
  }
  work_.Pinned(piece, result == CUDA_SUCCESS);
}

void HostFrames::Unpin(Piece& piece) {
  if (piece.registered) static_cast<void>(driver_.MemHostUnregister(piece.base));
  madvise(piece.base, piece.bytes, MADV_DONTNEED);
  const std::lock_guard lock(mutex_);
  if (piece.registered) pinned_bytes_ -= piece.bytes;
  work_.Unpinned(piece);
}

void HostFrames::Run() {
  BlockSignals();
  pthread_setname_np(pthread_self(), "bp-pin");
  const Status bound = StatusOf(cudaSetDevice(options_.ordinal), "pin host frames on a thread of their own");
  std::unique_lock lock(mutex_);
  if (fault_.ok()) fault_ = bound;
  for (;;) {
    wake_.wait(lock, [this] { return stop_ || !work_.empty(); });
    if (stop_) return;
    PinQueue::Piece* const next = work_.Next([this](Event event) { return queues_.Done(event); });
    if (next == nullptr) {
      wake_.wait_for(lock, std::chrono::milliseconds(1));
      continue;
    }
    auto& piece = static_cast<Piece&>(*next);
    const bool pin = piece.state.load(std::memory_order_relaxed) == State::kPinning;
    ++busy_;
    lock.unlock();
    pin ? Pin(piece) : Unpin(piece);
    lock.lock();
    --busy_;
    changed_.notify_all();
  }
}

Status HostFrames::fault() const {
  const std::lock_guard lock(mutex_);
  return fault_;
}

HostFrames::Counts HostFrames::counts() const {
  const std::lock_guard lock(mutex_);
  return {pinned_bytes_, unpinned_copies_, waits_, waited_ns_, problem_};
}

void HostFrames::Settle() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return (stop_ || work_.empty()) && busy_ == 0; });
}

}  // namespace bitpager::kernels::cuda
