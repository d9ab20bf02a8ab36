// A GPU as a device: explicit frames in its memory and in pinned host memory, three streams, kernels. The
// device thread makes all calls of one device. Includes no CUDA header.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "client/wire/status.h"
#include "kernels/device.h"

namespace bitpager::kernels::cuda {

// Opens the GPU of options.uuid, or of options.index. kNotFound: no driver, no such GPU; kUnsupported: a
// driver below the floor, a GPU that this build has no code for.
[[nodiscard]] wire::Result<std::unique_ptr<Device>> OpenCudaDevice(const DeviceOptions& options);

// Appends every GPU that the driver shows. Returns why none is usable; empty when one is.
[[nodiscard]] std::string ListCudaDevices(std::vector<DeviceListing>* out);

}  // namespace bitpager::kernels::cuda
