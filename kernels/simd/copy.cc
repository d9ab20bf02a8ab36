#include "kernels/simd/copy.h"

#include <cstring>

namespace bitpager::kernels::simd {

void BulkCopy(void* to, const void* from, std::uint64_t bytes) {
  std::memcpy(to, from, bytes);
}

std::string InstructionSet() {
  return "scalar";
}

}  // namespace bitpager::kernels::simd
