// The driver's functions that this folder calls, looked up at run time, so that one binary starts with and
// without a driver. Loaded once; any thread.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>

#include <string>

#include "client/wire/status.h"

namespace bitpager::kernels::cuda {

// X(member, form of the function: symbol and the "_vN" of its type, least CUDA version that has this form)
#define BITPAGER_DRIVER_FUNCTIONS(X)                                                            \
  X(Init, cuInit_v2000, 2000)                                                                   \
  X(GetErrorName, cuGetErrorName_v6000, 6000)                                                   \
  X(GetErrorString, cuGetErrorString_v6000, 6000)                                               \
  X(DeviceGet, cuDeviceGet_v2000, 2000)                                                         \
  X(DeviceGetCount, cuDeviceGetCount_v2000, 2000)                                               \
  X(DeviceGetName, cuDeviceGetName_v2000, 2000)                                                 \
  X(DeviceGetUuid, cuDeviceGetUuid_v11040, 11040)                                               \
  X(DeviceTotalMem, cuDeviceTotalMem_v3020, 3020)                                               \
  X(DeviceGetAttribute, cuDeviceGetAttribute_v2000, 2000)                                       \
  X(CtxGetCurrent, cuCtxGetCurrent_v4000, 4000)                                                 \
  X(CtxSetCurrent, cuCtxSetCurrent_v4000, 4000)                                                 \
  X(MemAddressReserve, cuMemAddressReserve_v10020, 10020)                                       \
  X(MemAddressFree, cuMemAddressFree_v10020, 10020)                                             \
  X(MemCreate, cuMemCreate_v10020, 10020)                                                       \
  X(MemRelease, cuMemRelease_v10020, 10020)                                                     \
  X(MemMap, cuMemMap_v10020, 10020)                                                             \
  X(MemUnmap, cuMemUnmap_v10020, 10020)                                                         \
  X(MemSetAccess, cuMemSetAccess_v10020, 10020)                                                 \
  X(MemGetAllocationGranularity, cuMemGetAllocationGranularity_v10020, 10020)                   \
  X(MemExportToShareableHandle, cuMemExportToShareableHandle_v10020, 10020)                     \
  X(MemImportFromShareableHandle, cuMemImportFromShareableHandle_v10020, 10020)                 \
  X(MemGetAllocationPropertiesFromHandle, cuMemGetAllocationPropertiesFromHandle_v10020, 10020) \
  X(MemHostRegister, cuMemHostRegister_v6050, 6050)                                             \
  X(MemHostUnregister, cuMemHostUnregister_v4000, 4000)                                         \
  X(MemGetAddressRange, cuMemGetAddressRange_v3020, 3020)                                       \
  X(PointerGetAttribute, cuPointerGetAttribute_v4000, 4000)                                     \
  X(IpcGetMemHandle, cuIpcGetMemHandle_v4010, 4010)                                             \
  X(IpcOpenMemHandle, cuIpcOpenMemHandle_v11000, 11000)                                         \
  X(IpcCloseMemHandle, cuIpcCloseMemHandle_v4010, 4010)                                         \
  X(StreamWriteValue64, cuStreamWriteValue64_v11070, 11070)                                     \
  X(StreamWaitValue64, cuStreamWaitValue64_v11070, 11070)

// The same, of those that managed frames alone need: null where the driver lacks them.
#define BITPAGER_MANAGED_FUNCTIONS(X)                   \
  X(MemPrefetchAsync, cuMemPrefetchAsync_v12020, 12020) \
  X(MemAdvise, cuMemAdvise_v12020, 12020)

struct Driver {
#define BITPAGER_MEMBER(name, form, version) PFN_##form name = nullptr;
  BITPAGER_DRIVER_FUNCTIONS(BITPAGER_MEMBER)
  BITPAGER_MANAGED_FUNCTIONS(BITPAGER_MEMBER)
#undef BITPAGER_MEMBER
  [[nodiscard]] bool has_managed() const {
    return MemPrefetchAsync != nullptr && MemAdvise != nullptr;
  }
  int version = 0;  // 1000 * major + 10 * minor of the CUDA that the driver speaks
};

// The driver, initialised. kNotFound when none is installed; kUnsupported when it is older than this build
// needs or lacks a function; else what cuInit says. Says which in words.
[[nodiscard]] wire::Result<const Driver*> LoadDriver();
// The same without words, for error paths. Null when there is no usable driver.
[[nodiscard]] const Driver* DriverOrNull();

// "13.0" of 13000.
[[nodiscard]] std::string VersionText(int version);
// "GPU-" and the UUID in the form that nvidia-smi prints.
[[nodiscard]] std::string UuidText(const CUuuid& uuid);

}  // namespace bitpager::kernels::cuda
