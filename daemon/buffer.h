// A client's memory as the daemon sees it: mapped once, released when its last user lets go. Works hold
// shared ownership, so memory stays mapped until the device has finished with it, whatever its client does.
// Dispatcher thread.
#pragma once

#include <cstdint>
#include <memory>

#include "client/wire/ids.h"
#include "kernels/device.h"

namespace bitpager::daemon {

class Buffer {
 public:
  // `own`: the daemon made it (a slab); its bytes count against the job's host quota.
  Buffer(kernels::Device& device, wire::BufferId id, const kernels::Import& import, bool writable, bool own)
      : device_(device), id_(id), import_(import), writable_(writable), own_(own) {}
  ~Buffer() { device_.ReleaseImport(import_.id); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  [[nodiscard]] wire::BufferId id() const { return id_; }
  [[nodiscard]] std::byte* base() const { return import_.base; }
  [[nodiscard]] std::uint64_t bytes() const { return import_.bytes; }
  [[nodiscard]] bool writable() const { return writable_; }
  [[nodiscard]] bool own() const { return own_; }
  // Gives some of its memory back to the system, its content lost, although its client may keep the file: a
  // piece each call, so that nobody waits long. False when nothing is left to do. Of the daemon's own, sealed
  // files only: the seals forbid to resize them, not to punch holes.
  [[nodiscard]] bool EmptySome();
  // Its owner shrank it under us.
  [[nodiscard]] bool failed() const { return device_.ImportFailed(import_.id); }

 private:
  kernels::Device& device_;
  wire::BufferId id_;
  kernels::Import import_;
  bool writable_ = true;
  bool own_ = false;
  std::uint64_t emptied_bytes_ = 0;
};

using BufferRef = std::shared_ptr<Buffer>;

}  // namespace bitpager::daemon
