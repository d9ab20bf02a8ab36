// The one place that knows which kinds of device exist.
#include "kernels/cpu/cpu_device.h"
#include "kernels/device.h"
#ifdef BITPAGER_WITH_CUDA
#include "kernels/cuda/cuda_device.h"
#endif

namespace bitpager::kernels {
namespace {

wire::Result<std::unique_ptr<Device>> OpenCpu(const DeviceOptions& options) {
  if (options.index != 0) {
    return wire::Status(wire::Code::kNotFound,
                        "cpu device " + std::to_string(options.index) + ": there is one, index 0");
  }
  return cpu::OpenCpuDevice(options.threads);
}

wire::Result<std::unique_ptr<Device>> OpenCuda(const DeviceOptions& options) {
#ifdef BITPAGER_WITH_CUDA
  return cuda::OpenCudaDevice(options);
#else
  return wire::Status(wire::Code::kUnsupported,
                      "device kind \"" + options.kind + "\" is not built in: this build has \"cpu\"");
#endif
}

}  // namespace

wire::Result<std::unique_ptr<Device>> OpenDevice(const DeviceOptions& options) {
  if (options.kind == "cpu") return OpenCpu(options);
  if (options.kind == "cuda") return OpenCuda(options);
  return wire::Status(wire::Code::kUnsupported,
                      "device kind \"" + options.kind + "\" is unknown: \"cpu\" or \"cuda\"");
}

std::vector<DeviceListing> ListDevices(std::string* why_no_cuda) {
  std::vector<DeviceListing> out;
  if (wire::Result<std::unique_ptr<Device>> opened = cpu::OpenCpuDevice(1); opened.ok()) {
    const DeviceInfo info = (*opened)->Info();
    out.push_back({info.kind, 0, info.name, info.uuid, info.total_bytes, "", "", ""});
  }
#ifdef BITPAGER_WITH_CUDA
  const std::string why = cuda::ListCudaDevices(&out);
#else
  const std::string why = "this build has no CUDA";
#endif
  if (why_no_cuda != nullptr) *why_no_cuda = why;
  return out;
}

}  // namespace bitpager::kernels
