// The in-process functions: copies that spare the caches, and the decoding of weights that lie in pages.
// Built twice: with threads of their own, and with an OpenMP runtime whose threads they use.
#include "kernels/local.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/simd/copy.h"
#include "quant/weight_layout.h"

namespace bitpager::kernels {
namespace {

using wire::Code;
using wire::DType;
using wire::QuantType;

std::vector<std::byte> RandomBytes(std::size_t bytes) {
  std::mt19937 random(static_cast<unsigned>(bytes));
  std::vector<std::byte> out(bytes);
  for (std::byte& b : out) b = std::byte(random() % 256);
  return out;
}

// Copies `bytes` between places so far past a page's begin; nothing around the destination may change.
template <typename Copy>
void ExpectCopy(const Copy& copy, std::size_t bytes, std::size_t to_offset, std::size_t from_offset) {
  const std::vector<std::byte> from = RandomBytes(bytes + from_offset + 1);
  std::vector<std::byte> to(bytes + to_offset + 128, std::byte{0xEE});
  copy(to.data() + to_offset, from.data() + from_offset, bytes);
  for (std::size_t i = 0; i < to.size(); ++i) {
    const bool inside = i >= to_offset && i < to_offset + bytes;
    ASSERT_EQ(to[i], inside ? from[from_offset + i - to_offset] : std::byte{0xEE})
        << bytes << " bytes, byte " << i << ", offsets " << to_offset << " and " << from_offset;
  }
}

TEST(StreamCopy, CopiesEveryByteAndNoOther) {
  for (std::size_t bytes = 0; bytes < 200; ++bytes) ExpectCopy(StreamCopy, bytes, bytes % 67, bytes % 13);
  for (const std::size_t bytes : {4096UL, 16383UL, 16384UL, 16385UL, 50000UL, 300001UL}) {
    for (const std::size_t offset : {0UL, 1UL, 63UL}) ExpectCopy(StreamCopy, bytes, offset, 64 - offset);
  }
}

TEST(ParallelCopy, CopiesEveryByteAndNoOtherOnAnyNumberOfThreads) {
  for (const int threads : {-1, 1, 2, 5}) {
    const auto copy = [threads](void* to, const void* from, std::uint64_t bytes) {
      ParallelCopy(to, from, bytes, threads);
    };
    for (const std::size_t bytes : {0UL, 1UL, 4097UL, 300001UL}) ExpectCopy(copy, bytes, 3, 1);
  }
}

// Built a second time with an OpenMP runtime, whose threads a child does not have and does not miss.
TEST(LocalWork, GoesOnInAForkedChild) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "the thread sanitizer ends a child that starts threads";
#endif
  const std::vector<std::byte> from = RandomBytes(4 << 20);
  std::vector<std::byte> to(from.size());
  ParallelCopy(to.data(), from.data(), from.size(), 3);
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);  // a hang ends here
    std::fill(to.begin(), to.end(), std::byte{0});
    ParallelCopy(to.data(), from.data(), from.size(), 3);
    _exit(to == from ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

// A weight in planes, and the same in pages of `page_bytes`.
struct Weight {
  std::uint64_t elements = 0;
  quant::WeightLayout layout;
  std::vector<std::uint8_t> packed, codes;
  std::vector<float> absmax, absmax2;
  Packed4 planes;
  std::vector<std::vector<std::byte>> pages;
  std::vector<const std::byte*> addresses;

  [[nodiscard]] PagedWeight Paged() const {
    return {QuantType::kNF4, layout, planes.offset, addresses, elements};
  }
};

void Quantize(Weight& w, const std::vector<float>& in) {
  const std::uint64_t blocks = quant::BlocksOf(w.elements, w.layout.blocksize);
  w.packed.resize((w.elements + 1) / 2);
  w.absmax.resize(blocks);
  w.codes.resize(blocks);
  w.absmax2.resize(quant::BlocksOf(blocks, quant::kNestedBlock));
  w.planes = {w.packed.data(), w.absmax.data(), w.layout.nested ? w.codes.data() : nullptr,
              w.layout.nested ? w.absmax2.data() : nullptr, 0.0F};
  ASSERT_TRUE(
      Quantize4Bit(QuantType::kNF4, DType::kF32, in.data(), w.elements, w.layout.blocksize, &w.planes).ok());
}

// Block by block, by the layout's description alone.
void LayOut(Weight& w, std::size_t page_bytes) {
  const std::uint32_t half = w.layout.blocksize / 2;
  w.pages.assign(quant::PagesOf(w.layout, w.elements), std::vector<std::byte>(page_bytes));
  for (std::uint64_t block = 0; block < w.absmax.size(); ++block) {
    const std::uint64_t first = block / w.layout.blocks_per_page * w.layout.blocks_per_page;
    std::byte* const page = w.pages[block / w.layout.blocks_per_page].data();
    const std::uint64_t slot = block - first;
    std::memcpy(page + slot * half, w.packed.data() + block * half,
                std::min<std::uint64_t>(half, w.packed.size() - block * half));
    if (w.layout.nested) {
      const std::uint64_t group = block / quant::kNestedBlock;
      std::memcpy(page + w.layout.absmax_offset + slot, &w.codes[block], 1);
      std::memcpy(page + w.layout.absmax2_offset + 4 * (group - first / quant::kNestedBlock),
                  &w.absmax2[group], 4);
    } else {
      std::memcpy(page + w.layout.absmax_offset + 4 * slot, &w.absmax[block], 4);
    }
  }
  for (const auto& page : w.pages) w.addresses.push_back(page.data());
}

Weight MakeWeight(std::uint64_t elements, std::uint32_t blocksize, bool nested) {
  constexpr std::size_t kPageBytes = 16384;
  std::mt19937 random(static_cast<unsigned>(elements));
  std::normal_distribution<float> normal;
  std::vector<float> in(elements);
  for (float& x : in) x = normal(random);
  Weight w;
  w.elements = elements;
  w.layout = quant::MakeWeightLayout(blocksize, nested, kPageBytes).value();
  Quantize(w, in);
  LayOut(w, kPageBytes);
  return w;
}

TEST(DequantizePages, EqualsTheDecodingOfPlanes) {
  for (const bool nested : {false, true}) {
    for (const std::uint32_t blocksize : {32U, 64U, 4096U}) {
      for (const auto dtype : {DType::kF32, DType::kBF16}) {
        const Weight w = MakeWeight(400003, blocksize, nested);  // several pages, a short last block
        const std::size_t bytes = w.elements * wire::DTypeBytes(dtype);
        std::vector<std::byte> expected(bytes);
        ASSERT_TRUE(
            Dequantize4Bit(QuantType::kNF4, w.planes, w.elements, blocksize, dtype, expected.data()).ok());
        for (const int threads : {1, 3}) {
          std::vector<std::byte> out(bytes, std::byte{0xEE});
          ASSERT_TRUE(DequantizePages(w.Paged(), 0, w.elements, dtype, out.data(), threads).ok());
          ASSERT_EQ(out, expected) << "block " << blocksize << " nested " << nested << " threads " << threads;
        }
      }
    }
  }
}

TEST(DequantizePages, EqualsTheDecodingOfPlanesWhereItWritesPastTheCaches) {
  const Weight w = MakeWeight(3 << 20, 64, true);
  std::vector<float> expected(w.elements);
  std::vector<float> out(w.elements, -1.0F);
  ASSERT_TRUE(
      Dequantize4Bit(QuantType::kNF4, w.planes, w.elements, 64, DType::kF32, expected.data(), 2).ok());
  ASSERT_TRUE(DequantizePages(w.Paged(), 0, w.elements, DType::kF32, out.data(), 2).ok());
  EXPECT_EQ(out, expected);
}

TEST(DequantizePages, DecodesARangeAndNeedsOnlyItsPages) {
  Weight w = MakeWeight(200000, 64, true);
  std::vector<float> all(w.elements);
  ASSERT_TRUE(DequantizePages(w.Paged(), 0, w.elements, DType::kF32, all.data()).ok());
  const std::uint64_t page_elements = std::uint64_t{w.layout.blocks_per_page} * 64;
  const std::uint64_t first = page_elements - 128;  // the end of page 0 and the begin of page 1
  for (std::size_t page = 2; page < w.addresses.size(); ++page) w.addresses[page] = nullptr;
  std::vector<float> out(300, -1.0F);
  ASSERT_TRUE(DequantizePages(w.Paged(), first, 299, DType::kF32, out.data()).ok());
  for (std::size_t i = 0; i < 299; ++i) ASSERT_EQ(out[i], all[first + i]) << i;
  EXPECT_EQ(out[299], -1.0F);
}

TEST(DequantizePages, RefusesWhatItCannotRead) {
  Weight w = MakeWeight(200000, 64, false);
  std::vector<float> out(w.elements);
  EXPECT_EQ(DequantizePages(w.Paged(), 64, w.elements, DType::kF32, out.data()).code(), Code::kOutOfRange);
  EXPECT_EQ(DequantizePages(w.Paged(), 63, 64, DType::kF32, out.data()).code(), Code::kInvalidArgument);
  EXPECT_EQ(DequantizePages(w.Paged(), 0, 64, DType::kF32, nullptr).code(), Code::kInvalidArgument);
  w.addresses[1] = nullptr;
  const auto missing = DequantizePages(w.Paged(), 0, w.elements, DType::kF32, out.data());
  EXPECT_EQ(missing.code(), Code::kInvalidArgument);
  EXPECT_NE(missing.message().find("page 1"), std::string::npos);
}

}  // namespace
}  // namespace bitpager::kernels
