// The CPU as a device: three FIFO queues with a thread each, memory from the system, vector kernels. It
// completes asynchronously like a GPU. The device thread makes all calls; queue threads run the work.
#pragma once

#include <memory>

#include "client/wire/status.h"
#include "kernels/device.h"

namespace bitpager::kernels::cpu {

// threads: compute threads; 0 = the processors this process may use. kInvalidArgument when negative or over
// 1024; kInternal when the system has no eventfd left.
[[nodiscard]] wire::Result<std::unique_ptr<Device>> OpenCpuDevice(int threads);

}  // namespace bitpager::kernels::cpu
