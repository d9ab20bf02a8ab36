// The shared segment of one session: a sealed memfd that the daemon makes and both sides map. Fixed offsets,
// no pointers. Each word has one writer; its reader trusts nothing it finds here.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "client/wire/records.h"

namespace bitpager::wire {

inline constexpr std::uint16_t kWireVersion = 1;
inline constexpr std::uint64_t kSegmentMagic = 0x3152474150544942ULL;  // "BITPAGR1", little endian
inline constexpr std::uint32_t kRequestSlots = 256;                    // a power of two
inline constexpr std::uint32_t kCompletionSlots = 256;  // a power of two; as many as tickets may be out
inline constexpr std::uint32_t kLeaseSlots = 4096;
inline constexpr std::uint32_t kLeaseFrames = 1U << 17;  // entries of the frame table, all leases together
inline constexpr std::size_t kCacheLine = 64;

// `done` of a session that is over: whatever waits for a ticket goes on. Streams compare the signed
// difference, so this is the largest value that they take for later than any ticket.
inline constexpr std::uint64_t kDoneReleased = ~std::uint64_t{0} >> 1;

using Word = std::atomic<std::uint64_t>;
static_assert(Word::is_always_lock_free && sizeof(Word) == 8);

struct alignas(kCacheLine) LineWord {
  Word word{0};
};

// Constant after the daemon made it: magic to completion_slots. All others: the writer is named.
struct SegmentHeader {
  std::uint64_t magic = kSegmentMagic;
  std::uint16_t version = kWireVersion;
  std::uint16_t reserved = 0;
  std::uint32_t request_slots = kRequestSlots;
  std::uint32_t completion_slots = kCompletionSlots;
  std::uint32_t lease_slots = kLeaseSlots;
  std::uint64_t total_bytes = 0;
  std::uint64_t page_bytes = 0;

  LineWord ready;            // client (its stream): the newest ticket whose inputs are ready
  LineWord done;             // daemon (its device): the newest ticket applied or failed
  LineWord failed;           // daemon: Code that ended the session; 0 while it lives
  LineWord applied_step;     // daemon: ticket of the last step applied whole
  LineWord heartbeat;        // client, where its pid is hidden: counts up
  LineWord request_tail;     // client: requests written
  LineWord request_head;     // daemon: requests taken
  LineWord completion_tail;  // daemon: completions written
  LineWord completion_head;  // client: completions taken
  LineWord daemon_sleeps;    // daemon: 1 when it needs the doorbell; pairs with the client's fence after push
  LineWord client_sleeps;    // client: 1 when it needs the doorbell; pairs with the daemon's fence after push
};

// One lease. The client stores `in_use`, then loads `revoke`; the daemon stores `revoke`, then loads
// `in_use`; all sequentially consistent, so at least one of them sees the other. Uses are numbered: the
// frames are read while `in_use` and `ended` differ. What the processor reads it ends by putting `in_use`
// back; a stream ends its use by writing `ended` behind the kernels.
struct alignas(kCacheLine) LeaseSlot {
  Word in_use{0};                 // client: the newest use that began
  Word revoke{0};                 // daemon: the newest generation that was revoked
  Word generation{0};             // daemon: of the lease in this slot
  std::uint64_t extent = 0;       // daemon
  std::uint64_t first_frame = 0;  // daemon: index into the frame table
  std::uint64_t frames = 0;       // daemon: pages of the weight, in order
  Word ended{0};                  // client (its stream): the newest use that ended
};
static_assert(sizeof(LeaseSlot) == kCacheLine);

// Where a leased page lies: `offset` bytes into the mapping `mapping` (asked for over the socket).
struct LeaseFrame {
  std::uint64_t mapping = 0;
  std::uint64_t offset = 0;
};

[[nodiscard]] constexpr std::size_t AlignUp(std::size_t n, std::size_t to) {
  return (n + to - 1) / to * to;
}

inline constexpr std::size_t kRequestsOffset = AlignUp(sizeof(SegmentHeader), 4096);
inline constexpr std::size_t kCompletionsOffset =
    AlignUp(kRequestsOffset + kRequestSlots * sizeof(RequestRecord), 4096);
inline constexpr std::size_t kLeaseSlotsOffset =
    AlignUp(kCompletionsOffset + kCompletionSlots * sizeof(CompletionRecord), 4096);
inline constexpr std::size_t kLeaseFramesOffset =
    AlignUp(kLeaseSlotsOffset + kLeaseSlots * sizeof(LeaseSlot), 4096);
inline constexpr std::size_t kSegmentBytes =
    AlignUp(kLeaseFramesOffset + kLeaseFrames * sizeof(LeaseFrame), 4096);

// Typed places in a mapped segment.
struct SegmentView {
  std::byte* base = nullptr;
  [[nodiscard]] SegmentHeader& header() const { return *reinterpret_cast<SegmentHeader*>(base); }
  [[nodiscard]] RequestRecord* requests() const {
    return reinterpret_cast<RequestRecord*>(base + kRequestsOffset);
  }
  [[nodiscard]] CompletionRecord* completions() const {
    return reinterpret_cast<CompletionRecord*>(base + kCompletionsOffset);
  }
  [[nodiscard]] LeaseSlot* leases() const { return reinterpret_cast<LeaseSlot*>(base + kLeaseSlotsOffset); }
  [[nodiscard]] LeaseFrame* lease_frames() const {
    return reinterpret_cast<LeaseFrame*>(base + kLeaseFramesOffset);
  }
};

}  // namespace bitpager::wire
