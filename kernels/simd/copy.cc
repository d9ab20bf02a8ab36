#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/simd/copy.cc"
#include <hwy/foreach_target.h>
// Highway needs the line above first.
#include <hwy/highway.h>
#include <hwy/targets.h>

#include <cstring>

#include "kernels/simd/copy.h"

HWY_BEFORE_NAMESPACE();
namespace bitpager::kernels::simd::HWY_NAMESPACE {

const char* NameOfTarget() {
  return hwy::TargetName(HWY_TARGET);
}

}  // namespace bitpager::kernels::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace bitpager::kernels::simd {

HWY_EXPORT(NameOfTarget);

std::string InstructionSet() {
  return HWY_DYNAMIC_DISPATCH(NameOfTarget)();
}

// The C library's copy streams large blocks past the caches by itself, at a size tuned for the processor.
void BulkCopy(void* to, const void* from, std::uint64_t bytes) {
  std::memcpy(to, from, bytes);
}

}  // namespace bitpager::kernels::simd
#endif
