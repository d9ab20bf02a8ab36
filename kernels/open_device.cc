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

std::vector<DeviceListing> ListDevices(std::string* why_no_cuda) {
  std::vector<DeviceListing> out;
  if (wire::Result<std::unique_ptr<Device>> opened = cpu::OpenCpuDevice(1); opened.ok()) {
    const DeviceInfo info = (*opened)->Info();
    out.push_back({info.kind, 0, info.name, info.uuid, info.total_bytes, "", "", ""});
  }
  if (why_no_cuda != nullptr) *why_no_cuda = "this build has no CUDA";
  return out;
}

}  // namespace bitpager::kernels
