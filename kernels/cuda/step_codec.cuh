// Decode and exact encode of the dynamic 8-bit maps from shared memory, for the step kernels. Device code,
// any warp; tables are written once per thread block and only read afterwards.
//
// Encode. A value is multiplied by 2^-103 / absmax, flushing to zero: magnitudes under 2^-23 of the absmax
// (whose code is that of zero) vanish, and what is left has the exponents 1 to 24, so its sign, exponent and
// leading mantissa bits index a table without a clamp: 6 mantissa bits for the signed map, 7 for the
// unsigned. Such a bin holds at most one boundary between codes (asserted below), and an entry is made so
// that entry + bits(value) has the code in its upper byte: the bits under the index either carry into it or
// do not. The scaling is by a power of two, so the rounded quotient is the reference's.
// Negative values read a table of their own, 255 - code, which grows with the magnitude like the others; it
// also holds the sign rule of state 1 (never the code of zero).
//
// Decode. Wide form: row c of 256 bytes holds 32 copies of the signed and 32 of the unsigned entry, so each
// lane reads its own bank, and one byte permute makes the address. Narrow form, for devices with little
// shared memory: the plain maps.
#pragma once

#include <cstdint>

#include "quant/codebook.h"

namespace bitpager::kernels::cuda {

inline constexpr std::uint32_t kDownExponent = 103U << 23;
inline constexpr int kSignedShift = 17;    // bits of a value under the index
inline constexpr int kUnsignedShift = 16;  // both leave whole words: index = 4 * (bits >> shift)
inline constexpr std::uint32_t kSignedBins = (24U << 6) + 32;
inline constexpr std::uint32_t kUnsignedBins = (24U << 7) + 32;
inline constexpr std::uint32_t kNegativeGap = 65536;  // positive entries lie so far behind the negative ones

struct CodecTables {
  std::uint32_t negative[kSignedBins];
  std::uint32_t positive[kSignedBins];
  std::uint32_t magnitude[kUnsignedBins];
  float map[2][256];
  float thresholds[2][256];
};

namespace internal {

// Entry of the bin that starts at `low_bits`: `code` up to `last` (bits of the greatest value that has it).
constexpr std::uint32_t BinEntry(std::uint32_t code, std::uint32_t low_bits, std::uint32_t last) {
  return (code << 24) + (0xFFFFFFU - (last - low_bits)) - low_bits;
}

// Fills `bins` entries in ascending order. Codes count from `zero` and are stored as Name::Of(distance).
// False when some bin holds two boundaries.
template <typename Name>
constexpr bool FillBins(std::uint32_t* table, std::uint32_t bins, int shift, std::uint32_t sign,
                        const quant::Thresholds256& thresholds, std::uint32_t zero) {
  std::uint32_t distance = 0;
  for (std::uint32_t bin = 0; bin < bins; ++bin) {
    const std::uint32_t low = bin << shift;
    const std::uint32_t high = low + (1U << shift) - 1;
    const std::uint32_t code = Name::Of(distance);
    std::uint32_t last = high;
    std::uint32_t passed = 0;
    while (low >= (1U << 23) && zero + distance < 255) {
      const std::uint32_t at = __builtin_bit_cast(std::uint32_t, thresholds[zero + distance]) - kDownExponent;
      if (at >= high) break;
      if (Name::Of(++distance) == code) continue;
      last = at;
      ++passed;
    }
    if (passed > 1) return false;
    table[bin] = BinEntry(code, low, last) - sign;
  }
  return true;
}

struct PositiveName {
  static constexpr std::uint32_t Of(std::uint32_t distance) { return 127 + distance; }
};
struct NegativeName {  // 255 - code, code = 127 - distance, distance 1 to 127
  static constexpr std::uint32_t Of(std::uint32_t distance) {
    return 128 + (distance == 0 ? 1 : (distance > 127 ? 127 : distance));
  }
};
struct UnsignedName {
  static constexpr std::uint32_t Of(std::uint32_t distance) { return distance; }
};

struct CheckedTables {
  CodecTables tables{};
  bool one_boundary = true;
};
constexpr CheckedTables MakeCodecTables() {
  CheckedTables out;
  CodecTables& t = out.tables;
  const auto& up = quant::kSignedDynamicThresholds;
  const auto& all = quant::kUnsignedDynamicThresholds;
  const bool a = FillBins<NegativeName>(t.negative, kSignedBins, kSignedShift, 0x80000000U, up, 127);
  const bool b = FillBins<PositiveName>(t.positive, kSignedBins, kSignedShift, 0, up, 127);
  const bool c = FillBins<UnsignedName>(t.magnitude, kUnsignedBins, kUnsignedShift, 0, all, 0);
  out.one_boundary = a && b && c;
  for (std::uint32_t i = 0; i < 256; ++i) {
    t.map[0][i] = quant::kSignedDynamicMap[i];
    t.map[1][i] = quant::kUnsignedDynamicMap[i];
    t.thresholds[0][i] = up[i];
    t.thresholds[1][i] = all[i];
  }
  return out;
}
inline constexpr CheckedTables kChecked = MakeCodecTables();
static_assert(kChecked.one_boundary, "a bin holds two boundaries: more mantissa bits are needed");

}  // namespace internal

static __device__ const CodecTables kCodec = internal::kChecked.tables;

// Where a thread block keeps the tables, in bytes from the start of its shared memory, and the room that is
// left between and behind them.
template <bool kWide>
struct CodecLayout;
template <>
struct CodecLayout<true> {
  static constexpr std::uint32_t kNegative = 0;
  static constexpr std::uint32_t kPositive = kNegative + kNegativeGap;
  static constexpr std::uint32_t kMagnitude = kPositive + 4 * kSignedBins;
  static constexpr std::uint32_t kDecode = kMagnitude + 4 * kUnsignedBins;  // rows of 256 bytes
  static constexpr std::uint32_t kGapBegin = kNegative + 4 * kSignedBins;   // free up to kPositive
  static constexpr std::uint32_t kEnd = kDecode + 256 * 256;                // free from here
};
template <>
struct CodecLayout<false> {
  static constexpr std::uint32_t kNegative = 0;
  static constexpr std::uint32_t kPositive = kNegative + 4 * kSignedBins;
  static constexpr std::uint32_t kMagnitude = kPositive + 4 * kSignedBins;
  static constexpr std::uint32_t kDecode = kMagnitude + 4 * kUnsignedBins;  // signed, then unsigned map
  static constexpr std::uint32_t kGapBegin = kPositive;
  static constexpr std::uint32_t kEnd = kDecode + 2 * 1024;
};

// The thread block's shared memory: the tables, and what the kernel keeps in the room they leave. Reads by
// the symbol itself, so that its address is part of the instruction.
extern __shared__ __align__(128) unsigned char step_shared[];

__device__ __forceinline__ std::uint32_t TableWord(int at) {
  return *reinterpret_cast<const std::uint32_t*>(step_shared + at);
}
__device__ __forceinline__ float TableFloat(int at) {
  return *reinterpret_cast<const float*>(step_shared + at);
}
__device__ __forceinline__ std::uint32_t Permute(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  std::uint32_t word;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(word) : "r"(a), "r"(b), "r"(selector));
  return word;
}

