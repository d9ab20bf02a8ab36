#include "kernels/cuda/host_frames.h"

#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

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

Status NoMemory(std::uint64_t bytes, const char* what) {
  return {Code::kOutOfMemory, "no " + std::string(what) + " for " + std::to_string(bytes) +
                                  " bytes of host frames: " + std::strerror(errno)};
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
    : driver_(driver), queues_(queues), options_(options) {
  for (unsigned i = 0; i < options_.threads; ++i) threads_.emplace_back([this] { Run(); });
}

HostFrames::~HostFrames() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  for (const auto& region : regions_) {
    for (Piece& piece : region->pieces) {
      if (piece.registered) static_cast<void>(driver_.MemHostUnregister(piece.base));
    }
    munmap(region->base, region->bytes);
  }
}

Result<HostRegion> HostFrames::Reserve(std::uint64_t bytes) {
  if (bytes == 0) return Status(Code::kInvalidArgument, "a host region of zero bytes");
  auto region = std::make_unique<Region>();
  region->bytes = bytes;
  region->file.Reset(memfd_create("bitpager-host", MFD_CLOEXEC));
  if (!region->file || ftruncate(region->file.get(), static_cast<off_t>(bytes)) != 0) {
    return NoMemory(bytes, "memory file");
  }
  void* const raw =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, region->file.get(), 0);
  if (raw == MAP_FAILED) return NoMemory(bytes, "addresses");
  region->base = static_cast<std::byte*>(raw);
  madvise(raw, bytes, MADV_HUGEPAGE);  // a hint: fewer address translations, faster pinning
  madvise(raw, bytes, MADV_DONTFORK);
  region->pieces = std::vector<Piece>((bytes + options_.piece_bytes - 1) / options_.piece_bytes);
  std::uint64_t at = 0;
  for (Piece& piece : region->pieces) {
    piece.region = region.get();
    piece.base = region->base + at;
    piece.bytes = std::min(options_.piece_bytes, bytes - at);
    piece.used.resize((piece.bytes / kGrainBytes + 64) / 64);
    at += piece.bytes;
  }
  AskAhead(*region);
  const HostRegion out{region->base, bytes, region->file.get()};
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
  while (region.asked < want) Ask(region.pieces[region.asked++], false);
}

void HostFrames::Ask(Piece& piece, bool first) {
  {
    const std::lock_guard lock(mutex_);
    piece.unwanted = false;
    if (piece.state.load(std::memory_order_relaxed) != State::kIdle) return;
    Set(piece, State::kQueued);
    first ? work_.push_front(&piece) : work_.push_back(&piece);
  }
  wake_.notify_one();
}

// Under mutex_. Partner: the load in Prepare, which then may use the piece's registration.
void HostFrames::Set(Piece& piece, State state) {
  piece.state.store(state, std::memory_order_release);
}

void HostFrames::AwaitPinned(Piece& piece) {
  const auto start = std::chrono::steady_clock::now();
  std::unique_lock lock(mutex_);
  piece.unwanted = false;
  for (;;) {
    const State state = piece.state.load(std::memory_order_relaxed);
    if (state == State::kPinned || state == State::kFailed) break;
    if (state != State::kWorking) work_.erase(std::remove(work_.begin(), work_.end(), &piece), work_.end());
    if (state == State::kLeaving && piece.registered) {  // not begun: it stays
      Set(piece, State::kPinned);
      break;
    }
    if (state != State::kWorking) {  // before all others
      Set(piece, State::kQueued);
      work_.push_front(&piece);
      wake_.notify_one();
    }
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
  // Partner: Set. Only this thread takes a piece out of kPinned.
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
    Ask(piece, false);
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
    const std::lock_guard lock(mutex_);
    switch (piece.state.load(std::memory_order_relaxed)) {
      case State::kIdle:
      case State::kLeaving:
        break;
      case State::kQueued:  // expected, and its owner went before it was pinned
        std::erase(work_, &piece);
        Set(piece, State::kIdle);
        changed_.notify_all();
        break;
      case State::kWorking:
        piece.unwanted = true;
        break;
      case State::kPinned:
      case State::kFailed:
        piece.after = queues_.Newest();
        Set(piece, State::kLeaving);
        work_.push_back(&piece);
        wake_.notify_one();
        break;
    }
  }
}

void HostFrames::Pin(Piece& piece) {
  const CUresult result = driver_.MemHostRegister(piece.base, piece.bytes,
                                                  CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP);
  const std::lock_guard lock(mutex_);
  if (result == CUDA_SUCCESS) {
    pinned_bytes_ += piece.bytes;
    piece.registered = true;
    Set(piece, State::kPinned);
  } else {
    if (problem_.empty()) {
      problem_ = StatusOf(result, "pin " + std::to_string(piece.bytes) + " bytes of host frames").message() +
                 ". Hint: a smaller host budget, or more room in the memory cgroup; copies go on unpinned";
    }
    Set(piece, State::kFailed);
  }
  if (!std::exchange(piece.unwanted, false)) return;
  piece.after = {};  // nothing used it since it was the system's
  Set(piece, State::kLeaving);
  work_.push_back(&piece);
}

void HostFrames::Leave(Piece& piece) {
  if (piece.registered) static_cast<void>(driver_.MemHostUnregister(piece.base));
  const Region& region = *piece.region;
  static_cast<void>(fallocate(region.file.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                              static_cast<off_t>(piece.base - region.base), static_cast<off_t>(piece.bytes)));
  const std::lock_guard lock(mutex_);
  if (piece.registered) pinned_bytes_ -= piece.bytes;
  piece.registered = false;
  Set(piece, State::kIdle);
}

void HostFrames::Run() {
  BlockSignals();
  pthread_setname_np(pthread_self(), "bp-pin");
  static_cast<void>(cudaSetDevice(options_.ordinal));
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stop_ || !work_.empty(); });
    if (stop_) return;
    Piece& piece = *work_.front();
    const bool leaving = piece.state.load(std::memory_order_relaxed) == State::kLeaving;
    if (leaving && !std::all_of(piece.after.begin(), piece.after.end(),
                                [this](Event event) { return queues_.Done(event); })) {
      if (work_.size() > 1) {  // others first
        work_.pop_front();
        work_.push_back(&piece);
      }
      wake_.wait_for(lock, std::chrono::milliseconds(1));
      continue;
    }
    work_.pop_front();
    Set(piece, State::kWorking);
    ++busy_;
    lock.unlock();
    leaving ? Leave(piece) : Pin(piece);
    lock.lock();
    --busy_;
    changed_.notify_all();
  }
}

HostFrames::Counts HostFrames::counts() const {
  const std::lock_guard lock(mutex_);
  return {pinned_bytes_, unpinned_copies_, waits_, waited_ns_, problem_};
}

void HostFrames::Settle() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return work_.empty() && busy_ == 0; });
}

}  // namespace bitpager::kernels::cuda
