// One optimizer step of one 256-element block, scalar: the definition that the fast paths must equal bit for
// bit. Pure functions, any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "client/wire/types.h"
#include "optim8bit/hyper.h"
#include "quant/portable.h"

namespace bitpager::optim8bit {

// State 1 keeps the sign of its value: when the nearest entry is 0 and the value is negative, the code moves
// to the entry below. (Positive values whose nearest entry is 0 already share its sign bit.)
BITPAGER_HD constexpr std::uint8_t KeepSign(std::uint8_t code, bool negative, bool entry_negative,
                                            bool positive) {
  if (negative == entry_negative) return code;
  return static_cast<std::uint8_t>(positive ? code + 1 : code - 1);
}

// A block of 8-bit states, inside a page or anywhere: codes[k] are 256 bytes, absmax[k] one float.
struct BlockStates8 {
  std::uint8_t* codes[2] = {nullptr, nullptr};
  float* absmax[2] = {nullptr, nullptr};
};
// A block of 32-bit states.
struct BlockStates32 {
  float* values[2] = {nullptr, nullptr};
};

// The client's side of the block: `elements` (1..256) parameters, updated in place, and gradients.
struct BlockTensor {
  void* param = nullptr;
  const void* grad = nullptr;
  std::size_t elements = 0;
  wire::DType param_dtype = wire::DType::kF32;
  wire::DType grad_dtype = wire::DType::kF32;
};

// True when a gradient of the block is NaN or inf.
[[nodiscard]] bool HasNonFinite(const BlockTensor& tensor);

// Re-encodes the `elements` (1..256) updated values of state k (0: signed map and sign rule; 1: unsigned
// map): codes (256, those past the end the code of zero) and absmax.
void ReferenceEncode(std::uint32_t k, const float* values, std::size_t elements, std::uint8_t* codes,
                     float* absmax);

// Codes past a short block's end are set to the code of zero, 32-bit values to 0.
void ReferenceStep8(wire::Rule rule, const Hyper& hyper, const BlockTensor& tensor,
                    const BlockStates8& states);
void ReferenceStep32(wire::Rule rule, const Hyper& hyper, const BlockTensor& tensor,
                     const BlockStates32& states);

}  // namespace bitpager::optim8bit
