// The other process of an IpcProbe (kernels/ipc_probe.h). Includes no CUDA header.
#pragma once

#include <cstdint>
#include <string>

namespace bitpager::kernels::cuda {

// Allocates `bytes` on the GPU `uuid`, fills them with `pattern`, sends their handle over `socket`, and waits
// until the other end hangs up or kills this process. Returns an exit code: 0 when the handle was sent.
[[nodiscard]] int ExportForProbe(const std::string& uuid, int socket, std::uint64_t bytes, int pattern);

}  // namespace bitpager::kernels::cuda
