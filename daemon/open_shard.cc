#include "daemon/open_shard.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "daemon/disk_file.h"
#include "daemon/user_namespace.h"

namespace bitpager::daemon {
namespace {

using kernels::DeviceListing;
using wire::Code;
using wire::Result;
using wire::Status;

// Of a device's own memory, kept free for others unless configured: enough for what a training process grabs
// between two looks.
constexpr std::uint64_t kLeastWatermark = std::uint64_t{512} << 20;
constexpr std::uint64_t kWatermarkShare = 64;
// Windows in flight, unless configured.
constexpr std::uint32_t kWindows = 3;
constexpr std::uint32_t kOverlappedWindows = 6;
// Of a step, a tenth of a millisecond of a GPU's time: longer than the next part of a request (six times as
// many) takes to decide on and to launch.
constexpr std::uint64_t kFirstPages = 96;

// Device memory comes in runs as long as the device likes, but of a small budget there are a number of them:
// jobs and domains share no segment. Never shorter than what a device maps at least.
std::uint32_t SegmentFrames(const kernels::DeviceInfo& device, std::uint64_t budget_bytes,
                            std::uint64_t page_bytes) {
  constexpr std::uint64_t kSegmentsOfBudget = 32;
  constexpr std::uint64_t kLeastBytes = std::uint64_t{2} << 20;
  if (device.segment_bytes == 0) return 1;
  const std::uint64_t part = budget_bytes / kSegmentsOfBudget / kLeastBytes * kLeastBytes;
  const std::uint64_t bytes = std::min(device.segment_bytes, std::max(kLeastBytes, part));
  return static_cast<std::uint32_t>(std::max<std::uint64_t>(1, bytes / page_bytes));
}

Settings SettingsOf(const Config& config, const Budgets& budgets, const kernels::DeviceInfo& device) {
  Settings out;
  out.pager.page_bytes = config.page_bytes;
  out.pager.device_frames = budgets.device_bytes / config.page_bytes;
  out.pager.host_frames = budgets.host_bytes / config.page_bytes;
  out.pager.segment_frames = SegmentFrames(device, budgets.device_bytes, config.page_bytes);
  out.pager.window_pages = WindowPages(config);
  // A device whose launches overlap its copies hides the hand-overs between them behind a few windows more.
  const bool overlaps = device.launch_pages > 0;
  out.pager.windows_in_flight =
      config.windows_in_flight > 0 ? config.windows_in_flight : (overlaps ? kOverlappedWindows : kWindows);
  out.pager.least_under_way = overlaps ? 3 * out.pager.window_pages : out.pager.window_pages;
  out.pager.loads_over_resident = overlaps;
  out.pager.first_pages = overlaps ? kFirstPages : 0;
  out.pager.policy = config.policy;
  out.pager.poison = config.poison_frames;
  out.job_weight = config.job_weight;
  out.job_device_quota_bytes = budgets.job_device_quota_bytes;
  out.job_host_quota_bytes = budgets.job_host_quota_bytes;
  out.linger_ms = config.linger_ms;
  out.share_weights = config.share_weights;
  out.max_sessions = config.max_sessions;
  out.max_sessions_of_user = config.max_sessions_of_user;
  out.lease_return_ms = static_cast<std::uint64_t>(config.lease_return_ms);
  out.host_budget_bytes = budgets.host_bytes;
  out.owner_uid = ::getuid();
  out.ambiguous_uid = AmbiguousUid();
  out.served_devices = device.uuid + " (" + device.name + ")";
  const std::uint64_t fallback = std::max(kLeastWatermark, device.total_bytes / kWatermarkShare);
  out.free_watermark_bytes = config.free_watermark_bytes.value_or(fallback);
  return out;
}

// Bytes on disk of each of `sharers` devices; 0 without a disk tier.
Result<std::uint64_t> DiskBudget(const Config& config, unsigned sharers) {
  constexpr double kShare = 25;
  if (config.disk_folder.empty()) {
    if (config.disk_budget == SizeSetting{}) return std::uint64_t{0};
    return Status(Code::kInvalidArgument,
                  "memory.disk_budget is set, and no folder. Hint: --disk-folder PATH");
  }
  const Result<std::uint64_t> room = DiskFile::RoomOf(config.disk_folder);
  if (!room.ok()) return room.status();
  const bool exact = config.disk_budget.kind == SizeSetting::Kind::kBytes;
  const double percent =
      config.disk_budget.kind == SizeSetting::Kind::kPercent ? config.disk_budget.percent : kShare;
  const auto share = static_cast<std::uint64_t>(static_cast<double>(*room) * (percent / 100));
  const std::uint64_t bytes = (exact ? config.disk_budget.bytes : share) / sharers;
  if (bytes >= config.page_bytes) return bytes;
  return Status(Code::kBudgetExceeded, "a disk budget of " + FormatBytes(bytes) + " holds no page of " +
                                           FormatBytes(config.page_bytes) + ". Hint: raise --disk-budget");
}

}  // namespace

Result<std::vector<DeviceListing>> ChooseDevices(const Config& config) {
  if (config.device_kind == "cpu") {
    DeviceListing cpu;
    cpu.kind = "cpu";
    cpu.uuid = "cpu-0";
    return std::vector<DeviceListing>{cpu};
  }
  std::string why_no_cuda;
  std::vector<DeviceListing> gpus;
  for (DeviceListing& one : kernels::ListDevices(&why_no_cuda)) {
    if (one.kind != "cuda") continue;
    const bool named = config.device_uuid.empty() || config.device_uuid == one.uuid;
    const bool counted = config.device_index < 0 || config.device_index == one.index;
    if (!named || !counted) continue;
    if (one.problem.empty()) {
      gpus.push_back(std::move(one));
    } else {
      why_no_cuda = one.name + " (" + one.uuid + "): " + one.problem;
    }
  }
  const bool by_name = !config.device_uuid.empty() || config.device_index >= 0;
  if (!gpus.empty()) return gpus;
  if (config.device_kind == "auto" && !by_name) {
    spdlog::info("pages lie in host memory: no GPU that can be used{}",
                 why_no_cuda.empty() ? "" : ": " + why_no_cuda);
    Config cpu = config;
    cpu.device_kind = "cpu";
    return ChooseDevices(cpu);
  }
  const std::string which = !config.device_uuid.empty() ? " " + config.device_uuid
                            : config.device_index >= 0  ? " " + std::to_string(config.device_index)
                                                        : "";
  return Status(Code::kNotFound, "no GPU" + which + " that can be used" +
                                     (why_no_cuda.empty() ? "" : ": " + why_no_cuda) +
                                     ". Hint: bitpager doctor lists the devices; --device cpu needs none.");
}

Result<Shard::Parts> OpenShard(const Config& config, const MachineFacts& machine, const Clock& clock,
                               const DeviceListing& listing, unsigned sharers) {
  kernels::DeviceOptions options = DeviceOptionsOf(config, machine);
  options.kind = listing.kind;
  options.index = listing.index;
  if (listing.kind != "cpu") options.uuid = listing.uuid;
  Shard::Parts parts;
  Result<std::unique_ptr<kernels::Device>> device = kernels::OpenDevice(options);
  if (!device.ok()) return device.status();
  parts.device = std::move(*device);
  const kernels::DeviceInfo info = parts.device->Info();
  const Result<Budgets> budgets = ResolveBudgets(
      config, machine, {info.in_host_memory, info.pins_host, info.free_bytes, info.total_bytes, sharers});
  if (!budgets.ok()) return budgets.status();
  const Result<std::uint64_t> disk_bytes = DiskBudget(config, sharers);
  if (!disk_bytes.ok()) return disk_bytes.status();
  Settings settings = SettingsOf(config, *budgets, info);
  settings.disk_folder = config.disk_folder;
  settings.pager.disk_frames = *disk_bytes / config.page_bytes;
  Result<std::unique_ptr<Dispatcher>> made = Dispatcher::Make(settings, *parts.device, clock);
  if (!made.ok()) return made.status();
  parts.dispatcher = std::move(*made);
  spdlog::info("{} ({}, {}): device budget {}, host budget {} (of {}: {}), page {}", info.uuid, info.name,
               info.simd, FormatBytes(budgets->device_bytes), FormatBytes(budgets->host_bytes),
               budgets->room_source, FormatBytes(budgets->room_bytes), FormatBytes(config.page_bytes));
  if (*disk_bytes > 0)
    spdlog::info("{}: {} on disk in {}", info.uuid, FormatBytes(*disk_bytes), config.disk_folder);
  return parts;
}

}  // namespace bitpager::daemon
