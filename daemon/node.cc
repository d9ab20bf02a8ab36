#include "daemon/node.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <optional>

#include "client/wire/messages.h"
#include "client/wire/text.h"
#include "daemon/disk_file.h"
#include "daemon/listener.h"
#include "daemon/observe.h"
#include "daemon/user_namespace.h"

namespace bitpager::daemon {
namespace {

using kernels::DeviceListing;
using wire::Code;
using wire::MessageType;
using wire::Result;
using wire::Status;

constexpr std::chrono::seconds kObserveLimit{2};
// Of a device's own memory, kept free for others unless configured: enough for what a training process grabs
// between two looks.
constexpr std::uint64_t kLeastWatermark = std::uint64_t{512} << 20;
constexpr std::uint64_t kWatermarkShare = 64;
// Windows in flight, unless configured.
constexpr std::uint32_t kWindows = 3;
constexpr std::uint32_t kOverlappedWindows = 6;

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
  out.pager.window_pages = config.window_pages;
  // A device whose launches overlap its copies hides the hand-overs between them behind a few windows more.
  const bool overlaps = device.launch_pages > 0;
  out.pager.windows_in_flight =
      config.windows_in_flight > 0 ? config.windows_in_flight : (overlaps ? kOverlappedWindows : kWindows);
  out.pager.least_under_way = overlaps ? 3 * config.window_pages : config.window_pages;
  out.pager.loads_over_resident = overlaps;
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

std::string GpuLabel(const DeviceListing& listing) {
  return listing.kind == "cpu" ? listing.kind : std::to_string(listing.index);
}

// The devices that a configuration means, of those that there are.
Result<std::vector<DeviceListing>> Chosen(const Config& config) {
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
    return Chosen(cpu);
  }
  const std::string which = !config.device_uuid.empty() ? " " + config.device_uuid
                            : config.device_index >= 0  ? " " + std::to_string(config.device_index)
                                                        : "";
  return Status(Code::kNotFound, "no GPU" + which + " that can be used" +
                                     (why_no_cuda.empty() ? "" : ": " + why_no_cuda) +
                                     ". Hint: bitpager doctor lists the devices; --device cpu needs none.");
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

}  // namespace

Result<std::unique_ptr<Node>> Node::Make(const Config& config, const MachineFacts& machine,
                                         const Clock& clock) {
  const Result<std::vector<DeviceListing>> chosen = Chosen(config);
  if (!chosen.ok()) return chosen.status();
  std::unique_ptr<Node> node(new Node(config, machine, clock));
  const auto sharers = static_cast<unsigned>(chosen->size());
  for (const DeviceListing& listing : *chosen) {
    if (Status s = kernels::CheckManaged(config.managed, listing); !s.ok()) return s;
    Node* self = node.get();
    node->shards_.push_back(std::make_unique<Shard>(
        listing,
        [self, listing, sharers] {
          return OpenShard(self->config_, self->machine_, self->clock_, listing, sharers);
        },
        [self] { self->RequestStop(); }));
    node->ipc_tests_.push_back(std::make_unique<IpcSelfTest>());
    Shard* shard = node->shards_.back().get();
    IpcSelfTest* ipc_test = node->ipc_tests_.back().get();
    shard->SetPrepare(
        [self, shard, ipc_test](Dispatcher& dispatcher) { self->Prepare(*shard, *ipc_test, dispatcher); });
  }
  return node;
}

Node::~Node() {
  RequestStop();
  static_cast<void>(Wait());
}

Status Node::Start(NodeHooks hooks) {
  hooks_ = std::move(hooks);
  if (shards_.size() > 1) return {};
  shards_.front()->Start();
  return shards_.front()->AwaitOpen();
}

// On the shard's thread, before its dispatcher runs.
void Node::Prepare(Shard& shard, IpcSelfTest& ipc_test, Dispatcher& dispatcher) {
  if (hooks_.ipc_probe && dispatcher.core().device_info.imports_handles) {
    config_.test_handles ? ipc_test.Start(hooks_.ipc_probe(shard.listing().uuid), {})
                         : ipc_test.Skip("device.test_handles is false");
  }
  dispatcher.control().SetHooks({hooks_.watch, [this] { Drain(); }});
  dispatcher.core().notify = [this, &shard](const Notice& notice) {
    hooks_.notify({notice.name, 0, notice.job, shard.listing().uuid, notice.bytes, notice.text});
  };
  if (draining_.load(std::memory_order_acquire)) dispatcher.Drain();
  dispatcher.SetSessionsChanged([this, &shard, &ipc_test](std::size_t sessions) {
    ipc_test.SetSessions(sessions);
    // Each shard writes its own; whoever was last sees all.
    shard.sessions.store(sessions, std::memory_order_seq_cst);
    std::size_t all = 0;
    for (const auto& one : shards_) all += one->sessions.load(std::memory_order_seq_cst);
    hooks_.sessions_changed(all);
  });
}

// ---- routes

void Node::OnMessage(const ConnectionRef& connection, std::shared_ptr<wire::Packet> packet) {
  if (connection->shard != nullptr) return Route(*connection->shard, connection, packet);
  if (!wire::CheckPacket(*packet).ok()) return Route(*shards_.front(), connection, packet);
  switch (packet->header().type) {
    case MessageType::kLimit:
    case MessageType::kEvict:
      return Command(connection, std::move(packet));
    default:
      break;
  }
  const Result<Shard*> shard = ShardFor(*packet);
  if (!shard.ok()) {
    Control::Refuse(connection, *packet, shard.status());
    return Listener::Handled(connection);
  }
  if (packet->header().type == MessageType::kHello) connection->shard = *shard;
  Route(**shard, connection, packet);
}

void Node::Route(Shard& shard, const ConnectionRef& connection, const std::shared_ptr<wire::Packet>& packet) {
  shard.Start();
  shard.Post(
      [connection, packet](Dispatcher& dispatcher) {
        dispatcher.OnMessage(connection, *packet);
        Listener::Handled(connection);
      },
      [connection, packet](const Status& why) {
        if (wire::CheckPacket(*packet).code() == Code::kProtocol) {
          connection->HangUp();
        } else {
          Control::Refuse(connection, *packet, why);
        }
        Listener::Handled(connection);
      });
}

void Node::OnLost(const ConnectionRef& connection) {
  if (connection->shard == nullptr) return;
  connection->shard->Post([connection](Dispatcher& dispatcher) { dispatcher.OnLost(connection); },
                          [](const Status&) {});
}

// The shard that a hello names; the first one for what names none.
Result<Shard*> Node::ShardFor(const wire::Packet& packet) {
  wire::HelloBody hello;
  if (packet.header().type != MessageType::kHello || !wire::ReadBody(packet, hello))
    return shards_.front().get();
  return ShardNamed(wire::TextOf(hello.device));
}

Result<Shard*> Node::ShardNamed(std::string_view device) {
  if (device.empty()) return shards_.front().get();
  std::string served;
  for (const auto& shard : shards_) {
    if (shard->listing().uuid == device) return shard.get();
    served += (served.empty() ? "" : ", ") + shard->listing().uuid;
  }
  return Status(Code::kNotFound, "this daemon serves " + served + ", not " + std::string(device) +
                                     ". Hint: bitpagerd --device says what it serves.");
}

// A limit or an evict: of the device it names, else of the one device that has the job.
void Node::Command(const ConnectionRef& connection, std::shared_ptr<wire::Packet> packet) {
  wire::LimitBody limit;
  wire::EvictBody evict;
  std::string_view device;
  if (wire::ReadBody(*packet, limit)) device = wire::TextOf(limit.device);
  if (wire::ReadBody(*packet, evict)) device = wire::TextOf(evict.device);
  if (device.empty()) return Seek({connection, std::move(packet), {}}, 0);
  const Result<Shard*> named = ShardNamed(device);
  if (named.ok()) return Route(**named, connection, packet);
  Control::Refuse(connection, *packet, named.status());
  Listener::Handled(connection);
}

// Asks the shards one after the other, each on its own thread; none is waited for.
void Node::Seek(Search search, std::size_t index) {
  if (index == shards_.size()) return Found(search);
  Shard* shard = shards_[index].get();
  shard->Post(
      [this, search, index, shard](Dispatcher& dispatcher) mutable {
        if (dispatcher.control().Knows(search.connection, *search.packet)) search.knowing.push_back(shard);
        Seek(std::move(search), index + 1);
      },
      [this, search, index](const Status&) { Seek(search, index + 1); });
}

void Node::Found(const Search& search) {
  if (search.knowing.size() == 1) return Route(*search.knowing.front(), search.connection, search.packet);
  if (search.knowing.empty() && shards_.front()->Started()) {
    return Route(*shards_.front(), search.connection, search.packet);
  }
  std::string where;
  for (const Shard* shard : search.knowing) where += (where.empty() ? "" : ", ") + shard->listing().uuid;
  Control::Refuse(search.connection, *search.packet,
                  search.knowing.empty()
                      ? Status(Code::kNotFound, "no job is here yet.")
                      : Status(Code::kInvalidArgument, "this job is on several devices: " + where +
                                                           ". Hint: name one with --device."));
  Listener::Handled(search.connection);
}

// ---- the whole

void Node::RequestStop() {
  for (const auto& shard : shards_) shard->RequestStop();
}

void Node::Drain() {
  if (!draining_.exchange(true, std::memory_order_acq_rel)) {
    hooks_.notify({"draining", 0, "", "", 0, "no new sessions are taken"});
  }
  bool any = false;
  for (const auto& shard : shards_) {
    if (!shard->Started()) continue;
    any = true;
    shard->Post([](Dispatcher& dispatcher) { dispatcher.Drain(); }, [](const Status&) {});
  }
  if (!any) RequestStop();
}

// What `observe` finds on each shard's thread, in the order of the shards; none of those that are not open.
template <typename T>
Result<std::vector<std::optional<T>>> Node::Ask(T (*observe)(Core&, std::uint64_t), std::uint64_t argument) {
  std::vector<std::future<std::optional<T>>> futures;
  for (const auto& shard : shards_) {
    auto promise = std::make_shared<std::promise<std::optional<T>>>();
    futures.push_back(promise->get_future());
    shard->Post(
        [promise, observe, argument](Dispatcher& d) { promise->set_value(observe(d.core(), argument)); },
        [promise](const Status&) { promise->set_value(std::nullopt); });
  }
  const auto end = std::chrono::steady_clock::now() + kObserveLimit;
  std::vector<std::optional<T>> out;
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    if (futures[i].wait_until(end) != std::future_status::ready) {
      return Status(Code::kUnreachable,
                    "the dispatcher of " + shards_[i]->listing().uuid + " did not answer within 2 s.");
    }
    out.push_back(futures[i].get());
  }
  return out;
}

