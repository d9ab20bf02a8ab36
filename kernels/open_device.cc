// The one place that knows which kinds of device exist.
#include "kernels/cpu/cpu_device.h"
#include "kernels/device.h"

namespace bitpager::kernels {

wire::Result<std::unique_ptr<Device>> OpenDevice(const DeviceOptions& options) {
  if (options.kind == "cpu") {
    if (options.index != 0) {
      return wire::Status(wire::Code::kNotFound,
                          "cpu device " + std::to_string(options.index) + ": there is one, index 0");
    }
    return cpu::OpenCpuDevice(options.threads);
  }
  return wire::Status(wire::Code::kUnsupported,
                      "device kind \"" + options.kind + "\" is not built in: this build has \"cpu\"");
}

}  // namespace bitpager::kernels
