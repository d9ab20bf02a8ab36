// Memory copies for bulk data. Synchronous, any thread.
#pragma once

#include <cstdint>
#include <string>

namespace bitpager::kernels::simd {

// The C library's copy; it bypasses the caches by itself when `bytes` is very large.
void BulkCopy(void* to, const void* from, std::uint64_t bytes);

// A copy whose stores bypass the caches, for a destination that is not read again before it would have left
// them: it is not read to be written. Visible to other threads and processes on return. Ranges must not
// overlap.
void StreamCopy(void* to, const void* from, std::uint64_t bytes);

// Name of the instruction set that the kernels chose on this processor ("AVX2", "AVX3", ...).
[[nodiscard]] std::string InstructionSet();

}  // namespace bitpager::kernels::simd
