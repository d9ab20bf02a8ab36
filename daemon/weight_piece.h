// A run of blocks of a weight, copied out of its pages in the interchange layout: what is hashed. The same
// for every device, wherever its frames are, and without the gaps of pages. Dispatcher thread.
#pragma once

#include <cstdint>
#include <span>

#include "daemon/content_hash.h"
#include "daemon/hash_thread.h"
#include "daemon/weight_spans.h"
#include "kernels/device.h"

namespace bitpager::daemon {

class WeightPiece {
 public:
  WeightPiece() = default;
  // Room for `blocks` blocks of weights of this layout; false of the result: there is no memory.
  WeightPiece(kernels::Device& device, const quant::WeightLayout& layout, std::uint64_t blocks);
  [[nodiscard]] explicit operator bool() const { return static_cast<bool>(memory_); }
  [[nodiscard]] bool Fits(const quant::WeightLayout& layout, std::uint64_t blocks) const;

  // Another run of blocks: the next Out and Planes are of it.
  void Aim(const Weight& weight, const BlockRange& range);
  [[nodiscard]] const BlockRange& range() const { return range_; }
  // Enqueues the copy of its blocks out of these pages.
  kernels::Event Out(kernels::Device& device, std::span<const ResidentPage> pages) const;
  // What the copies left, once they are done.
  [[nodiscard]] HashThread::Pieces Planes() const;

 private:
  Scratch memory_;
  std::uint64_t bytes_ = 0;
  Weight weight_;  // format and size of the one it is aimed at
  BlockRange range_;
};

// Begins a hash of `blocks` blocks of the weight: it covers everything that the numbers depend on.
[[nodiscard]] ContentHash HashOf(const Weight& weight, std::uint64_t blocks);

// So many blocks at the start of a weight are looked at first; few enough to be hashed in passing.
[[nodiscard]] std::uint64_t StartBlocks(const Weight& weight);

}  // namespace bitpager::daemon
