// Which GPUs this machine has and whether this build can use them. No CUDA context is made. Any thread.
#pragma once

#include <string>
#include <vector>

#include "client/wire/status.h"
#include "kernels/cuda/driver.h"
#include "kernels/device.h"

namespace bitpager::kernels::cuda {

// What the driver says of one device; `problem` when this build holds no code for it.
[[nodiscard]] DeviceListing Describe(const Driver& driver, int ordinal);

// 10 * major + minor: 90 for sm_90; 0 when the driver does not say.
[[nodiscard]] int CapabilityOf(const Driver& driver, int ordinal);

// The device of `uuid`, or, when that is empty, of `index`. kNotFound names those that there are;
// kUnsupported when this build holds no code for it.
[[nodiscard]] wire::Result<int> FindDevice(const Driver& driver, const std::string& uuid, int index);

}  // namespace bitpager::kernels::cuda
