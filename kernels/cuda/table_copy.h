// The copy of a launch's table from pinned host memory, by a kernel.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "client/wire/status.h"

namespace bitpager::kernels::cuda {

// What tables are copied in: addresses and sizes are multiples of it.
inline constexpr std::size_t kTableGranule = 16;

// Enqueues it on `stream`. Copy engines work first come first served, so that there the few KiB of a table
// would wait behind megabytes of pages that come in: a kernel reads the host by itself.
[[nodiscard]] wire::Status CopyTable(void* to, const void* pinned, std::size_t bytes, cudaStream_t stream);

}  // namespace bitpager::kernels::cuda
