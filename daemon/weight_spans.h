// Which pages and blocks a request on a quantized weight touches. Pure; any thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "daemon/extent.h"
#include "daemon/work.h"

namespace bitpager::daemon {

// A run of blocks of a weight.
struct BlockRange {
  std::uint64_t first = 0;
  std::uint64_t end = 0;
  std::uint64_t end_element = 0;  // elements past this are not touched
};

[[nodiscard]] inline BlockRange Whole(const Weight& weight) {
  return {0, weight.blocks(), weight.elements};
}

// The pages of `weight`, which lies in extent `paged`, that hold the blocks.
[[nodiscard]] inline std::vector<paging::PageRange> Cover(wire::ExtentId paged, const Weight& weight,
                                                          const BlockRange& range) {
  const std::uint64_t per_page = weight.format.layout.blocks_per_page;
  const std::uint64_t first = range.first / per_page;
  return {{paged, first, (range.end + per_page - 1) / per_page - first}};
}

// All pages of those that a fill of the weight goes to.
[[nodiscard]] inline std::vector<paging::PageRange> CoverFilled(const Extent& extent) {
  return Cover(extent.fresh ? extent.fresh : extent.paged, *extent.weight(), Whole(*extent.weight()));
}

// The part of `range` that lies in `page`; none when it ends before or begins behind.
[[nodiscard]] inline kernels::WeightSpan Cut(const Weight& weight, const BlockRange& range,
                                             const ResidentPage& page) {
  const std::uint64_t per_page = weight.format.layout.blocks_per_page;
  const std::uint64_t blocksize = weight.format.layout.blocksize;
  const std::uint64_t page_first = page.index * per_page;
  const std::uint64_t first = std::max(range.first, page_first);
  const std::uint64_t end = std::max(first, std::min(range.end, page_first + per_page));
  kernels::WeightSpan span;
  span.page = page.at;
  span.first_block = static_cast<std::uint32_t>(first - page_first);
  span.blocks = static_cast<std::uint32_t>(end - first);
  span.first_global_block = first;
  span.page_global_block = page_first;
  span.elements =
      std::min(end * blocksize, range.end_element) - std::min(first * blocksize, range.end_element);
  return span;
}

}  // namespace bitpager::daemon
