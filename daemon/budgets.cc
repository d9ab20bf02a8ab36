// Budgets out of the machine's facts; pure.
#include <algorithm>

#include "daemon/machine.h"

namespace bitpager::daemon {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

constexpr double kDeviceShareOfHost = 25;
constexpr double kDeviceShareOfOwn = 90;
constexpr double kHostShare = 50;

std::uint64_t Share(std::uint64_t base, double percent) {
  return static_cast<std::uint64_t>(static_cast<double>(base) * (percent / 100));
}

std::uint64_t WholePages(std::uint64_t bytes, std::uint64_t page_bytes) {
  return bytes / page_bytes * page_bytes;
}

std::string Exact(std::uint64_t bytes) {
  return FormatBytes(bytes) + " (" + std::to_string(bytes) + " bytes)";
}

std::uint64_t Resolve(const SizeSetting& setting, std::uint64_t base, std::uint64_t fallback) {
  switch (setting.kind) {
    case SizeSetting::Kind::kBytes:
      return setting.bytes;
    case SizeSetting::Kind::kPercent:
      return Share(base, setting.percent);
    case SizeSetting::Kind::kDefault:
      break;
  }
  return fallback;
}

bool Given(const SizeSetting& setting) {
  return setting.kind != SizeSetting::Kind::kDefault;
}

Status TooMuch(const std::string& what, std::uint64_t bytes, std::uint64_t room, const std::string& source,
               const std::string& hint) {
  return {Code::kBudgetExceeded, what + " of " + Exact(bytes) + " is " + Exact(bytes - room) +
                                     " more than there is: " + source + " leaves " + Exact(room) +
                                     ". Hint: " + hint};
}

Status CheckDevice(const Config& config, std::uint64_t bytes) {
  const std::uint64_t window = WindowPages(config) * config.page_bytes;
  if (bytes >= window) return {};
  return {Code::kBudgetExceeded, "a device budget of " + Exact(bytes) + " is under one window of " +
                                     std::to_string(WindowPages(config)) + " pages of " +
                                     FormatBytes(config.page_bytes) + ", " + Exact(window) +
                                     ". Hint: raise --device-budget, or lower --page-size or --window-pages"};
}

Status CheckHost(const Config& config, std::uint64_t bytes) {
  if (bytes >= config.page_bytes) return {};
  return {Code::kBudgetExceeded, "a host budget of " + Exact(bytes) + " holds no page of " +
                                     FormatBytes(config.page_bytes) +
                                     ". Hint: raise --host-budget, free memory, or lower --page-size"};
}

// Bytes that may be locked; ~0 where nothing is locked or nothing limits it.
std::uint64_t LockRoom(const MachineFacts& facts, const DeviceMemory& device) {
  const bool limited = device.pins_host && !facts.may_exceed_memlock && facts.memlock_limit_bytes.has_value();
  return limited ? *facts.memlock_limit_bytes : ~std::uint64_t{0};
}

Status ResolveDevice(const Config& config, const DeviceMemory& device, Budgets& out) {
  const std::uint64_t base = device.in_host_memory ? out.room_bytes : device.free_bytes;
  const double share = device.in_host_memory ? kDeviceShareOfHost : kDeviceShareOfOwn;
  const std::uint64_t bytes = Resolve(config.device_budget, base, Share(base, share));
  if (bytes > base) {
    return TooMuch("a device budget", bytes, base, device.in_host_memory ? out.room_source : "the device",
                   "lower --device-budget, or free memory");
  }
  out.device_bytes = WholePages(bytes, config.page_bytes);
  return CheckDevice(config, out.device_bytes);
}

Status ResolveHost(const Config& config, const MachineFacts& facts, const DeviceMemory& device,
                   Budgets& out) {
  const std::uint64_t taken = device.in_host_memory ? out.device_bytes : 0;
  const std::uint64_t room = out.room_bytes - taken;
  const std::uint64_t lock_room = LockRoom(facts, device);
  const std::uint64_t fallback = std::min({Share(out.room_bytes, kHostShare), room, lock_room});
  const std::uint64_t bytes = Resolve(config.host_budget, out.room_bytes, fallback);
  if (bytes > room) {
    const std::string beside = taken == 0 ? "" : " beside a device budget of " + FormatBytes(taken);
    return TooMuch("a host budget" + beside, bytes, room, out.room_source,
                   "lower --host-budget or --device-budget, or free memory");
  }
  if (bytes > lock_room) {
    return TooMuch("a pinned host budget", bytes, lock_room, "RLIMIT_MEMLOCK",
                   "LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited");
  }
  out.host_bytes = WholePages(bytes, config.page_bytes);
  return CheckHost(config, out.host_bytes);
}

Status ResolveQuotas(const Config& config, Budgets& out) {
  out.job_device_quota_bytes =
      WholePages(Resolve(config.job_device_quota, out.device_bytes, 0), config.page_bytes);
  out.job_host_quota_bytes = WholePages(Resolve(config.job_host_quota, out.host_bytes, 0), config.page_bytes);
  const std::uint64_t window = WindowPages(config) * config.page_bytes;
  if (Given(config.job_device_quota) && out.job_device_quota_bytes < window) {
    return {Code::kBudgetExceeded, "a device quota of " + Exact(out.job_device_quota_bytes) +
                                       " for each job is under one window of " + Exact(window) +
                                       ". Hint: raise jobs.device_quota, or leave it out"};
  }
  if (Given(config.job_host_quota) && out.job_host_quota_bytes == 0) {
    return {Code::kBudgetExceeded, "the host quota for each job holds no page of " +
                                       FormatBytes(config.page_bytes) +
                                       ". Hint: raise jobs.host_quota, or leave it out"};
  }
  return {};
}

}  // namespace

Result<Budgets> ResolveBudgets(const Config& config, const MachineFacts& facts, const DeviceMemory& device) {
  Budgets out;
  out.room_bytes = facts.RoomBytes() / std::max(1U, device.sharers);
  out.room_source = facts.RoomSource();
  if (device.sharers > 1) out.room_source += ", divided by " + std::to_string(device.sharers) + " devices,";
  if (facts.mem_available_bytes == 0) {
    const std::string why = facts.unread.empty() ? "it reads 0" : facts.unread.front();
    return Status(Code::kUnsupported, "the machine's available memory is not known (" + why +
                                          "), so no budget can be checked. Hint: mount /proc");
  }
  Status status = ResolveDevice(config, device, out);
  if (status.ok()) status = ResolveHost(config, facts, device, out);
  if (status.ok()) status = ResolveQuotas(config, out);
  if (!status.ok()) return status;
  return out;
}

kernels::DeviceOptions DeviceOptionsOf(const Config& config, const MachineFacts& facts) {
  kernels::DeviceOptions out;
  out.kind = config.device_kind;
  out.index = std::max(0, config.device_index);
  out.uuid = config.device_uuid;
  out.managed = config.managed;
  out.managed_beyond_free = config.managed_beyond_free;
  out.threads = config.device_threads > 0 ? config.device_threads : facts.allowed_processors;
  return out;
}

}  // namespace bitpager::daemon
