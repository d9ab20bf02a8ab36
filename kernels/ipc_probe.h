// Finds out whether GPU memory that a client lent by handle stays valid after the client is killed. Needs a
// second process, which this one starts and kills: the same program again, told to call RunIpcExporter. No
// CUDA header; the device thread makes all calls of a probe.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "client/wire/status.h"
#include "client/wire/unique_fd.h"
#include "kernels/child_process.h"
#include "kernels/device.h"

namespace bitpager::kernels {

class IpcProbe {
 public:
  // Starts `command` (its first word is the program), which calls RunIpcExporter with socket 3. Starting
  // costs a fraction of a millisecond; the other process takes some 200 ms of its own. kInternal: no process.
  [[nodiscard]] static wire::Result<std::unique_ptr<IpcProbe>> Start(Device& device,
                                                                     const std::vector<std::string>& command);
  ~IpcProbe();
  IpcProbe(const IpcProbe&) = delete;
  IpcProbe& operator=(const IpcProbe&) = delete;

  // Nothing while the answer is open; never blocks for longer than it takes to open a handle. Then once:
  // whether the memory survived, or why that could not be found out (10 s at most).
  [[nodiscard]] std::optional<wire::Result<bool>> Poll();

 private:
  explicit IpcProbe(Device& device) : device_(device) {}
  [[nodiscard]] wire::Status Import();

  Device& device_;
  ChildProcess child_;
  wire::UniqueFd socket_;
  std::optional<kernels::Import> import_;
  std::byte* seen_ = nullptr;  // scratch
  Event read_;
  std::chrono::steady_clock::time_point deadline_{};
};

// The other process's part: allocates on the GPU `uuid`, writes a pattern, sends the handle over `socket`,
// and waits to be killed. Returns an exit code.
[[nodiscard]] int RunIpcExporter(const std::string& uuid, int socket);

}  // namespace bitpager::kernels
