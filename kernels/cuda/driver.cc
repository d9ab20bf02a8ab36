#include "kernels/cuda/driver.h"

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdio>

#include "kernels/cuda/status.h"

namespace bitpager::kernels::cuda {
namespace {

using wire::Code;
using wire::Status;

// Drivers of one major version run every build of that version.
constexpr int kFloor = CUDART_VERSION / 1000 * 1000;
// The first driver release of that version.
constexpr const char* kFloorRelease = kFloor == 12000 ? "525" : "580";

// Set once by Load, with the table behind it complete. Partner: DriverOrNull.
std::atomic<const Driver*> loaded{nullptr};

// The symbol's name is its form without the "_vN" at its end.
Status Find(const char* form, unsigned version, void** out) {
  std::string symbol(form);
  symbol.erase(symbol.rfind("_v"));
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(symbol.c_str(), out, version, cudaEnableDefault, &found);
  if (error == cudaSuccess && found == cudaDriverEntryPointSuccess && *out != nullptr) return {};
  return {Code::kUnsupported, "the CUDA driver has no " + symbol + " of CUDA " +
                                  VersionText(static_cast<int>(version)) + ". Hint: update the driver"};
}

Status Fill(Driver* driver) {
#define BITPAGER_FIND(name, form, version) \
  if (Status s = Find(#form, version, reinterpret_cast<void**>(&driver->name)); !s.ok()) return s;
  BITPAGER_DRIVER_FUNCTIONS(BITPAGER_FIND)
#undef BITPAGER_FIND
#define BITPAGER_FIND(name, form, version) \
  if (!Find(#form, version, reinterpret_cast<void**>(&driver->name)).ok()) driver->name = nullptr;
  BITPAGER_MANAGED_FUNCTIONS(BITPAGER_FIND)
#undef BITPAGER_FIND
  return {};
}

wire::Result<const Driver*> Load() {
  static Driver driver;
  const cudaError_t asked = cudaDriverGetVersion(&driver.version);
  if (asked != cudaSuccess || driver.version == 0) {
    return Status(Code::kNotFound, "no CUDA driver: libcuda.so.1 was not found");
  }
  if (driver.version < kFloor) {
    return Status(Code::kUnsupported, "the driver speaks CUDA " + VersionText(driver.version) +
                                          ", this build needs " + VersionText(kFloor) + " (driver " +
                                          kFloorRelease + " or newer). Hint: update the driver");
  }
  if (Status s = Fill(&driver); !s.ok()) return s;
  const CUresult begun = driver.Init(0);
  if (begun == CUDA_ERROR_NO_DEVICE)
    return Status(Code::kNotFound, "a CUDA driver, but no GPU that it may use");
  if (begun != CUDA_SUCCESS) {
    const char* text = nullptr;
    static_cast<void>(driver.GetErrorString(begun, &text));
    return Status(Code::kUnsupported, std::string("the CUDA driver does not start: ") +
                                          (text == nullptr ? "unknown error" : text));
  }
  loaded.store(&driver, std::memory_order_release);  // partner: DriverOrNull
  return &driver;
}

}  // namespace

wire::Result<const Driver*> LoadDriver() {
  static const wire::Result<const Driver*> result = Load();
  return result;
}

const Driver* DriverOrNull() {
  return loaded.load(std::memory_order_acquire);  // partner: Load
}

std::string VersionText(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string UuidText(const CUuuid& uuid) {
  std::string out = "GPU-";
  for (int i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) out += '-';
    char two[3];
    std::snprintf(two, sizeof(two), "%02x", static_cast<unsigned>(static_cast<unsigned char>(uuid.bytes[i])));
    out += two;
  }
  return out;
}

}  // namespace bitpager::kernels::cuda
