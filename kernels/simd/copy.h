// Memory copies for bulk data. Synchronous, any thread.
#pragma once

#include <cstdint>
#include <string>

namespace bitpager::kernels::simd {

// Copies with stores that bypass the caches when `bytes` is too large to stay in them; else as memcpy.
void BulkCopy(void* to, const void* from, std::uint64_t bytes);

// Name of the instruction set that the kernels chose on this processor ("AVX2", "AVX3", ...).
[[nodiscard]] std::string InstructionSet();

}  // namespace bitpager::kernels::simd
