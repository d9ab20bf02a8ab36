// Records of the request and completion rings. Fixed size, trivially copyable, no pointers. A reader copies a
// record once out of shared memory and validates the copy. Units: bytes unless the name says otherwise.
#pragma once

#include <cstdint>
#include <type_traits>

#include "client/wire/types.h"

namespace bitpager::wire {

enum class Op : std::uint16_t {
  kNoop = 1,
  kStep = 2,
  kDequantize = 3,
  kQuantize = 4,
  kMovePacked = 5,
  kMoveStates = 6,
  kPrefetch = 7,
  kPhase = 8,
  kLease = 9,
  kExpect = 10,  // a hint without a body: a step comes in a moment
};
inline constexpr std::uint16_t kOpLast = 10;

// A place in a buffer of the same session. buffer 0 means "none" where an op allows it.
struct Slice {
  std::uint64_t buffer = 0;
  std::uint64_t offset = 0;
};

// Settings of one parameter group at this step.
struct GroupRecord {
  double lr = 0;
  double beta1 = 0;
  double beta2 = 0;
  double eps = 0;
  double weight_decay = 0;
};
static_assert(sizeof(GroupRecord) == 40);

// One tensor of a step. Its element count is the one registered with the arena. Param and grad are dense and
// in the same element order; param is updated in place.
struct StepEntry {
  std::uint32_t tensor = 0;  // index in the arena, ascending within a table, no index twice
  std::uint32_t group = 0;
  std::uint64_t step = 0;  // counts from 1
  Slice param;
  Slice grad;
  DType param_dtype = DType::kF32;
  DType grad_dtype = DType::kF32;
  std::uint8_t reserved[6] = {};
};
static_assert(sizeof(StepEntry) == 56);

// Table at `table`: `groups` GroupRecords, then `entries` StepEntries.
struct StepBody {
  std::uint64_t extent = 0;
  Slice table;
  std::uint32_t groups = 0;
  std::uint32_t entries = 0;
  std::uint64_t step = 0;  // the optimizer's step that this request completes; recorded when applied
  OnNonFinite on_nonfinite = OnNonFinite::kSkip;
  std::uint8_t continues = 0;  // not 0: the optimizer's step of the request before, which is counted already
  std::uint8_t reserved[6] = {};
};

// out[i] = weight[first_element + i], cast to out_dtype. first_element is a multiple of the block size.
struct DequantizeBody {
  std::uint64_t extent = 0;
  Slice out;
  std::uint64_t first_element = 0;
  std::uint64_t elements = 0;
  DType out_dtype = DType::kF32;
  std::uint8_t reserved[7] = {};
};

// Quantizes the whole weight from `in`.
struct QuantizeBody {
  std::uint64_t extent = 0;
  Slice in;
  DType in_dtype = DType::kF32;
  std::uint8_t reserved[7] = {};
};

// Moves the whole weight in its interchange layout. absmax: fp32 a block (plain) or uint8 a block (nested);
// absmax2: fp32 a group (nested only). offset: read when into_pages, else returned in Completion::values[0].
struct PackedBody {
  std::uint64_t extent = 0;
  Slice packed;
  Slice absmax;
  Slice absmax2;
  float offset = 0;
  std::uint8_t into_pages = 0;
  std::uint8_t reserved[3] = {};
};

// Moves the states of one tensor. planes[k]: n codes (8-bit) or n fp32; absmax[k]: fp32 a block (8-bit only).
// Moving into pages marks the arena as being at `step`.
struct StatesBody {
  std::uint64_t extent = 0;
  std::uint32_t tensor = 0;
  std::uint8_t into_pages = 0;
  std::uint8_t reserved[3] = {};
  std::uint64_t step = 0;
  Slice planes[2];
  Slice absmax[2];
};

// pages 0: to the end.
struct PrefetchBody {
  std::uint64_t extent = 0;
  std::uint64_t first_page = 0;
  std::uint64_t pages = 0;
};

// kLeave: forward, and optimizer states that are on the device leave it.
enum class Phase : std::uint32_t { kIdle = 0, kForward = 1, kBackward = 2, kStep = 3, kLeave = 4 };
struct PhaseBody {
  Phase phase = Phase::kIdle;
  std::uint32_t reserved = 0;
};

struct LeaseBody {
  std::uint64_t extent = 0;
};

inline constexpr std::uint32_t kRequestBodyBytes = 104;

struct RequestRecord {
  std::uint16_t version = 0;  // kWireVersion
  Op op = Op::kNoop;
  std::uint32_t reserved = 0;
  std::uint64_t ticket = 0;  // 1, 2, 3 ... in each session
  std::uint64_t ready = 0;   // the ticket waits until SegmentHeader::ready reaches this
  alignas(8) unsigned char body[kRequestBodyBytes] = {};
};
static_assert(sizeof(RequestRecord) == 128);

inline constexpr std::uint32_t kCompletionMessageBytes = 184;

// values, by op. kStep: [0] non-finite blocks, [1] least tensor with one (~0: none), [2] pages loaded,
// [3] pages stored, [4] ns from admission to the end, [5] ns in which no run was in flight (stall), [6] ns
// from its turn, its inputs ready, until the device had its first kernel.
// kQuantize, kMovePacked: [0] bits of the fp32 nested offset. kLease: [0] lease slot, [1] generation.
// kDequantize: [2] to [6] as kStep.
struct CompletionRecord {
  std::uint64_t ticket = 0;
  std::uint32_t code = 0;  // Code
  Op op = Op::kNoop;
  std::uint16_t reserved = 0;
  std::uint64_t values[7] = {};
  char message[kCompletionMessageBytes] = {};  // NUL-terminated UTF-8
};
static_assert(sizeof(CompletionRecord) == 256);

static_assert(std::is_trivially_copyable_v<RequestRecord> && std::is_trivially_copyable_v<CompletionRecord>);
static_assert(sizeof(StepBody) <= kRequestBodyBytes && sizeof(StatesBody) <= kRequestBodyBytes &&
              sizeof(PackedBody) <= kRequestBodyBytes);

}  // namespace bitpager::wire
