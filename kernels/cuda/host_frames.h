// Host frames: one region of memory each, pinned in pieces by threads of its own that make only that
// call, ahead of their first use. A copy that touches a piece which is not pinned yet waits for that piece;
// one whose piece cannot be pinned goes unpinned, and is counted. A piece all of whose frames were given back
// is unpinned and its memory returned to the system, behind all queued work; a piece that holds anything
// keeps all its memory, because a pinned page cannot be given back alone. The device thread makes all calls.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "client/wire/status.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/pin_queue.h"
#include "kernels/cuda/queues.h"
#include "kernels/device.h"

namespace bitpager::kernels::cuda {

class HostFrames {
 public:
  // Sizes are parameters so that tests see several pieces in little memory.
  struct Options {
    int ordinal = 0;
    std::uint64_t piece_bytes = std::uint64_t{256} << 20;  // a multiple of 2 MiB
    std::uint64_t ahead_bytes = std::uint64_t{1} << 30;    // pinned before anything is used
    unsigned threads = 4;  // that pin: most of it is the system's clearing of pages, one processor each
  };
  struct Counts {
    std::uint64_t pinned_bytes = 0;
    std::uint64_t unpinned_copies = 0;  // parts of copies whose memory could not be pinned
    std::uint64_t waits = 0;            // copies that waited for a piece
    std::uint64_t waited_ns = 0;
    std::string problem;  // why a piece could not be pinned; the first one
  };

  HostFrames(const Driver& driver, Queues& queues, Options options);
  ~HostFrames();  // no queued work may use a region
  HostFrames(const HostFrames&) = delete;
  HostFrames& operator=(const HostFrames&) = delete;

  [[nodiscard]] wire::Result<HostRegion> Reserve(std::uint64_t bytes);
  // Makes [at, at + bytes) ready for a copy, as far as it begins in a region, and returns how many bytes from
  // `at` one copy may take: the rest of the piece at most. Elsewhere: `bytes`.
  [[nodiscard]] std::uint64_t Prepare(const void* at, std::uint64_t bytes);
  // [at, at + bytes) will be used: its pieces are pinned in the background, in this order.
  void Expect(const std::byte* at, std::uint64_t bytes);
  // The content is lost once what the queues hold now is done.
  void Decommit(const std::byte* at, std::uint64_t bytes);
  [[nodiscard]] Counts counts() const;
  // A fault of the threads: they cannot reach the device.
  [[nodiscard]] wire::Status fault() const;
  // The device has failed: the threads end, nothing is pinned or given back any more, no copy waits.
  void Stop();
  // Until no piece is being pinned or given back. For tests.
  void Settle();

 private:
  using State = PinQueue::State;
  struct Region;
  struct Piece : PinQueue::Piece {
    std::byte* base = nullptr;
    std::uint64_t bytes = 0;
    std::vector<std::uint64_t> used;  // a bit for each 4 KiB; device thread
    std::uint64_t used_count = 0;     // of bits; device thread
  };
  struct Region {
    std::byte* base = nullptr;
    std::uint64_t bytes = 0;
    void* mapped = nullptr;  // what `base` lies in
    std::uint64_t mapped_bytes = 0;
    std::vector<Piece> pieces;
    std::uint64_t asked = 0;    // pieces [0, asked) were asked for ahead; device thread
    std::uint64_t touched = 0;  // pieces [0, touched) were used; device thread
  };

  void Run();
  void Pin(Piece& piece);
  void Unpin(Piece& piece);
  void Ask(Piece& piece);
  void AskAhead(Region& region);
  void AwaitPinned(Piece& piece);
  void Mark(Piece& piece, std::uint64_t offset, std::uint64_t bytes, bool used);
  [[nodiscard]] Region* RegionOf(const void* at) const;

  const Driver& driver_;
  Queues& queues_;
  const Options options_;
  std::vector<std::unique_ptr<Region>> regions_;  // device thread
  std::uint64_t unpinned_copies_ = 0, waits_ = 0, waited_ns_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable wake_;      // of the threads
  std::condition_variable changed_;   // a piece's state changed
  PinQueue work_;                     // guarded by mutex_
  bool stop_ = false;                 // guarded by mutex_
  unsigned busy_ = 0;                 // threads that pin or unpin. Guarded by mutex_
  std::uint64_t pinned_bytes_ = 0;    // guarded by mutex_
  std::string problem_;               // guarded by mutex_
  wire::Status fault_;                // guarded by mutex_
  std::vector<std::thread> threads_;  // from the first region on. Last: they use everything above
};

}  // namespace bitpager::kernels::cuda
