// Where the blocks of a 4-bit quantized weight lie inside a page. Pure arithmetic, any thread.
// The weight is the flattened tensor cut into blocks of `blocksize` elements; a page holds whole blocks with
// everything that belongs to them, so one page alone can be dequantized.
#pragma once

#include <cstddef>
#include <cstdint>

#include "client/wire/status.h"
#include "client/wire/types.h"

namespace bitpager::quant {

// Double quantization groups 256 block absmaxes under one fp32 absmax2.
inline constexpr std::uint32_t kNestedBlock = 256;

// Plain: packed codes (blocksize/2 bytes a block), then one fp32 absmax a block.
// Double-quantized: packed codes, one absmax code (uint8) a block, then one fp32 absmax2 for every group of
// 256 blocks that the page touches (a group that straddles two pages stands in both). The fp32 offset
// belongs to the extent, not to a page. Planes start on 128 bytes.
struct WeightLayout {
  std::uint32_t blocksize = 64;
  bool nested = false;
  std::uint32_t blocks_per_page = 0;
  std::uint32_t absmax_offset = 0;   // fp32 absmax (plain) or uint8 absmax codes (nested)
  std::uint32_t absmax2_offset = 0;  // nested only
};

// blocksize: a power of two, 32 to 4096. kInvalidArgument otherwise, or when no block fits a page.
[[nodiscard]] wire::Result<WeightLayout> MakeWeightLayout(std::uint32_t blocksize, bool nested,
                                                          std::size_t page_bytes);

[[nodiscard]] constexpr std::uint64_t BlocksOf(std::uint64_t elements, std::uint32_t blocksize) {
  return elements / blocksize + (elements % blocksize != 0 ? 1 : 0);
}
[[nodiscard]] constexpr std::uint64_t PagesOf(const WeightLayout& layout, std::uint64_t elements) {
  return (BlocksOf(elements, layout.blocksize) + layout.blocks_per_page - 1) / layout.blocks_per_page;
}

}  // namespace bitpager::quant