// The tables of one thread block, as one lane sees them.
template <bool kWide>
struct Codec {
  using Layout = CodecLayout<kWide>;

  std::uint32_t lane_byte;  // 4 * lane

  // All threads of the block take part; a barrier must follow before the first use.
  __device__ static void Fill(std::uint32_t thread, std::uint32_t threads) {
    auto* negative = reinterpret_cast<std::uint32_t*>(step_shared + Layout::kNegative);
    auto* positive = reinterpret_cast<std::uint32_t*>(step_shared + Layout::kPositive);
    auto* magnitude = reinterpret_cast<std::uint32_t*>(step_shared + Layout::kMagnitude);
    for (std::uint32_t i = thread; i < kUnsignedBins; i += threads) {
      if (i < kSignedBins) {
        negative[i] = kCodec.negative[i];
        positive[i] = kCodec.positive[i];
      }
      magnitude[i] = kCodec.magnitude[i];
    }
    auto* decode = reinterpret_cast<float*>(step_shared + Layout::kDecode);
    constexpr std::uint32_t kWords = kWide ? 256 * 64 : 2 * 256;
    for (std::uint32_t i = thread; i < kWords; i += threads) {
      decode[i] = kWide ? kCodec.map[i / 32 % 2][i / 64] : kCodec.map[i / 256][i % 256];
    }
  }

