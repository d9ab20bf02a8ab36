// Several small pages are copied side by side: a processor follows each stream only to the end of its page,
// and one stream does not fill its queue of misses.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/copy.cc"
#include <hwy/foreach_target.h>
// Highway needs the line above first.
#include <hwy/highway.h>
#include <hwy/targets.h>
#include <xmmintrin.h>

#include <algorithm>
#include <cstring>

#include "kernels/simd/copy.h"

HWY_BEFORE_NAMESPACE();
namespace bitpager::kernels::simd::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

inline constexpr std::uint64_t kLineBytes = 64;
inline constexpr std::uint64_t kPageBytes = 4096;
inline constexpr std::uint64_t kStreams = 4;
inline constexpr std::uint64_t kAheadBytes = 512;

// One line, to an aligned place.
HWY_INLINE HWY_ATTR void StreamLine(std::uint8_t* to, const std::uint8_t* from) {
  const hn::CappedTag<std::uint8_t, kLineBytes> d;
  for (std::size_t i = 0; i < kLineBytes; i += hn::Lanes(d)) hn::Stream(hn::LoadU(d, from + i), d, to + i);
}

// `lines` whole lines, to an aligned place.
HWY_ATTR void StreamLines(std::uint8_t* to, const std::uint8_t* from, std::uint64_t lines) {
  constexpr std::uint64_t kGroupBytes = kStreams * kPageBytes;
  const std::uint64_t bytes = lines * kLineBytes;
  std::uint64_t at = 0;
  for (; at + kGroupBytes <= bytes; at += kGroupBytes) {
    for (std::uint64_t i = 0; i < kPageBytes; i += kLineBytes) {
      for (std::uint64_t page = at + i; page < at + i + kGroupBytes; page += kPageBytes) {
        _mm_prefetch(reinterpret_cast<const char*>(from + page + kAheadBytes), _MM_HINT_T0);
        StreamLine(to + page, from + page);
      }
    }
  }
  for (; at < bytes; at += kLineBytes) StreamLine(to + at, from + at);
}

const char* NameOfTarget() {
  return hwy::TargetName(HWY_TARGET);
}

}  // namespace bitpager::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bitpager::kernels::simd {

HWY_EXPORT(NameOfTarget);
HWY_EXPORT(StreamLines);

std::string InstructionSet() {
  return HWY_DYNAMIC_DISPATCH(NameOfTarget)();
}

// The C library's copy streams large blocks past the caches by itself, at a size tuned for the processor.
void BulkCopy(void* to, const void* from, std::uint64_t bytes) {
  std::memcpy(to, from, bytes);
}

void StreamCopy(void* to, const void* from, std::uint64_t bytes) {
  auto* out = static_cast<std::uint8_t*>(to);
  const auto* in = static_cast<const std::uint8_t*>(from);
  const std::uint64_t past_line = reinterpret_cast<std::uintptr_t>(to) % 64;
  const std::uint64_t head = std::min<std::uint64_t>(bytes, past_line == 0 ? 0 : 64 - past_line);
  const std::uint64_t lines = (bytes - head) / 64;
  std::memcpy(out, in, head);
  HWY_DYNAMIC_DISPATCH(StreamLines)(out + head, in + head, lines);
  const std::uint64_t done = head + 64 * lines;
  std::memcpy(out + done, in + done, bytes - done);
  _mm_sfence();  // such stores are in no order of their own
}

}  // namespace bitpager::kernels::simd
#endif
