// What the client asks of the CUDA driver, without CUDA's headers: whose memory a pointer is, handles to pass
// it on, and words of the session's segment that streams write and wait for. System() loads libcuda.so.1 at
// its first use; where there is none, everything else of the library works. The driver knows any thread; each
// call concerns the calling thread's current context.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "client/wire/status.h"
#include "client/wire/types.h"
#include "client/wire/unique_fd.h"

namespace bitpager::client {

using DeviceAddress = std::uint64_t;
using StreamHandle = void*;  // CUstream; null: the legacy default stream of the current context

// One allocation, or one mapped piece of a reserved range.
struct DeviceAllocation {
  DeviceAddress base = 0;
  std::uint64_t bytes = 0;
  int ordinal = -1;          // of the device that holds it
  std::uint64_t id = 0;      // differs when another allocation comes to lie at the same address
  bool ipc_capable = false;  // its inter-process handle can be had
  bool is_managed = false;
};

// Memory of another process, mapped here.
struct DeviceRange {
  DeviceAddress at = 0;
  std::uint64_t bytes = 0;  // as mapped: whole pieces of the device's granularity
};

class CudaDriver {
 public:
  using IpcHandle = std::array<unsigned char, wire::kIpcHandleBytes>;

  virtual ~CudaDriver() = default;
  CudaDriver() = default;
  CudaDriver(const CudaDriver&) = delete;
  CudaDriver& operator=(const CudaDriver&) = delete;

  // The machine's driver. kUnsupported: none, or one without what is needed; says which.
  [[nodiscard]] static wire::Result<CudaDriver*> System();

  // ---- devices, by the driver's ordinals in this process (CUDA_VISIBLE_DEVICES applies) ----
  [[nodiscard]] virtual wire::Result<int> DeviceCount() = 0;
  // "GPU-" and the UUID in the usual notation.
  [[nodiscard]] virtual wire::Result<std::string> Uuid(int ordinal) = 0;
  // Of the calling thread's current context. kInvalidArgument: there is none.
  [[nodiscard]] virtual wire::Result<int> CurrentDevice() = 0;
  // Makes the device's primary context, which the CUDA runtime uses too, the calling thread's current one.
  [[nodiscard]] virtual wire::Status UsePrimaryContext(int ordinal) = 0;
  // Streams of the device can write and wait for 64-bit words.
  [[nodiscard]] virtual bool HasStreamWords(int ordinal) = 0;

  // ---- memory ----
  // kInvalidArgument: no device memory at this address.
  [[nodiscard]] virtual wire::Result<DeviceAllocation> Describe(DeviceAddress at) = 0;
  // The id alone, of what Describe called ipc_capable or not; 0 when nothing lies there any more.
  [[nodiscard]] virtual std::uint64_t AllocationId(DeviceAddress at, bool ipc_capable) = 0;
  [[nodiscard]] virtual wire::Result<IpcHandle> GetIpcHandle(DeviceAddress base) = 0;
  // A descriptor of the physical memory mapped at `at`. kNotFound: nothing is mapped there; kUnsupported: it
  // was made without the right to pass it on.
  [[nodiscard]] virtual wire::Result<wire::UniqueFd> ExportMapped(DeviceAddress at) = 0;

  // Maps the physical memory that `fd` stands for, of at least `bytes`, for the device `ordinal`. The caller
  // keeps the fd. kOutOfMemory, kDeviceFault.
  [[nodiscard]] virtual wire::Result<DeviceRange> MapShared(int fd, std::uint64_t bytes, int ordinal) = 0;
  // Nothing reads the range any more.
  virtual void UnmapShared(const DeviceRange& range) = 0;

  // ---- words that streams reach ----
  // Makes host memory (page aligned) known to the current context's device; its address there.
  [[nodiscard]] virtual wire::Result<DeviceAddress> RegisterHost(void* at, std::uint64_t bytes) = 0;
  // Waits for the work of the context that registered it, then ends the registration.
  virtual void UnregisterHost(void* at) = 0;
  // Behind the stream's work so far: stores `value` / goes on once the word, as a signed difference, has
  // reached `value`.
  [[nodiscard]] virtual wire::Status WriteWord(StreamHandle stream, DeviceAddress word,
                                               std::uint64_t value) = 0;
  [[nodiscard]] virtual wire::Status WaitWord(StreamHandle stream, DeviceAddress word,
                                              std::uint64_t value) = 0;
  // Unique among all streams that ever were.
  [[nodiscard]] virtual std::uint64_t StreamId(StreamHandle stream) = 0;
  [[nodiscard]] virtual wire::Result<bool> IsCapturing(StreamHandle stream) = 0;
  // Whether all that the stream was given, and all that work given to it now would wait for, is done; false
  // when it cannot be told.
  [[nodiscard]] virtual bool IsIdle(StreamHandle stream) = 0;
  // kDeviceFault: the context that registered `host` has failed, and nothing that its streams hold runs any
  // more. Ok too where it cannot be told. Waits for nothing.
  [[nodiscard]] virtual wire::Status ContextFault(const void* host) = 0;
  // For machines whose streams cannot wait for words.
  [[nodiscard]] virtual wire::Status Synchronize(StreamHandle stream) = 0;

  // The ordinal of the device with this UUID. kNotFound names those that there are.
  [[nodiscard]] wire::Result<int> OrdinalOf(const std::string& uuid);
};

}  // namespace bitpager::client
