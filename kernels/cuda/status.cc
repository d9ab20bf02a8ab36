#include "kernels/cuda/status.h"

#include <string>

#include "kernels/cuda/driver.h"

namespace bitpager::kernels::cuda {
namespace {

using wire::Code;
using wire::Status;

// The runtime's codes below 1000 have the driver's numbers, so one table serves both.
Code CodeOf(int error) {
  switch (error) {
    case CUDA_ERROR_OUT_OF_MEMORY:
      return Code::kOutOfMemory;
    case CUDA_ERROR_NOT_SUPPORTED:
    case CUDA_ERROR_NO_BINARY_FOR_GPU:
    case CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
    case CUDA_ERROR_PEER_ACCESS_UNSUPPORTED:
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
    case CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE:
      return Code::kUnsupported;
    case CUDA_ERROR_NOT_PERMITTED:
      return Code::kPermissionDenied;
    case CUDA_ERROR_OPERATING_SYSTEM:
      return Code::kInternal;
    default:
      return Code::kDeviceFault;
  }
}

const char* HintOf(int error) {
  switch (error) {
    case CUDA_ERROR_NO_BINARY_FOR_GPU:
    case CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
      return ". Hint: this build holds no code for this GPU; build with its architecture";
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
      return ". Hint: the driver was updated under a running system; reboot";
    case CUDA_ERROR_MPS_CONNECTION_FAILED:
    case CUDA_ERROR_MPS_RPC_FAILURE:
    case CUDA_ERROR_MPS_SERVER_NOT_READY:
    case CUDA_ERROR_MPS_MAX_CLIENTS_REACHED:
    case CUDA_ERROR_MPS_CLIENT_TERMINATED:
      return ". Hint: see the log of the MPS server";
    case CUDA_ERROR_ECC_UNCORRECTABLE:
      return ". Hint: the GPU's memory failed; see nvidia-smi -q";
    default:
      return "";
  }
}

Status Made(int error, std::string_view doing, const char* name, const char* text) {
  std::string message = "cannot " + std::string(doing) + ": " + (text == nullptr ? "CUDA error" : text) +
                        " (" + (name == nullptr ? std::to_string(error) : name) + ")" + HintOf(error);
  return {CodeOf(error), std::move(message)};
}

}  // namespace

Status StatusOf(cudaError_t error, std::string_view doing) {
  if (error == cudaSuccess) return {};
  return Made(static_cast<int>(error), doing, cudaGetErrorName(error), cudaGetErrorString(error));
}

Status StatusOf(CUresult result, std::string_view doing) {
  if (result == CUDA_SUCCESS) return {};
  const char* name = nullptr;
  const char* text = nullptr;
  if (const Driver* driver = DriverOrNull(); driver != nullptr) {
    static_cast<void>(driver->GetErrorName(result, &name));
    static_cast<void>(driver->GetErrorString(result, &text));
  }
  return Made(static_cast<int>(result), doing, name, text);
}

Status LaunchStatus(std::string_view kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return {};
  return StatusOf(error, "launch " + std::string(kernel));
}

bool IsSticky(CUresult result) {
  switch (result) {
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_LAUNCH_FAILED:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_NVLINK_UNCORRECTABLE:
    case CUDA_ERROR_CONTEXT_IS_DESTROYED:
    case CUDA_ERROR_DEINITIALIZED:
    case CUDA_ERROR_DEVICE_UNAVAILABLE:
    case CUDA_ERROR_MPS_CLIENT_TERMINATED:
    case CUDA_ERROR_EXTERNAL_DEVICE:
      return true;
    default:
      return false;
  }
}

bool IsSticky(cudaError_t error) {
  return IsSticky(static_cast<CUresult>(error));
}

wire::Status CountMultiprocessors(std::uint32_t* count) {
  int device = 0;
  int found = 0;
  if (wire::Status s = StatusOf(cudaGetDevice(&device), "find the current device"); !s.ok()) return s;
  wire::Status s = StatusOf(cudaDeviceGetAttribute(&found, cudaDevAttrMultiProcessorCount, device),
                            "count multiprocessors");
  if (s.ok()) *count = static_cast<std::uint32_t>(found);
  return s;
}

}  // namespace bitpager::kernels::cuda
