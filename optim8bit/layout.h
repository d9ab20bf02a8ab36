// Where the units of an optimizer arena lie inside a page (structure of arrays, 128-byte aligned planes).
// Pure arithmetic, any thread. A unit is one 256-element block with all its states and absmaxes; a page
// holds whole units, so one page alone can be stepped, checked and moved.
#pragma once

#include <cstddef>
#include <cstdint>

#include "client/wire/status.h"
#include "client/wire/types.h"

namespace bitpager::optim8bit {

// 8-bit, k states: S = floor(page / 260) rounded down to a multiple of 24, U = S / k units; k code planes of
// 256 U bytes, then k absmax planes of 4 U bytes, each plane starting on 128 bytes.
// 32-bit, k states: U = floor(page / (1024 k)); k planes of 1024 U bytes.
struct StateLayout {
  wire::Rule rule = wire::Rule::kAdam;
  wire::StateBits bits = wire::StateBits::k8;
  std::uint32_t states = 2;          // k
  std::uint32_t units_per_page = 0;  // U
  std::uint32_t plane_bytes = 0;     // of one state plane: 256 U or 1024 U
  std::uint32_t absmax_offset = 0;   // of the first absmax plane; 0 for 32-bit
  std::uint32_t absmax_stride = 0;   // between absmax planes; 0 for 32-bit
};

// Pages are at least 8 KiB and at most 1 GiB, a multiple of 4096 bytes.
inline constexpr std::size_t kMinPageBytes = 8192;
inline constexpr std::size_t kMaxPageBytes = std::size_t{1} << 30;

// kInvalidArgument when the page size is outside the bounds above.
[[nodiscard]] wire::Result<StateLayout> MakeStateLayout(wire::Rule rule, wire::StateBits bits,
                                                        std::size_t page_bytes);

// Units of a tensor of `elements` elements: each tensor starts a unit.
[[nodiscard]] constexpr std::uint64_t UnitsOf(std::uint64_t elements) {
  return elements / wire::kStateBlock + (elements % wire::kStateBlock != 0 ? 1 : 0);
}

}  // namespace bitpager::optim8bit