  // Entry of byte `byte` of `codes` in map k.
  template <int k>
  __device__ __forceinline__ float Decode(std::uint32_t codes, int byte) const {
    if constexpr (kWide) {
      const std::uint32_t at = Permute(codes, lane_byte, 0x5504U | (static_cast<std::uint32_t>(byte) << 4));
      return TableFloat(static_cast<int>(at + Layout::kDecode + 128 * k));
    } else {
      const std::uint32_t code = (codes >> (8 * byte)) & 0xFFU;
      return TableFloat(static_cast<int>(4 * code + Layout::kDecode + 1024 * k));
    }
  }

  // The code of `x` (scaled as said above) in the upper byte; of a negative one 255 - code.
  __device__ __forceinline__ std::uint32_t EncodeSigned(float x) const {
    const std::uint32_t bits = __float_as_uint(x);
    if constexpr (kWide) {  // the sign, shifted in, moves the address down by kNegativeGap
      const int at = (static_cast<int>(bits) >> (kSignedShift - 2)) & ~3;
      return TableWord(at + static_cast<int>(Layout::kPositive)) + bits;
    } else {
      const std::uint32_t at = (bits >> (kSignedShift - 2)) & 0xFFFCU;
      const std::uint32_t table = bits >> 31 != 0 ? Layout::kNegative : Layout::kPositive;
      return TableWord(static_cast<int>(at + table)) + bits;
    }
  }
  __device__ __forceinline__ std::uint32_t EncodeMagnitude(float x) const {
    const std::uint32_t bits = __float_as_uint(x);
    return TableWord(static_cast<int>(((bits >> (kUnsignedShift - 2)) & ~3U) + Layout::kMagnitude)) + bits;
  }

  // Codes of four scaled values, the first in the low byte.
  __device__ __forceinline__ std::uint32_t EncodeSigned4(const float (&x)[4]) const {
    return Pack(EncodeSigned(x[0]), EncodeSigned(x[1]), EncodeSigned(x[2]), EncodeSigned(x[3])) ^
           Permute(Permute(__float_as_uint(x[0]), __float_as_uint(x[1]), 0xFBU),
                   Permute(__float_as_uint(x[2]), __float_as_uint(x[3]), 0xFBU), 0x5410U);
  }
  __device__ __forceinline__ std::uint32_t EncodeMagnitude4(const float (&x)[4]) const {
    return Pack(EncodeMagnitude(x[0]), EncodeMagnitude(x[1]), EncodeMagnitude(x[2]), EncodeMagnitude(x[3]));
  }

 private:
  __device__ static __forceinline__ std::uint32_t Pack(std::uint32_t a, std::uint32_t b, std::uint32_t c,
                                                       std::uint32_t d) {
    return Permute(Permute(a, b, 0x73U), Permute(c, d, 0x73U), 0x5410U);
  }
};

// Nearest entry by the thresholds, NaN as 0: the reference's search, for values that the tables do not hold.
template <int k>
__device__ inline std::uint32_t EncodeByThresholds(float x) {
  std::uint32_t code = 0;
  for (std::uint32_t step = 128; step != 0; step /= 2) {
    if (x > kCodec.thresholds[k][code + step - 1]) code += step;
  }
  return code;
}

}  // namespace bitpager::kernels::cuda
