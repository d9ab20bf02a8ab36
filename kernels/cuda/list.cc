#include "kernels/cuda/list.h"

#include <cstdlib>
#include <string_view>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/status.h"

namespace bitpager::kernels::cuda {
namespace {

using wire::Code;
using wire::Status;

// What this build was compiled for: "75,80,90a,120-virtual".
constexpr std::string_view kBuiltFor = BITPAGER_CUDA_ARCHITECTURES;

int Attribute(const Driver& driver, int ordinal, CUdevice_attribute which) {
  int value = 0;
  return driver.DeviceGetAttribute(&value, which, ordinal) == CUDA_SUCCESS ? value : 0;
}

// Machine code runs on its own architecture and on later ones of the same major version, "90a" only on its
// own; intermediate code on all later ones.
bool Serves(std::string_view built, int capability) {
  const int number = std::atoi(std::string(built).c_str());
  if (built.find("virtual") != std::string_view::npos) return number <= capability;
  if (built.find('a') != std::string_view::npos) return number == capability;
  return number / 10 == capability / 10 && number <= capability;
}

bool HasCodeFor(int capability) {
  for (std::string_view rest = kBuiltFor; !rest.empty();) {
    const std::size_t comma = rest.find(',');
    if (Serves(rest.substr(0, comma), capability)) return true;
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
  }
  return false;
}

std::string ProblemOf(const Driver& driver, int ordinal, int capability) {
  if (!HasCodeFor(capability)) {
    return "this build has no code for sm_" + std::to_string(capability) + ": it was built for " +
           std::string(kBuiltFor);
  }
  if (Attribute(driver, ordinal, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) == 0) {
    return "it has no virtual memory management";
  }
  if (Attribute(driver, ordinal, CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM) == 0) {
    return "it does not reach registered host memory at its own address";
  }
  if (Attribute(driver, ordinal, CU_DEVICE_ATTRIBUTE_COMPUTE_MODE) == CU_COMPUTEMODE_PROHIBITED) {
    return "its compute mode is prohibited";
  }
  return "";
}

int CountOf(const Driver& driver) {
  int count = 0;
  return driver.DeviceGetCount(&count) == CUDA_SUCCESS ? count : 0;
}

}  // namespace

int CapabilityOf(const Driver& driver, int ordinal) {
  return 10 * Attribute(driver, ordinal, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) +
         Attribute(driver, ordinal, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
}

DeviceListing Describe(const Driver& driver, int ordinal) {
  DeviceListing out;
  out.kind = "cuda";
  out.index = ordinal;
  char name[256] = "GPU";
  static_cast<void>(driver.DeviceGetName(name, sizeof(name), ordinal));
  out.name = name;
  CUuuid uuid{};
  if (driver.DeviceGetUuid(&uuid, ordinal) == CUDA_SUCCESS) out.uuid = UuidText(uuid);
  std::size_t bytes = 0;
  if (driver.DeviceTotalMem(&bytes, ordinal) == CUDA_SUCCESS) out.total_bytes = bytes;
  const int capability = CapabilityOf(driver, ordinal);
  out.architecture = "sm_" + std::to_string(capability);
  out.driver = VersionText(driver.version);
  out.problem = ProblemOf(driver, ordinal, capability);
  if (Attribute(driver, ordinal, CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS) == 0) {
    out.managed_problem = "the CPU may not touch managed memory while this device works";
  } else if (!driver.has_managed()) {
    out.managed_problem = "the driver speaks CUDA " + VersionText(driver.version) +
                          ", and prefetching to a place needs 12.2 (driver 535 or newer)";
  }
  return out;
}

wire::Result<int> FindDevice(const Driver& driver, const std::string& uuid, int index) {
  std::string known;
  for (int ordinal = 0; ordinal < CountOf(driver); ++ordinal) {
    const DeviceListing found = Describe(driver, ordinal);
    if (uuid.empty() ? ordinal == index : found.uuid == uuid) {
      if (found.problem.empty()) return ordinal;
      return Status(Code::kUnsupported,
                    "cuda device " + found.uuid + " (" + found.name + "): " + found.problem);
    }
    known += (known.empty() ? "" : ", ") + std::to_string(ordinal) + " = " + found.uuid;
  }
  return Status(Code::kNotFound, "no cuda device " + (uuid.empty() ? std::to_string(index) : uuid) +
                                     "; there are: " + (known.empty() ? "none" : known) +
                                     ". Hint: CUDA_VISIBLE_DEVICES hides devices");
}

std::string ListCudaDevices(std::vector<DeviceListing>* out) {
  const wire::Result<const Driver*> driver = LoadDriver();
  if (!driver.ok()) return driver.status().message();
  std::string why = "the driver shows no GPU. Hint: CUDA_VISIBLE_DEVICES hides devices";
  bool usable = false;
  for (int ordinal = 0; ordinal < CountOf(**driver); ++ordinal) {
    out->push_back(Describe(**driver, ordinal));
    if (out->back().problem.empty()) usable = true;
    if (!usable) why = out->back().name + ": " + out->back().problem;
  }
  return usable ? "" : why;
}

}  // namespace bitpager::kernels::cuda
