// The in-process kernels of a GPU (kernels/cuda/local.h) where they branch: 8-bit blocks of every kind beside
// each other against quant's scalar encoding, bit for bit, and products of weights in small pages, which cut
// rows anywhere, against those of plain planes, bit for bit, and float64. Skipped without a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/list.h"
#include "kernels/cuda/local.h"
#include "kernels/cuda/status.h"
#include "quant/block.h"
#include "quant/codebook.h"
#include "quant/encode.h"

namespace bitpager::kernels::cuda {
namespace {

using wire::DType;
using wire::QuantType;

// Memory of the device. 64 bytes behind it are filled and must stay as they are.
class OnDevice {
 public:
  explicit OnDevice(std::size_t bytes) : bytes_(bytes) {
    EXPECT_EQ(cudaMalloc(&at_, bytes + kGuard), cudaSuccess);
    EXPECT_EQ(cudaMemset(at_, 0xEE, bytes + kGuard), cudaSuccess);
  }
  template <typename T>
  explicit OnDevice(const std::vector<T>& from, std::size_t offset = 0)
      : OnDevice(from.size() * sizeof(T) + offset) {
    EXPECT_EQ(cudaMemcpy(At(offset), from.data(), from.size() * sizeof(T), cudaMemcpyDefault), cudaSuccess);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() { static_cast<void>(cudaFree(at_)); }

  [[nodiscard]] std::byte* At(std::size_t offset = 0) const { return static_cast<std::byte*>(at_) + offset; }
  template <typename T>
  [[nodiscard]] T* As(std::size_t offset = 0) const {
    return reinterpret_cast<T*>(At(offset));
  }
  // Waits for the device.
  template <typename T>
  [[nodiscard]] std::vector<T> Read(std::size_t count, std::size_t offset = 0) const {
    std::vector<T> out(count);
    EXPECT_EQ(cudaMemcpy(out.data(), At(offset), count * sizeof(T), cudaMemcpyDefault), cudaSuccess);
    std::vector<unsigned char> guard(kGuard);
    EXPECT_EQ(cudaMemcpy(guard.data(), At(bytes_), kGuard, cudaMemcpyDefault), cudaSuccess);
    EXPECT_EQ(std::count(guard.begin(), guard.end(), 0xEE), static_cast<std::ptrdiff_t>(kGuard));
    return out;
  }

 private:
  static constexpr std::size_t kGuard = 64;
  std::size_t bytes_;
  void* at_ = nullptr;
};

class CudaLocal : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    static_cast<void>(ListDevices(&why));
    if (!why.empty()) GTEST_SKIP() << why;
  }
};

// ---- 8 bits ----

// Kinds of blocks. Those from kTiny on are unusual to the kernel, or at the edge of what is.
enum class Kind {
  kNormal,
  kNegativePeak,
  kTies,
  kZero,
  kTiny,
  kDenormal,
  kHuge,
  kGreatest,
  kInfinite,
  kNan,
  kAnyBits
};
constexpr int kKinds = 11;

float FromBits(std::uint32_t bits) {
  return std::bit_cast<float>(bits);
}

class Blocks {
 public:
  Blocks(const quant::Thresholds256& thresholds, unsigned seed) : thresholds_(thresholds), random_(seed) {}

  // Element `i` of a block of `size`.
  float Element(Kind kind, int exponent, std::size_t i, std::size_t size) {
    const float x = normal_(random_);
    switch (kind) {
      case Kind::kNegativePeak:
        return i == size / 2 ? -8.0F : x;
      case Kind::kTies:  // the absmax is a power of two, the others lie at thresholds or one float beside
        if (i == 0) return std::ldexp(random_() % 2 == 0 ? 1.0F : -1.0F, exponent);
        return std::ldexp(FromBits(std::bit_cast<std::uint32_t>(thresholds_[random_() % 255]) +
                                   static_cast<std::uint32_t>(random_() % 3) - 1),
                          exponent);
      case Kind::kZero:
        return random_() % 2 == 0 ? 0.0F : -0.0F;
      case Kind::kTiny:
        // An absmax around the least that is scaled by one product, and elements down to denormal ones.
        return std::ldexp(x, -103 - exponent % 6 - static_cast<int>(i % 32));
      case Kind::kDenormal:
        return FromBits(static_cast<std::uint32_t>(random_() & 0x807FFFFFU));
      case Kind::kHuge:
        return std::ldexp(x, 22 + exponent % 3);  // around 2^23
      case Kind::kGreatest:
        return std::ldexp(x, 124);
      case Kind::kInfinite:
        return i % 17 == 3 ? std::copysign(std::numeric_limits<float>::infinity(), x) : x;
      case Kind::kNan:
        return i + 1 == size ? std::nanf("") : x;
      case Kind::kAnyBits:
        return FromBits(static_cast<std::uint32_t>(random_()));
      default:
        return x;
    }
  }

