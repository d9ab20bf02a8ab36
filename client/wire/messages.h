// Messages of the Unix SEQPACKET socket: attach, memory, extents, administration. One request, one reply, in
// order. Fixed size, trivially copyable; fds travel beside them (SCM_RIGHTS) in the order that is written at
// each message. Strings are NUL-terminated UTF-8 in fixed arrays.
#pragma once

#include <cstdint>
#include <type_traits>

#include "client/wire/records.h"
#include "client/wire/segment.h"
#include "client/wire/types.h"

namespace bitpager::wire {

inline constexpr std::uint32_t kMessageMagic = 0x47504942;  // "BIPG", little endian
inline constexpr std::size_t kNameBytes = 64;
inline constexpr std::size_t kReplyMessageBytes = 512;
inline constexpr int kMaxMessageFds = 128;              // Linux takes 253
inline constexpr std::uint32_t kMaxTensors = 1U << 22;  // of one arena

enum class MessageType : std::uint16_t {
  kHello = 1,   // fds in: pidfd of the client (when it has one). out: segment, request bell, completion bell
  kDetach = 2,  // clean end; the session's extents follow the job's linger setting
  kCreateBuffer = 3,    // fds out: sealed memfd
  kRegisterBuffer = 4,  // fds in: as BufferKind says
  kReleaseBuffer = 5,
  kCreateArena = 6,
  kCreateWeight = 7,
  kDropExtent = 8,
  kMapDomain = 9,  // fds out: read-only memfd of a share domain's frames
  kUsage = 10,     // of the session's job
  kMakeRoom = 11,  // on the device: asked again, tells how far it is
  kLimit = 20,     // administration: root and the job's owner
  kEvict = 21,
  kDrain = 22,  // root and the daemon's own uid
};

struct MessageHeader {
  std::uint32_t magic = kMessageMagic;
  std::uint16_t version = kWireVersion;
  MessageType type = MessageType::kHello;
  std::uint32_t body_bytes = 0;  // of what follows this header
  std::uint32_t sequence = 0;    // a reply carries its request's
};
static_assert(sizeof(MessageHeader) == 16);

struct HelloBody {
  std::uint32_t abi_version = 0;
  std::uint32_t rank = 0;
  char job[kNameBytes] = {};             // not empty; [A-Za-z0-9._-]
  char client[kNameBytes] = {};          // program name, for people
  double weight = 0;                     // 0: the daemon's default
  std::uint64_t device_quota_bytes = 0;  // 0: the daemon's default
  std::uint64_t host_quota_bytes = 0;    // 0: the daemon's default
  std::int64_t linger_ms = -1;           // -1: the daemon's default; 0: drop at once
  char device[kNameBytes] =
      {};  // UUID of the device that the pages are for, "cpu-0"; empty: the daemon's first
};

struct CreateBufferBody {
  std::uint64_t bytes = 0;
};
struct RegisterBufferBody {
  std::uint64_t bytes = 0;  // of the file, of the allocation behind the handle, of all physical handles
  std::uint8_t writable = 1;
  std::uint8_t sealed = 0;  // kFile
  BufferKind kind = BufferKind::kFile;
  std::uint8_t reserved[5] = {};
  std::uint64_t handle_bytes = 0;              // kDeviceVmm: of each physical handle
  unsigned char handle[kIpcHandleBytes] = {};  // kDeviceIpc
};
struct ReleaseBufferBody {
  std::uint64_t buffer = 0;
};

enum class Resume : std::uint8_t {
  kFresh = 0,     // states start at zero; kept states of the same key are dropped
  kContinue = 1,  // go on from kept states: layout and step must match (kLayoutMismatch, kStepMismatch)
};

// Key of an arena: (uid, job, rank, optimizer, bits). Units are laid out in tensor order.
struct CreateArenaBody {
  char optimizer[kNameBytes] = {};
  Rule rule = Rule::kAdam;
  StateBits bits = StateBits::k8;
  std::uint8_t evictable = 1;
  Resume resume = Resume::kFresh;
  std::uint32_t tensors = 0;
  Slice table;                    // `tensors` u64 element counts, each 1 or more
  std::uint64_t layout_hash = 0;  // of names, shapes and dtypes, by the client
  std::uint64_t step = 0;         // kContinue: the step the client's parameters are at
};

struct CreateWeightBody {
  char name[kNameBytes] = {};
  QuantType type = QuantType::kNF4;
  std::uint8_t nested = 0;
  std::uint8_t on_disk = 0;   // 1: its pages lie on disk where they are not on the device
  std::uint8_t unshared = 0;  // 1: its pages are never shared with weights that hold the same
  std::uint32_t blocksize = 64;
  std::uint64_t elements = 0;
};

struct DropExtentBody {
  std::uint64_t extent = 0;
};
struct MapDomainBody {
  std::uint64_t mapping = 0;  // LeaseFrame::mapping
};

// Room that a client is about to allocate on the device, outside the daemon.
struct MakeRoomBody {
  std::uint64_t bytes = 0;
};

struct LimitBody {
  char job[kNameBytes] = {};
  std::uint32_t uid = ~0U;  // owner; ~0: the caller
  std::uint32_t reserved = 0;
  std::uint64_t device_quota_bytes = 0;  // 0: no change; ~0: no limit but the budget
  std::uint64_t host_quota_bytes = 0;
  double weight = 0;             // 0: no change
  char device[kNameBytes] = {};  // empty: the one device that the job is on
};
// Of kUsage; a message without it asks the same and resets nothing.
struct UsageBody {
  std::uint64_t reset_peaks = 0;  // not 0: the session's peaks begin anew at what the job has now
};
struct EvictBody {
  char job[kNameBytes] = {};
  std::uint32_t uid = ~0U;
  std::uint32_t reserved = 0;
  std::uint64_t bytes = 0;       // 0: all
  char device[kNameBytes] = {};  // as in LimitBody
};

// Every reply: the outcome, then values by type, then (ok only) nothing more.
// kHello: [0] session, [1] job, [2] page bytes, [3] heartbeat interval in ms (0: none wanted), [4] linger ms,
// [5] 1: requests are waited for by the CPU, 0: streams wait on the timeline; message: "<kind> <uuid>" of the
// device.
// kCreateBuffer, kRegisterBuffer: [0] buffer, [1] bytes. kCreateArena: [0] extent, [1] pages, [2] units,
// [3] step it is at, [4] units per page. kCreateWeight: [0] extent, [1] pages, [2] blocks per page.
// kMakeRoom: [0] bytes of the device free now, [1] bytes of pages on their way out, [2] 1: no more can leave.
// kMapDomain: [0] bytes. kEvict: [0] bytes asked to leave. kUsage: see UsageValue.
struct ReplyBody {
  std::uint32_t code = 0;  // Code
  std::uint32_t reserved = 0;
  std::uint64_t values[24] = {};
  char message[kReplyMessageBytes] = {};
};

// Indices of kUsage's values. Bytes count whole pages.
enum class UsageValue : std::uint8_t {
  kResidentBytes,
  kHostBytes,
  kStateBytes,   // logical, of optimizer states
  kWeightBytes,  // logical, of quantized weights
  kResidentStateBytes,
  kResidentWeightBytes,
  kLeasedBytes,
  kLoadedBytes,  // host to device since the job came
  kStoredBytes,
  kDroppedBytes,  // left the device without a copy
  kPages,
  kShareBytes,
  kStallNs,  // steps waited for pages
  kSteps,
  kNonFiniteBlocks,
  kDeviceBudgetBytes,
  kBufferBytes,  // slabs that the daemon made for the job
  kDiskBytes,
  kDiskBudgetBytes,  // of the daemon; 0: it keeps no pages on disk
  kSharedBytes,      // of weights that others have too, in full; the job's part is in the other figures
  // The most at any moment since the session came or reset them; and since the job came.
  kPeakResidentBytes,
  kPeakHostBytes,
  kJobPeakResidentBytes,
  kJobPeakHostBytes,
  kCount,
};
static_assert(static_cast<int>(UsageValue::kCount) <= 24);

template <typename Body>
inline constexpr bool kIsBody = std::is_trivially_copyable_v<Body>&& std::is_standard_layout_v<Body>;
static_assert(kIsBody<HelloBody> && kIsBody<CreateArenaBody> && kIsBody<ReplyBody>);

}  // namespace bitpager::wire
