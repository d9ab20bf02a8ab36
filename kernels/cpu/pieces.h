// Cuts a list of runs (of units or blocks) into pieces of similar weight for the worker pool. Any thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cpu/worker_pool.h"

namespace bitpager::kernels::cpu {

// Units (or blocks) [first, first + count) of run `run`.
struct Slice {
  std::uint32_t run = 0;
  std::uint32_t first = 0;
  std::uint32_t count = 0;
};

// Calls body(slice) for slices that cover `runs` runs of size(run) units each, cut at `grain` units; pieces
// of about `grain` units go to the pool, so that many tiny runs share one piece.
template <typename Size, typename Body>
void ForSlices(WorkerPool& pool, std::size_t runs, std::uint64_t grain, const Size& size, const Body& body) {
  std::vector<Slice> slices;
  std::vector<std::size_t> starts;  // of pieces, in slices
  std::uint64_t room = 0;
  for (std::uint32_t run = 0; run < runs; ++run) {
    const std::uint32_t units = size(run);
    for (std::uint32_t first = 0; first < units;) {
      if (room == 0) {
        starts.push_back(slices.size());
        room = grain;
      }
      const auto count = static_cast<std::uint32_t>(std::min<std::uint64_t>(units - first, room));
      slices.push_back({run, first, count});
      first += count;
      room -= count;
    }
  }
  starts.push_back(slices.size());
  pool.Run(starts.size() - 1, [&](std::uint64_t piece) {
    for (std::size_t s = starts[piece]; s < starts[piece + 1]; ++s) body(slices[s]);
  });
}

}  // namespace bitpager::kernels::cpu
