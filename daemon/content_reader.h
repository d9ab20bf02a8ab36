// Reads one weight's pages from end to end and hashes them: a piece at a time, by ordinary read requests of
// its job, so that it needs no more frames than one piece has and works with paging at every budget. The
// pages are pinned only while they are copied; the hash is made on a thread of its own. Dispatcher thread.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>

#include "daemon/core.h"
#include "daemon/hash_thread.h"
#include "daemon/weight_piece.h"

namespace bitpager::daemon {

class ContentReader {
 public:
  ContentReader(Core& core, std::function<void()> ring) : core_(core), thread_(std::move(ring)) {}

  // Starts with the weight in `paged`, on behalf of `job`. Only when idle.
  void Begin(wire::ExtentId paged, wire::JobId job, const Weight& weight);
  // Stops; idle as soon as nothing of it is under way. The outcome is told to nobody.
  void Stop();
  [[nodiscard]] bool idle() const { return !reading_; }
  // The one whose outcome is to come.
  [[nodiscard]] bool Reads(wire::ExtentId paged) const {
    return reading_ && !reading_->stopped && reading_->paged == paged;
  }

  // ---- for the requests that it submits
  [[nodiscard]] bool Owns(wire::RequestId request) const {
    return reading_ && reading_->request && reading_->request == request;
  }
  kernels::Event Launch(std::span<const ResidentPage> pages);
  void Finished();
  // Cancels a request that the device has no room for.
  void CancelStarved();

  struct Outcome {
    wire::ExtentId paged;
    std::optional<Digest> digest;  // none: it could not be read
  };
  // Changes when there is something to do: for the pager, or by another Poll.
  [[nodiscard]] std::uint64_t asked() const { return asked_; }
  // Moves on. The outcome when there is one.
  [[nodiscard]] std::optional<Outcome> Poll();

 private:
  struct Reading {
    wire::ExtentId paged;
    wire::JobId job;
    Weight weight;
    ContentHash hash;
    std::uint64_t next_block = 0;
    wire::RequestId request;     // none: not asked for pages now
    std::uint64_t launched = 0;  // pages of the request
    bool hashing = false;
    bool stopped = false;
    bool failed = false;
  };

  void Ask();
  [[nodiscard]] std::uint64_t PieceBlocks(const Weight& weight) const;

  Core& core_;
  WeightPiece piece_;
  std::optional<Reading> reading_;
  std::uint64_t asked_ = 0;
  HashThread thread_;  // last: it ends before what it reads
};

}  // namespace bitpager::daemon
