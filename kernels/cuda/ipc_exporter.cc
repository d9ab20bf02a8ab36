#include "kernels/cuda/ipc_exporter.h"

#include <cuda_runtime_api.h>
#include <poll.h>
#include <sys/socket.h>

#include "kernels/cuda/driver.h"
#include "kernels/cuda/list.h"

namespace bitpager::kernels::cuda {

int ExportForProbe(const std::string& uuid, int socket, std::uint64_t bytes, int pattern) {
  const wire::Result<const Driver*> driver = LoadDriver();
  if (!driver.ok()) return 2;
  const wire::Result<int> ordinal = FindDevice(**driver, uuid, 0);
  if (!ordinal.ok()) return 3;
  void* at = nullptr;
  if (cudaSetDevice(*ordinal) != cudaSuccess || cudaMalloc(&at, bytes) != cudaSuccess ||
      cudaMemset(at, pattern, bytes) != cudaSuccess || cudaDeviceSynchronize() != cudaSuccess) {
    return 4;
  }
  CUipcMemHandle handle;
  if ((*driver)->IpcGetMemHandle(&handle, reinterpret_cast<CUdeviceptr>(at)) != CUDA_SUCCESS) return 5;
  if (send(socket, &handle, sizeof(handle), MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof(handle))) return 6;
  pollfd end{socket, 0, 0};  // only a hang-up wakes it
  poll(&end, 1, 60'000);
  return 0;
}

}  // namespace bitpager::kernels::cuda
