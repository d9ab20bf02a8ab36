#include "quant/weight_layout.h"

#include <bit>
#include <string>

namespace bitpager::quant {
namespace {

constexpr std::uint64_t AlignUp128(std::uint64_t bytes) {
  return (bytes + 127) / 128 * 128;
}

// Bytes of a page that holds `blocks` blocks. A run of n blocks touches at most (n + 254) / 256 + 1 groups.
std::uint64_t PageBytesFor(std::uint64_t blocks, std::uint32_t blocksize, bool nested) {
  const std::uint64_t packed = AlignUp128(blocks * (blocksize / 2));
  if (!nested) return packed + 4 * blocks;
  const std::uint64_t groups = (blocks + kNestedBlock - 2) / kNestedBlock + 1;
  return packed + AlignUp128(blocks) + 4 * groups;
}

}  // namespace

wire::Result<WeightLayout> MakeWeightLayout(std::uint32_t blocksize, bool nested, std::size_t page_bytes) {
  if (blocksize < 32 || blocksize > 4096 || !std::has_single_bit(blocksize)) {
    return wire::Status(wire::Code::kInvalidArgument,
                        "blocksize " + std::to_string(blocksize) + " is not a power of two from 32 to 4096");
  }
  if (page_bytes > (std::size_t{1} << 30)) {
    return wire::Status(wire::Code::kInvalidArgument,
                        "a page of " + std::to_string(page_bytes) + " bytes is over the limit of 1 GiB");
  }
  std::uint64_t low = 0;
  std::uint64_t high = page_bytes / (blocksize / 2) + 1;  // never fits: the absmax needs room too
  while (low + 1 < high) {
    const std::uint64_t middle = (low + high) / 2;
    (PageBytesFor(middle, blocksize, nested) <= page_bytes ? low : high) = middle;
  }
  if (low == 0) {
    return wire::Status(wire::Code::kInvalidArgument, "a page of " + std::to_string(page_bytes) +
                                                          " bytes holds no block of " +
                                                          std::to_string(blocksize) + " elements");
  }
  WeightLayout layout;
  layout.blocksize = blocksize;
  layout.nested = nested;
  layout.blocks_per_page = static_cast<std::uint32_t>(low);
  layout.absmax_offset = static_cast<std::uint32_t>(AlignUp128(low * (blocksize / 2)));
  layout.absmax2_offset = nested ? static_cast<std::uint32_t>(layout.absmax_offset + AlignUp128(low)) : 0;
  return layout;
}

}  // namespace bitpager::quant
