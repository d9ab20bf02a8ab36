#include "daemon/weight_piece.h"

#include <bit>

namespace bitpager::daemon {
namespace {

constexpr std::uint64_t kStartBytes = 16U << 10;  // of codes

// Bytes of each plane for `blocks` blocks, wherever they begin.
struct PlaneBytes {
  std::uint64_t packed = 0;
  std::uint64_t absmax = 0;
  std::uint64_t absmax2 = 0;
};

std::uint64_t Aligned(std::uint64_t bytes) {
  return (bytes + 127) / 128 * 128;
}

PlaneBytes RoomFor(const quant::WeightLayout& layout, std::uint64_t blocks) {
  const std::uint64_t groups = blocks / quant::kNestedBlock + 2;  // the first and the last one in part
  return {Aligned(blocks * (layout.blocksize / 2)), Aligned(blocks * (layout.nested ? 1 : sizeof(float))),
          layout.nested ? Aligned(groups * sizeof(float)) : 0};
}

std::uint64_t BytesFor(const quant::WeightLayout& layout, std::uint64_t blocks) {
  const PlaneBytes room = RoomFor(layout, blocks);
  return room.packed + room.absmax + room.absmax2;
}

// The op takes planes of the whole weight and touches only its blocks' part: where the plane would begin.
template <typename T>
T* Shifted(std::byte* at, std::uint64_t elements_before) {
  return reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(at) - elements_before * sizeof(T));
}

}  // namespace

WeightPiece::WeightPiece(kernels::Device& device, const quant::WeightLayout& layout, std::uint64_t blocks)
    : memory_(device, BytesFor(layout, blocks)), bytes_(BytesFor(layout, blocks)) {}

bool WeightPiece::Fits(const quant::WeightLayout& layout, std::uint64_t blocks) const {
  return memory_ && BytesFor(layout, blocks) <= bytes_;
}

void WeightPiece::Aim(const Weight& weight, const BlockRange& range) {
  weight_ = weight;
  range_ = range;
}

kernels::Event WeightPiece::Out(kernels::Device& device, std::span<const ResidentPage> pages) const {
  const quant::WeightLayout& layout = weight_.format.layout;
  const PlaneBytes room = RoomFor(layout, range_.end - range_.first);
  kernels::PackedArgs args;
  args.format = weight_.format;
  args.into_pages = false;
  args.packed = Shifted<std::byte>(memory_.get(), range_.first * (layout.blocksize / 2));
  std::byte* const absmax = memory_.get() + room.packed;
  if (layout.nested) {
    args.nested_codes = Shifted<std::uint8_t>(absmax, range_.first);
    args.absmax2 = Shifted<float>(absmax + room.absmax, range_.first / quant::kNestedBlock);
  } else {
    args.absmax = Shifted<float>(absmax, range_.first);
  }
  for (const ResidentPage& page : pages) {
    const kernels::WeightSpan span = Cut(weight_, range_, page);
    if (span.blocks > 0) args.spans.push_back(span);
  }
  return args.spans.empty() ? kernels::Event{} : device.MovePacked(std::move(args));
}

HashThread::Pieces WeightPiece::Planes() const {
  const quant::WeightLayout& layout = weight_.format.layout;
  const std::uint64_t blocks = range_.end - range_.first;
  const auto room = RoomFor(layout, blocks);
  const std::uint64_t elements = range_.end_element - range_.first * layout.blocksize;
  const std::uint64_t groups =
      (range_.end - 1) / quant::kNestedBlock - range_.first / quant::kNestedBlock + 1;
  const std::byte* const absmax = memory_.get() + room.packed;
  return {std::span(memory_.get(), (elements + 1) / 2),
          std::span(absmax, blocks * (layout.nested ? 1 : sizeof(float))),
          std::span(absmax + room.absmax, layout.nested ? groups * sizeof(float) : 0)};
}

ContentHash HashOf(const Weight& weight, std::uint64_t blocks) {
  const quant::WeightLayout& layout = weight.format.layout;
  const std::array<std::uint64_t, 8> header{
      1,  // of this header
      static_cast<std::uint64_t>(weight.format.type),
      layout.nested ? 1U : 0U,
      layout.blocksize,
      layout.blocks_per_page,
      weight.elements,
      std::bit_cast<std::uint32_t>(weight.format.offset),
      blocks,
  };
  ContentHash hash;
  hash.Add(std::as_bytes(std::span(header)));
  return hash;
}

std::uint64_t StartBlocks(const Weight& weight) {
  const std::uint64_t wanted = std::max<std::uint64_t>(1, kStartBytes / (weight.format.layout.blocksize / 2));
  return std::min<std::uint64_t>({wanted, weight.blocks(), weight.format.layout.blocks_per_page});
}

}  // namespace bitpager::daemon