  // `unusual` of a hundred blocks are of any kind; if all are, then 8192 elements each of one: all that a
  // warp has at a time.
  std::vector<std::byte> Make(DType dtype, std::size_t elements, std::size_t size, unsigned unusual) {
    std::vector<std::byte> out(elements * wire::DTypeBytes(dtype));
    auto kind = Kind::kNormal;
    int exponent = 0;
    for (std::size_t first = 0; first < elements; first += size) {
      if (unusual != 100 || first % 8192 == 0) {
        kind = random_() % 100 < unusual ? static_cast<Kind>(random_() % kKinds) : Kind::kNormal;
        exponent = static_cast<int>(random_() % 41) - 20;
      }
      for (std::size_t i = 0; i < std::min(size, elements - first); ++i) {
        quant::StoreAs(dtype, out.data(), first + i, Element(kind, exponent, i, size));
      }
    }
    return out;
  }

 private:
  const quant::Thresholds256& thresholds_;
  std::mt19937_64 random_;
  std::normal_distribution<float> normal_;
};

quant::Map256 MapOf(MapKind kind) {
  if (kind == MapKind::kSignedDynamic) return quant::kSignedDynamicMap;
  if (kind == MapKind::kUnsignedDynamic) return quant::kUnsignedDynamicMap;
  quant::Map256 map{};
  for (int i = 0; i < 256; ++i)
    map[static_cast<std::size_t>(i)] = static_cast<float>(i * std::abs(i - 99)) / 39780.0F - 0.5F;
  std::sort(map.begin(), map.end());
  return map;
}

// One tensor, `shift` elements behind an aligned address.
void ExpectAsTheReference(MapKind kind, DType dtype, std::uint32_t size, std::size_t elements,
                          unsigned unusual, std::size_t shift) {
  SCOPED_TRACE("map " + std::to_string(static_cast<int>(kind)) + ", dtype " +
               std::to_string(static_cast<int>(dtype)) + ", blocks of " + std::to_string(size) + ", " +
               std::to_string(elements) + " elements, " + std::to_string(unusual) + "% unusual, shift " +
               std::to_string(shift));
  const quant::Map256 map = MapOf(kind);
  const quant::Thresholds256 thresholds = quant::ThresholdsOf(map);
  const auto in =
      Blocks(thresholds, static_cast<unsigned>(elements) + size).Make(dtype, elements, size, unusual);
  const std::size_t bytes = wire::DTypeBytes(dtype);
  const std::size_t blocks = (elements + size - 1) / size;
  std::vector<std::uint8_t> codes(elements);
  std::vector<float> absmax(blocks);
  for (std::size_t b = 0; b < blocks; ++b) {
    const std::size_t first = b * size;
    absmax[b] = quant::EncodeBlock8(thresholds, dtype, in.data() + first * bytes,
                                    std::min<std::size_t>(size, elements - first), codes.data() + first);
  }
  const OnDevice plain(in, shift * bytes);
  const OnDevice device_map(std::vector<float>(map.begin(), map.end()));
  const OnDevice device_codes(elements + shift);
  const OnDevice device_absmax(blocks * sizeof(float));
  Blockwise args;
  args.kind = kind;
  args.map = device_map.As<float>();
  args.dtype = dtype;
  args.plain = plain.At(shift * bytes);
  args.elements = elements;
  args.blocksize = size;
  args.codes = device_codes.As<std::uint8_t>(shift);
  args.absmax = device_absmax.As<float>();
  ASSERT_TRUE(QuantizeBlockwiseOn(nullptr, args).ok());
  const auto have = device_codes.Read<std::uint8_t>(elements, shift);
  const auto have_absmax = device_absmax.Read<float>(blocks);
  for (std::size_t b = 0; b < blocks; ++b) {
    if (std::isnan(absmax[b])) {
      ASSERT_TRUE(std::isnan(have_absmax[b])) << "block " << b;
    } else {
      ASSERT_EQ(have_absmax[b], absmax[b]) << "block " << b;
    }
  }
  for (std::size_t i = 0; i < elements; ++i) {
    ASSERT_EQ(have[i], codes[i]) << "element " << i << ": " << quant::LoadAs(dtype, in.data(), i)
                                 << " in a block of absmax " << absmax[i / size];
  }
}

TEST_F(CudaLocal, EncodesBlocksOfEveryKindBesideEachOther) {
  for (const MapKind kind : {MapKind::kSignedDynamic, MapKind::kUnsignedDynamic, MapKind::kGiven}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      for (const std::uint32_t size : {64U, 128U, 256U, 512U, 2048U, 4096U}) {
        ExpectAsTheReference(kind, dtype, size, 5 * 8192 + 777, 3,
                             0);  // most warps have none, some a single one
        ExpectAsTheReference(kind, dtype, size, 15 * 8192 + 777, 100, 0);
        ExpectAsTheReference(kind, dtype, size, 2 * 8192 + 1, 10, 1);
        ExpectAsTheReference(kind, dtype, size, 1, 100, 0);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// So many tiles that each thread block has several, and the maxima of one are in use while the next is read.
TEST_F(CudaLocal, EncodesManyTilesATime) {
  for (const std::uint32_t size : {512U, 4096U}) {
    ExpectAsTheReference(MapKind::kSignedDynamic, DType::kBF16, size, 3 * 2048 * 8192 + 4321, 1, 0);
    if (HasFatalFailure()) return;
  }
}

// ---- products ----

// A weight of random codes, in planes on the host.
struct Weight {
  std::uint32_t rows = 0;
  std::uint32_t columns = 0;
  quant::WeightLayout layout;
  std::vector<std::uint8_t> packed, codes;
  std::vector<float> absmax, absmax2;
  float offset = 0.25F;

  [[nodiscard]] double Scale(std::size_t block) const {
    if (!layout.nested) return absmax[block];
    return double{quant::kSignedDynamicMap[codes[block]]} * absmax2[block / quant::kNestedBlock] + offset;
  }
};

Weight MakeWeight(std::uint32_t rows, std::uint32_t columns, const quant::WeightLayout& layout) {
  std::mt19937 random(rows * 31 + columns);
  Weight w;
  w.rows = rows;
  w.columns = columns;
  w.layout = layout;
  const std::size_t elements = std::size_t{rows} * columns;
  const std::size_t blocks = elements / layout.blocksize;
  const auto fraction = [&] { return 0.5F + static_cast<float>(random() % 1000) / 1000.0F; };
  for (std::size_t i = 0; i < elements / 2; ++i) w.packed.push_back(static_cast<std::uint8_t>(random()));
  for (std::size_t b = 0; b < blocks; ++b) {
    w.absmax.push_back(fraction());
    w.codes.push_back(static_cast<std::uint8_t>(random()));
    if (b % quant::kNestedBlock == 0) w.absmax2.push_back(fraction());
  }
  return w;
}

// The weight's pages one behind the other, block by block, by the layout's description alone.
std::vector<std::byte> LayOut(const Weight& w, std::size_t page_bytes) {
  const quant::WeightLayout& layout = w.layout;
  const std::size_t half = layout.blocksize / 2;
  std::vector<std::byte> out(quant::PagesOf(layout, std::size_t{w.rows} * w.columns) * page_bytes);
  for (std::size_t block = 0; block < w.absmax.size(); ++block) {
    const std::size_t first = block / layout.blocks_per_page * layout.blocks_per_page;
    std::byte* const page = out.data() + block / layout.blocks_per_page * page_bytes;
    std::memcpy(page + (block - first) * half, w.packed.data() + block * half, half);
    if (layout.nested) {
      const std::size_t group = block / quant::kNestedBlock;
      std::memcpy(page + layout.absmax_offset + (block - first), &w.codes[block], 1);
      std::memcpy(page + layout.absmax2_offset + 4 * (group - first / quant::kNestedBlock), &w.absmax2[group],
                  4);
    } else {
      std::memcpy(page + layout.absmax_offset + 4 * (block - first), &w.absmax[block], 4);
    }
  }
  return out;
}

// |y - x W^T| / |x W^T|, the latter in float64.
double ErrorOf(const Weight& w, DType dtype, const std::vector<std::byte>& x,
               const std::vector<std::uint16_t>& y, std::uint32_t batch) {
  double error = 0.0;
  double size = 0.0;
  for (std::uint32_t b = 0; b < batch; ++b) {
    for (std::uint32_t r = 0; r < w.rows; ++r) {
      double exact = 0.0;
      for (std::uint32_t c = 0; c < w.columns; ++c) {
        const std::size_t i = std::size_t{r} * w.columns + c;
        const unsigned code = i % 2 == 0 ? w.packed[i / 2] >> 4 : w.packed[i / 2] & 15U;
        exact += quant::kNf4[code] * w.Scale(i / w.layout.blocksize) *
                 quant::LoadAs(dtype, x.data(), std::size_t{b} * w.columns + c);
      }
      const double off = quant::LoadAs(dtype, y.data(), std::size_t{b} * w.rows + r) - exact;
      error += off * off;
      size += exact * exact;
    }
  }
  return std::sqrt(error / size);
}

std::vector<std::byte> RandomRows(DType dtype, std::size_t elements) {
  std::mt19937 random(static_cast<unsigned>(elements));
  std::normal_distribution<float> normal;
  std::vector<std::byte> out(elements * 2);
  for (std::size_t i = 0; i < elements; ++i) quant::StoreAs(dtype, out.data(), i, normal(random));
  return out;
}

// The product from planes, and from pages of `page_bytes` each.
void ExpectPagesAsPlanes(std::uint32_t rows, std::uint32_t columns, std::uint32_t blocksize, bool nested,
                         std::size_t page_bytes, DType dtype, std::uint32_t batch) {
  SCOPED_TRACE(std::to_string(rows) + " rows, " + std::to_string(columns) + " columns, blocks of " +
               std::to_string(blocksize) + (nested ? ", nested" : "") + ", pages of " +
               std::to_string(page_bytes) + ", batch " + std::to_string(batch));
  const auto layout = quant::MakeWeightLayout(blocksize, nested, page_bytes);
  ASSERT_TRUE(layout.ok());
  const Weight w = MakeWeight(rows, columns, *layout);
  const std::vector<std::byte> x = RandomRows(dtype, std::size_t{batch} * columns);
  const OnDevice device_x(x);
  const OnDevice packed(w.packed), absmax(w.absmax), codes(w.codes), absmax2(w.absmax2);
  const OnDevice offset(std::vector<float>{w.offset});
  const OnDevice pages(LayOut(w, page_bytes));
  std::vector<const std::byte*> addresses;
  for (std::size_t at = 0; at < quant::PagesOf(*layout, std::size_t{rows} * columns); ++at) {
    addresses.push_back(pages.At(at * page_bytes));
  }
  Planes4 planes{packed.As<std::uint8_t>(), absmax.As<float>(), nullptr, absmax2.As<float>(),
                 offset.As<float>()};
  if (nested) planes.nested_codes = codes.As<std::uint8_t>();
  const Pages4 paged{*layout, w.offset, addresses};
  std::vector<std::uint16_t> y[2];
  for (const bool from_pages : {false, true}) {
    const OnDevice out(std::size_t{batch} * rows * 2);
    Product4 args;
    args.dtype = dtype;
    args.x = device_x.At();
    args.y = out.At();
    args.batch = batch;
    args.rows = rows;
    args.columns = columns;
    args.blocksize = blocksize;
    args.planes = from_pages ? nullptr : &planes;
    args.pages = from_pages ? &paged : nullptr;
    ASSERT_TRUE(Multiply4BitOn(nullptr, args).ok());
    y[from_pages ? 1 : 0] = out.Read<std::uint16_t>(std::size_t{batch} * rows);
  }
  EXPECT_EQ(y[1], y[0]);
  EXPECT_LT(ErrorOf(w, dtype, x, y[0], batch), dtype == DType::kF16 ? 2e-3 : 1e-2);
}

// Of the units of 256 columns of a row that a warp loads at once, some lie in one page and some in two or
// more; some end with the row and some would pass its end.
TEST_F(CudaLocal, ProductsOfPagesAreThoseOfPlanesWhereverRowsAreCut) {
  struct Case {
    std::uint32_t blocksize, rows, columns;
    std::size_t page_bytes;
  };
  const Case cases[] = {
      {32, 37, 2304, 640},   {32, 37, 2336, 2176},  {32, 5, 224, 640},       {64, 37, 2304, 640},
      {64, 37, 2368, 2176},  {64, 41, 6144, 16384}, {64, 33, 4096, 1 << 20}, {64, 16, 64, 640},
      {128, 37, 2304, 1280}, {128, 37, 2432, 4480}, {512, 19, 2560, 5120},   {1024, 9, 5120, 768},
      {4096, 9, 8192, 2304}, {4096, 9, 8192, 6528}, {4096, 20, 4096, 40960},
  };
  for (const Case& one : cases) {
    for (const bool nested : {false, true}) {
      for (const DType dtype : {DType::kF16, DType::kBF16}) {
        for (const std::uint32_t batch : {1U, 7U, 9U}) {
          ExpectPagesAsPlanes(one.rows, one.columns, one.blocksize, nested, one.page_bytes, dtype, batch);
          if (HasFailure()) return;
        }
      }
    }
  }
}

}  // namespace
}  // namespace bitpager::kernels::cuda
