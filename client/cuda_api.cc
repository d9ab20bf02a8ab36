#include "client/cuda_api.h"

#include <dlfcn.h>

#include <iterator>
#include <string>

namespace bitpager::client::cuda {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

constexpr int kApiVersion = 12000;  // symbols as of CUDA 12.0, the floor of drivers

// cuGetProcAddress names without version suffixes; the fallback for dlsym has them.
struct Symbol {
  const char* name;
  const char* exported;
};
constexpr Symbol kNames[] = {
    {"cuInit", "cuInit"},
    {"cuGetErrorName", "cuGetErrorName"},
    {"cuGetErrorString", "cuGetErrorString"},
    {"cuDeviceGetCount", "cuDeviceGetCount"},
    {"cuDeviceGetUuid", "cuDeviceGetUuid_v2"},
    {"cuDeviceGetAttribute", "cuDeviceGetAttribute"},
    {"cuCtxGetCurrent", "cuCtxGetCurrent"},
    {"cuCtxGetDevice", "cuCtxGetDevice"},
    {"cuCtxSetCurrent", "cuCtxSetCurrent"},
    {"cuCtxPushCurrent", "cuCtxPushCurrent_v2"},
    {"cuCtxPopCurrent", "cuCtxPopCurrent_v2"},
    {"cuCtxSynchronize", "cuCtxSynchronize"},
    {"cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRetain"},
    {"cuPointerGetAttribute", "cuPointerGetAttribute"},
    {"cuMemGetAddressRange", "cuMemGetAddressRange_v2"},
    {"cuIpcGetMemHandle", "cuIpcGetMemHandle"},
    {"cuMemRetainAllocationHandle", "cuMemRetainAllocationHandle"},
    {"cuMemRelease", "cuMemRelease"},
    {"cuMemExportToShareableHandle", "cuMemExportToShareableHandle"},
    {"cuMemGetAllocationPropertiesFromHandle", "cuMemGetAllocationPropertiesFromHandle"},
    {"cuMemGetAllocationGranularity", "cuMemGetAllocationGranularity"},
    {"cuMemImportFromShareableHandle", "cuMemImportFromShareableHandle"},
    {"cuMemAddressReserve", "cuMemAddressReserve"},
    {"cuMemAddressFree", "cuMemAddressFree"},
    {"cuMemMap", "cuMemMap"},
    {"cuMemUnmap", "cuMemUnmap"},
    {"cuMemSetAccess", "cuMemSetAccess"},
    {"cuMemHostRegister", "cuMemHostRegister_v2"},
    {"cuMemHostUnregister", "cuMemHostUnregister"},
    {"cuMemHostGetDevicePointer", "cuMemHostGetDevicePointer_v2"},
    {"cuStreamWriteValue64", "cuStreamWriteValue64_v2"},
    {"cuStreamWaitValue64", "cuStreamWaitValue64_v2"},
    {"cuStreamIsCapturing", "cuStreamIsCapturing"},
    {"cuMemGetInfo", "cuMemGetInfo_v2"},
    {"cuStreamQuery", "cuStreamQuery"},
    {"cuStreamGetFlags", "cuStreamGetFlags"},
    {"cuThreadExchangeStreamCaptureMode", "cuThreadExchangeStreamCaptureMode"},
    {"cuStreamSynchronize", "cuStreamSynchronize"},
    {"cuStreamGetId", "cuStreamGetId"},
};
static_assert(sizeof(Functions) == std::size(kNames) * sizeof(void*));

using GetProcAddress = int (*)(const char*, void**, int, std::uint64_t, int*);  // cuGetProcAddress_v2

// The exported names first: they carry the version in the name, so that signatures here stay true.
void* Find(void* library, GetProcAddress lookup, const Symbol& symbol) {
  if (void* exported = ::dlsym(library, symbol.exported); exported != nullptr) return exported;
  void* found = nullptr;
  int how = 0;
  if (lookup != nullptr && lookup(symbol.name, &found, kApiVersion, 0, &how) == kSuccess) return found;
  return nullptr;
}

}  // namespace

Result<Functions> Load() {
  void* const library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* why = ::dlerror();
    return Status(Code::kUnsupported, std::string("GPU memory needs NVIDIA's driver: ") +
                                          (why == nullptr ? "libcuda.so.1 cannot be loaded" : why));
  }
  const auto lookup = reinterpret_cast<GetProcAddress>(::dlsym(library, "cuGetProcAddress_v2"));
  Functions functions{};
  auto* slots = reinterpret_cast<void**>(&functions);
  for (std::size_t i = 0; i < std::size(kNames); ++i) {
    slots[i] = Find(library, lookup, kNames[i]);
    if (slots[i] == nullptr) {
      return Status(Code::kUnsupported, std::string("NVIDIA's driver lacks ") + kNames[i].exported +
                                            ". Hint: install driver 525 or newer");
    }
  }
  if (const int code = functions.init(0); code != kSuccess) {
    const char* name = nullptr;
    functions.get_error_name(code, &name);
    return Status(Code::kUnsupported, std::string("NVIDIA's driver does not start: ") +
                                          (name == nullptr ? std::to_string(code) : name));
  }
  return functions;
}

}  // namespace bitpager::client::cuda