Result<Snapshot> Node::Observe() {
  auto asked = Ask<Snapshot>([](Core& core, std::uint64_t) { return daemon::Observe(core); }, 0);
  if (!asked.ok()) return asked.status();
  Snapshot all;
  std::vector<DeviceSnapshot> closed;
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    std::optional<Snapshot>& one = (*asked)[i];
    const DeviceListing& listing = shards_[i]->listing();
    if (!one) {
      DeviceSnapshot& device = closed.emplace_back();
      device.kind = listing.kind;
      device.uuid = listing.uuid;
      device.name = listing.name;
      device.gpu = GpuLabel(listing);
      device.open = false;
      continue;
    }
    one->devices.front().gpu = GpuLabel(listing);
    const IpcFinding ipc = ipc_tests_[i]->finding();
    one->devices.front().ipc_survives = IpcSurvivalName(ipc.survival);
    one->devices.front().ipc_problem = ipc.why;
    if (all.page_bytes == 0) {
      all = std::move(*one);
    } else {
      Merge(all, std::move(*one));
    }
  }
  all.devices.insert(all.devices.end(), closed.begin(), closed.end());
  return all;
}

Result<PageMap> Node::ObservePages(std::uint64_t cells) {
  auto asked =
      Ask<DevicePages>([](Core& core, std::uint64_t n) { return daemon::ObservePages(core, n); }, cells);
  if (!asked.ok()) return asked.status();
  PageMap out;
  for (std::size_t i = 0; i < shards_.size(); ++i) {
    if (!(*asked)[i]) continue;
    out.devices.push_back(std::move(*(*asked)[i]));
    out.devices.back().gpu = GpuLabel(shards_[i]->listing());
  }
  return out;
}

bool Node::Wait() {
  bool let_go = true;
  for (const auto& shard : shards_) let_go = shard->Join() && let_go;
  return let_go;
}

std::string Node::Describe() const {
  std::string out;
  for (const auto& shard : shards_) {
    if (!out.empty()) out += ", ";
    out += shard->listing().uuid;
    if (!shard->listing().name.empty()) out += " (" + shard->listing().name + ")";
  }
  return out;
}

}  // namespace bitpager::daemon
