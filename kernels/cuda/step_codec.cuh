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
// lane reads its own bank, and one byte permute puts the code into the address. Narrow form, for devices with
// little shared memory: the plain maps.
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

// Shared memory by address: constants, so that they are part of the instructions. A thread block's own
// begins at kSharedBegin or before (CheckSharedBegin).
inline constexpr std::uint32_t kSharedBegin = 1024;

extern __shared__ __align__(16) unsigned char step_shared[];

__device__ __forceinline__ void CheckSharedBegin() {
  if (__cvta_generic_to_shared(step_shared) > kSharedBegin) __trap();
}

// Where a thread block keeps the tables, and the room that is left between and behind them.
template <bool kWide>
struct CodecLayout;
template <>
struct CodecLayout<true> {
  static constexpr std::uint32_t kNegative = kSharedBegin;
  static constexpr std::uint32_t kPositive = kNegative + kNegativeGap;
  static constexpr std::uint32_t kMagnitude = kPositive + 4 * kSignedBins;
  static constexpr std::uint32_t kDecode = 0x20000;  // rows of 256 bytes; of the address, byte 1 is the code
  static constexpr std::uint32_t kEnd = kDecode + 256 * 256;
  static constexpr std::uint32_t kRoom0At = kNegative + 4 * kSignedBins;
  static constexpr std::uint32_t kRoom0 = kPositive - kRoom0At;
  static constexpr std::uint32_t kRoom1At = kMagnitude + 4 * kUnsignedBins;
  static constexpr std::uint32_t kRoom1 = kDecode - kRoom1At;
};
template <>
struct CodecLayout<false> {
  static constexpr std::uint32_t kNegative = kSharedBegin;
  static constexpr std::uint32_t kPositive = kNegative + 4 * kSignedBins;
  static constexpr std::uint32_t kMagnitude = kPositive + 4 * kSignedBins;
  static constexpr std::uint32_t kDecode = kMagnitude + 4 * kUnsignedBins;  // signed, then unsigned map
  static constexpr std::uint32_t kEnd = kDecode + 2 * 1024;
  static constexpr std::uint32_t kRoom0 = 0;
  static constexpr std::uint32_t kRoom1 = 0;
};

// Not volatile: tables do not change behind the barrier.
template <std::uint32_t kOffset>
__device__ __forceinline__ std::uint32_t TableWord(std::uint32_t at) {
  std::uint32_t word;
  asm("ld.shared.u32 %0, [%1+%2];" : "=r"(word) : "r"(at), "n"(kOffset));
  return word;
}
__device__ __forceinline__ void StoreTableWord(std::uint32_t at, std::uint32_t word) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(word) : "memory");
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

  std::uint32_t at_code_0;  // address of this lane's signed decode entry of code 0 (wide form)

  __device__ explicit Codec(std::uint32_t lane) : at_code_0(Layout::kDecode + 4 * lane) {}

  // All threads of the block take part; a barrier must follow before the first use.
  __device__ static void Fill(std::uint32_t thread, std::uint32_t threads) {
#pragma unroll 4  // several loads at once: small launches wait for this
    for (std::uint32_t i = thread; i < kUnsignedBins; i += threads) {
      if (i < kSignedBins) {
        StoreTableWord(Layout::kNegative + 4 * i, kCodec.negative[i]);
        StoreTableWord(Layout::kPositive + 4 * i, kCodec.positive[i]);
      }
      StoreTableWord(Layout::kMagnitude + 4 * i, kCodec.magnitude[i]);
    }
    constexpr std::uint32_t kWords = kWide ? 256 * 64 : 2 * 256;
#pragma unroll 8
    for (std::uint32_t i = thread; i < kWords; i += threads) {
      const float entry = kWide ? kCodec.map[i / 32 % 2][i / 64] : kCodec.map[i / 256][i % 256];
      StoreTableWord(Layout::kDecode + 4 * i, __float_as_uint(entry));
    }
  }

  // Entry of byte `byte` of `codes` in map k.
  template <int k>
  __device__ __forceinline__ float Decode(std::uint32_t codes, int byte) const {
    if constexpr (kWide) {
      const std::uint32_t at = Permute(codes, at_code_0, 0x7604U | (static_cast<std::uint32_t>(byte) << 4));
      return __uint_as_float(TableWord<128 * k>(at));
    } else {
      const std::uint32_t code = (codes >> (8 * byte)) & 0xFFU;
      return __uint_as_float(TableWord<Layout::kDecode + 1024 * k>(4 * code));
    }
  }

  // The code of `x` (scaled as said above) in the upper byte; of a negative one 255 - code.
  __device__ __forceinline__ std::uint32_t EncodeSigned(float x) const {
    const std::uint32_t bits = __float_as_uint(x);
    if constexpr (kWide) {  // the sign, shifted in, moves the address down by kNegativeGap
      const int at = ((static_cast<int>(bits) >> (kSignedShift - 2)) + static_cast<int>(kNegativeGap)) & ~3;
      return TableWord<Layout::kNegative>(static_cast<std::uint32_t>(at)) + bits;
    } else {
      const std::uint32_t at = (bits >> (kSignedShift - 2)) & 0xFFFCU;
      return TableWord<0>(at + (bits >> 31 != 0 ? Layout::kNegative : Layout::kPositive)) + bits;
    }
  }
  __device__ __forceinline__ std::uint32_t EncodeMagnitude(float x) const {
    const std::uint32_t bits = __float_as_uint(x);
    return TableWord<Layout::kMagnitude>((bits >> (kUnsignedShift - 2)) & ~3U) + bits;
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
