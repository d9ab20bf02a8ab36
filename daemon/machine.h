// Facts of the machine and of this process's place in it (cgroup, limits), and the memory budgets that follow
// from them. Read by main before any thread starts, and by `bitpager doctor`. Nothing is cached.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "client/wire/status.h"
#include "daemon/config.h"
#include "kernels/device.h"

namespace bitpager::daemon {

// The tightest memory limit on the way from this process's cgroup to the root.
struct CgroupMemory {
  int version = 0;                           // 1, 2; 0: no memory cgroup is visible
  std::string path;                          // of this process, below the mount; "/" at the root
  std::optional<std::uint64_t> limit_bytes;  // none: unlimited at every level
  std::uint64_t usage_bytes = 0;             // at that level, without page cache that can be reclaimed
  std::string limited_at;                    // level that holds the limit
};

struct MachineFacts {
  // ---- from /proc and /sys
  std::uint64_t mem_total_bytes = 0;
  std::uint64_t mem_available_bytes = 0;
  std::uint64_t swap_total_bytes = 0;
  std::uint64_t swap_free_bytes = 0;
  CgroupMemory cgroup;
  std::optional<double> cpu_quota;  // processors that the cgroup grants; none: unlimited
  std::string kernel_release;
  std::string cpu_model;
  std::vector<std::string> cpu_flags;
  std::string container;  // "docker", "podman", "kubernetes", "lxc", ...; empty: none seen
  bool wsl2 = false;
  std::string nvidia_driver;        // version of the kernel module; empty: none loaded
  int nvidia_devices = 0;           // /dev/nvidia<n>
  bool may_exceed_memlock = false;  // CAP_IPC_LOCK

  // ---- from system calls (ProbeProcess)
  std::optional<std::uint64_t> memlock_limit_bytes;  // none: unlimited
  std::uint64_t open_files_limit = 0;
  int affinity_processors = 0;
  int allowed_processors = 1;  // min of affinity and quota (rounded up), at least 1
  std::uint64_t dev_shm_total_bytes = 0;
  std::uint64_t dev_shm_free_bytes = 0;
  bool has_memfd = false;  // with sealing
  bool has_pidfd = false;
  bool has_seqpacket = false;

  std::vector<std::string> unread;  // "path: why", for facts that could not be read

  // Least of MemAvailable and the cgroup's room.
  [[nodiscard]] std::uint64_t RoomBytes() const;
  // Whose figure RoomBytes is, for messages: "MemAvailable" or "cgroup limit at <path>".
  [[nodiscard]] std::string RoomSource() const;
};

// Both halves, of the running system.
[[nodiscard]] MachineFacts ReadMachine();
// The files below `root` ("" is the running system).
void ReadMachineFiles(const std::string& root, MachineFacts& facts);
// After ReadMachineFiles: allowed_processors follows cpu_quota.
void ProbeProcess(MachineFacts& facts);

// What the opened device says about memory.
struct DeviceMemory {
  bool in_host_memory = true;    // the CPU device: its frames come out of host memory too
  bool pins_host = false;        // host frames are locked, so RLIMIT_MEMLOCK counts
  std::uint64_t free_bytes = 0;  // of its own memory; unused when in_host_memory
  std::uint64_t total_bytes = 0;
  unsigned sharers = 1;  // devices of this daemon: each gets an equal part of the host's memory
};

// Whole pages, in bytes.
struct Budgets {
  std::uint64_t device_bytes = 0;
  std::uint64_t host_bytes = 0;
  std::uint64_t job_device_quota_bytes = 0;  // 0: none but the budget
  std::uint64_t job_host_quota_bytes = 0;
  std::uint64_t room_bytes = 0;  // host memory that both were taken from
  std::string room_source;
};

// Defaults: 25% of the room for device frames in host memory (else 90% of the device's free memory) and 50%
// of the room for host frames (at most RLIMIT_MEMLOCK when they are pinned). Percent settings are shares of
// the same base. Errors: kBudgetExceeded, with the bytes, for what the machine does not have and for a device
// budget under one window; kUnsupported when the machine's memory could not be read.
[[nodiscard]] wire::Result<Budgets> ResolveBudgets(const Config& config, const MachineFacts& facts,
                                                   const DeviceMemory& device);

// `threads` is the configured number or, where that is 0, the processors this process may use: a cgroup's CPU
// quota counts, which the device does not see.
[[nodiscard]] kernels::DeviceOptions DeviceOptionsOf(const Config& config, const MachineFacts& facts);

}  // namespace bitpager::daemon
