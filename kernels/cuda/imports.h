// Client memory in this process: files (mapped and registered, so that kernels and copies reach them),
// allocations of the GPU by inter-process handle, and ranges of the GPU by physical handles. The device
// thread.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "client/wire/status.h"
#include "client/wire/unique_fd.h"
#include "kernels/cuda/driver.h"
#include "kernels/device.h"

namespace bitpager::kernels::cuda {

class Imports {
 public:
  Imports(const Driver& driver, int ordinal);
  ~Imports();  // no queued work may use an import
  Imports(const Imports&) = delete;
  Imports& operator=(const Imports&) = delete;

  // Handles of another device: physical ones are refused, naming both devices. Inter-process ones are refused
  // where our device has no peer access to theirs; where it has, they work at the speed of the link between
  // them, and the driver does not say whose they are.
  [[nodiscard]] wire::Result<Import> Open(const ImportSource& source);
  // No queued work may use it.
  void Release(std::uint64_t id);
  // A file that shrank: what was pinned stays valid memory, but its owner no longer sees it.
  [[nodiscard]] bool Failed(std::uint64_t id) const;

 private:
  struct Opened {
    MemoryKind kind = MemoryKind::kFile;
    CUdeviceptr at = 0;
    std::uint64_t bytes = 0;                            // mapped
    bool registered = false;                            // kFile
    wire::UniqueFd watched;                             // kFile that can shrink
    std::vector<CUmemGenericAllocationHandle> handles;  // kDeviceVmm
    std::uint64_t handle_bytes = 0;                     // kDeviceVmm: of each
    std::uint64_t mapped = 0;                           // kDeviceVmm: bytes of them, from `at`
  };

  [[nodiscard]] wire::Result<void*> MapFile(const ImportSource& source, std::uint64_t bytes) const;
  [[nodiscard]] wire::Status OpenFile(const ImportSource& source, Opened* out) const;
  [[nodiscard]] wire::Status OpenIpc(const ImportSource& source, Opened* out) const;
  [[nodiscard]] wire::Status OpenVmm(const ImportSource& source, Opened* out) const;
  [[nodiscard]] wire::Status CheckIpc(const ImportSource& source, CUdeviceptr at, std::uint64_t* bytes) const;
  [[nodiscard]] wire::Status MapHandle(int fd, std::uint64_t bytes, Opened* out) const;
  [[nodiscard]] wire::Status WrongDevice(int theirs) const;
  [[nodiscard]] std::string NameOf(int ordinal) const;
  void Close(Opened& opened) const;

  const Driver& driver_;
  const int ordinal_;
  bool pins_read_only_ = false;  // the device does
  std::map<std::uint64_t, Opened> opened_;
  std::uint64_t next_ = 1;
};

}  // namespace bitpager::kernels::cuda
