// Which session steps the tensors of a device, and what a step needs to know of the device. Any thread.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Stream.h>

#include <memory>
#include <string>

#include "client/cuda_driver.h"
#include "client/session.h"

namespace bitpager::optim {

// The UUID under which the daemon knows a device: "cpu-0", "GPU-...". Error with kUnsupported for devices
// that are neither, and where there is no driver.
[[nodiscard]] std::string UuidOf(const c10::Device& device);

// The process's session for tensors on `device`: connected when nobody holds one, ended with its last
// holder. A forked child gets one of its own. Error when no daemon can be reached.
[[nodiscard]] std::shared_ptr<client::Session> DefaultSession(const c10::Device& device);

// Error when `session` is not for tensors on `device`.
void RequireDevice(const client::Session& session, const c10::Device& device);

[[nodiscard]] inline bool IsOnGpu(const client::Session& session) {
  return session.info().device_kind == "cuda";
}

// Waits for a request that an interrupted wait left behind, through further signals. Not Ok: the session is
// over.
[[nodiscard]] wire::Status Settle(const client::Session& session);

// A GPU's current stream, and its CUstream.
struct CurrentStream {
  c10::Stream stream;
  client::StreamHandle handle;
};
// Error with kUnsupported where this libtorch does not give the handle out.
[[nodiscard]] CurrentStream CurrentStreamOf(const c10::Device& device);

}  // namespace bitpager::optim
