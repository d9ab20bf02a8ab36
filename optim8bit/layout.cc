#include "optim8bit/layout.h"

#include <string>

namespace bitpager::optim8bit {
namespace {

constexpr std::uint32_t AlignUp128(std::uint32_t bytes) {
  return (bytes + 127) / 128 * 128;
}

StateLayout Layout8(std::uint32_t states, std::size_t page_bytes) {
  StateLayout layout;
  layout.units_per_page = static_cast<std::uint32_t>(page_bytes / 260 / 24 * 24) / states;
  layout.plane_bytes = 256 * layout.units_per_page;
  layout.absmax_offset = states * layout.plane_bytes;
  layout.absmax_stride = AlignUp128(4 * layout.units_per_page);
  // Small pages: aligning the absmax planes may push the last one past the end.
  while (layout.absmax_offset + (states - 1) * layout.absmax_stride + 4 * layout.units_per_page >
         page_bytes) {
    --layout.units_per_page;
    layout.plane_bytes = 256 * layout.units_per_page;
    layout.absmax_offset = states * layout.plane_bytes;
    layout.absmax_stride = AlignUp128(4 * layout.units_per_page);
  }
  return layout;
}

}  // namespace

wire::Result<StateLayout> MakeStateLayout(wire::Rule rule, wire::StateBits bits, std::size_t page_bytes) {
  if (page_bytes < kMinPageBytes || page_bytes > kMaxPageBytes || page_bytes % 4096 != 0) {
    return wire::Status(wire::Code::kInvalidArgument,
                        "a page of " + std::to_string(page_bytes) +
                            " bytes: page sizes are multiples of 4096 from 8192 to 1073741824");
  }
  const std::uint32_t states = wire::StatesOf(rule);
  StateLayout layout;
  if (bits == wire::StateBits::k8) {
    layout = Layout8(states, page_bytes);
  } else {
    layout.units_per_page = static_cast<std::uint32_t>(page_bytes / (std::size_t{1024} * states));
    layout.plane_bytes = 1024 * layout.units_per_page;
  }
  layout.rule = rule;
  layout.bits = bits;
  layout.states = states;
  return layout;
}

}  // namespace bitpager::optim8bit
