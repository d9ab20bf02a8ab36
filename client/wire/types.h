// Words that every folder shares: element types, optimizer rules, weight formats, and their sizes.
// Values travel in records and through the C ABI: append only, never renumber.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bitpager::wire {

enum class DType : std::uint8_t { kF32 = 0, kF16 = 1, kBF16 = 2, kU8 = 3 };
[[nodiscard]] constexpr std::size_t DTypeBytes(DType t) {
  return t == DType::kF32 ? 4 : (t == DType::kU8 ? 1 : 2);
}

// The update rule of a block. Adam and AdamW are one rule: the decay is decoupled in both.
enum class Rule : std::uint8_t { kAdam = 0, kLion = 1 };
// How states are stored: 8-bit codes and an absmax per 256 elements, or plain fp32.
enum class StateBits : std::uint8_t { k8 = 8, k32 = 32 };
// States per parameter element: Adam 2 (m, v), Lion 1 (m).
[[nodiscard]] constexpr std::uint32_t StatesOf(Rule rule) {
  return rule == Rule::kAdam ? 2 : 1;
}

enum class QuantType : std::uint8_t { kNF4 = 0, kFP4 = 1 };

// What a step does with a block whose gradient holds NaN or inf.
enum class OnNonFinite : std::uint8_t {
  kSkip = 0,       // leave parameter and states of the block untouched, and count it
  kPropagate = 1,  // compute as if nothing were wrong
};

// What an extent holds; also the label `kind` of every figure.
enum class ExtentKind : std::uint8_t { kOptimizerState = 0, kQuantizedWeight = 1 };

// What memory a client registers.
enum class BufferKind : std::uint8_t {
  kFile = 0,       // a memfd or shm_open file; one fd
  kDeviceIpc = 1,  // one allocation of a GPU, by its inter-process handle; no fd
  kDeviceVmm = 2,  // a contiguous range of a GPU, by fds of the physical handles behind it, in order
};
inline constexpr std::size_t kIpcHandleBytes = 64;

// Elements in one unit of optimizer state: the block that shares an absmax.
inline constexpr std::uint32_t kStateBlock = 256;

}  // namespace bitpager::wire
