// CUDA's results as Status, for every call of this folder: the one place that words a CUDA error. Any thread.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <string_view>

#include "client/wire/status.h"

namespace bitpager::kernels::cuda {

// Ok for success. kOutOfMemory for a lack of memory, kUnsupported for what this device or driver does not do,
// kDeviceFault for all else. `doing` completes "cannot ...": "map 64 bytes".
[[nodiscard]] wire::Status StatusOf(cudaError_t error, std::string_view doing);
[[nodiscard]] wire::Status StatusOf(CUresult result, std::string_view doing);

// After a kernel launch: the error of the launch itself, cleared from the runtime.
[[nodiscard]] wire::Status LaunchStatus(std::string_view kernel);

// True for errors after which the context does no more work: an illegal access, a failed assertion, a lost
// device. The process must end.
[[nodiscard]] bool IsSticky(CUresult result);
[[nodiscard]] bool IsSticky(cudaError_t error);

// Of the current device.
[[nodiscard]] wire::Status CountMultiprocessors(std::uint32_t* count);

}  // namespace bitpager::kernels::cuda
