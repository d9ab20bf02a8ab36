#include "daemon/node.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <optional>

#include "client/wire/messages.h"
#include "client/wire/text.h"
#include "daemon/lifecycle.h"
#include "daemon/listener.h"
#include "daemon/observe.h"
#include "daemon/open_shard.h"

namespace bitpager::daemon {
namespace {

using kernels::DeviceListing;
using wire::Code;
using wire::MessageType;
using wire::Result;
using wire::Status;

constexpr std::chrono::seconds kObserveLimit{2};

std::string GpuLabel(const DeviceListing& listing) {
  return listing.kind == "cpu" ? listing.kind : std::to_string(listing.index);
}

}  // namespace

Result<std::unique_ptr<Node>> Node::Make(const Config& config, const MachineFacts& machine,
                                         const Clock& clock) {
  const Result<std::vector<DeviceListing>> chosen = ChooseDevices(config);
  if (!chosen.ok()) return chosen.status();
  for (const DeviceListing& listing : *chosen) {
    if (Status s = kernels::CheckManaged(config.managed, listing); !s.ok()) return s;
  }
  const auto sharers = static_cast<unsigned>(chosen->size());
  return Of(*chosen, config.test_handles, [config, machine, &clock, sharers](const DeviceListing& listing) {
    return OpenShard(config, machine, clock, listing, sharers);
  });
}

std::unique_ptr<Node> Node::Of(const std::vector<DeviceListing>& devices, bool test_handles,
                               const Opener& open) {
  std::unique_ptr<Node> node(new Node(test_handles));
  for (const DeviceListing& listing : devices) {
    Node* self = node.get();
    node->shards_.push_back(std::make_unique<Shard>(
        listing, [open, listing] { return open(listing); }, [self](Shard::End how) { self->Ended(how); }));
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
    test_handles_ ? ipc_test.Start(hooks_.ipc_probe(shard.listing().uuid), {})
                  : ipc_test.Skip("device.test_handles is false");
  }
  dispatcher.control().SetWatch(hooks_.watch);
  dispatcher.core().notify = [this, &shard](const Notice& notice) {
    hooks_.notify({notice.name, 0, notice.job, shard.listing().uuid, notice.bytes, notice.text});
  };
  if (draining_.load(std::memory_order_acquire)) dispatcher.Drain();
  dispatcher.SetSessionsChanged([this, &shard, &ipc_test](std::size_t sessions) {
    ipc_test.SetSessions(sessions);
    // Told one after the other, so that the last sum told is the last there was.
    const std::lock_guard<std::mutex> lock(sessions_mutex_);
    sessions_[&shard] = sessions;
    std::size_t all = 0;
    for (const auto& [one, its] : sessions_) all += its;
    hooks_.sessions_changed(all);
  });
}

// ---- routes

void Node::OnMessage(const ConnectionRef& connection, std::shared_ptr<wire::Packet> packet) {
  const Status whole = wire::CheckPacket(*packet);
  if (whole.ok() && packet->header().type == MessageType::kDrain) return DrainAsked(connection, *packet);
  // Of a device that could not be opened there is no session: the connection is as new.
  if (connection->shard != nullptr && !connection->shard->Failed()) {
    return Post(*connection->shard, connection, packet);
  }
  if (!whole.ok()) return Answer(connection, *packet, whole);
  switch (packet->header().type) {
    case MessageType::kHello:
      return Hello(connection, packet);
    case MessageType::kLimit:
    case MessageType::kEvict:
      return Command(connection, std::move(packet));
    default:
      return Answer(connection, *packet, {Code::kProtocol, "this message needs a session: say hello first."});
  }
}

// For whoever comes to stay, a device is opened.
void Node::Hello(const ConnectionRef& connection, const std::shared_ptr<wire::Packet>& packet) {
  wire::HelloBody hello;
  if (!wire::ReadBody(*packet, hello)) {
    return Answer(connection, *packet, {Code::kProtocol, "a hello message of the wrong size."});
  }
  const Result<Shard*> shard = ShardNamed(wire::TextOf(hello.device));
  if (!shard.ok()) {
    return Answer(connection, *packet, shard.status());
  }
  if (draining_.load(std::memory_order_acquire) && !(*shard)->Serves()) {
    return Answer(connection, *packet, {Code::kDraining, kDrainsText});
  }
  connection->shard = *shard;
  (*shard)->Start();
  Post(**shard, connection, packet);
}

// Without a whole header there is nothing to answer.
void Node::Answer(const ConnectionRef& connection, const wire::Packet& packet, const Status& status) {
  if (wire::CheckPacket(packet).code() == Code::kProtocol) {
    connection->HangUp();
  } else {
    Control::Reply(connection, packet, status);
  }
  Listener::Handled(connection);
}

// Whether devices are open, opening or broken: every shard hears of it.
void Node::DrainAsked(const ConnectionRef& connection, const wire::Packet& packet) {
  const std::uint32_t uid = connection->peer.uid;
  if (uid == ambiguous_uid_ || (uid != 0 && uid != ::getuid())) {
    return Answer(connection, packet,
                  {Code::kPermissionDenied, "only root and the daemon's own user may drain it; you are uid " +
                                                std::to_string(uid) + "."});
  }
  Answer(connection, packet, {});
  Drain();
}

Shard* Node::Serving() const {
  const auto found = std::find_if(shards_.begin(), shards_.end(), [](const auto& s) { return s->Serves(); });
  return found == shards_.end() ? nullptr : found->get();
}

void Node::Post(Shard& shard, const ConnectionRef& connection, const std::shared_ptr<wire::Packet>& packet) {
  shard.Post(
      [connection, packet](Dispatcher& dispatcher) {
        dispatcher.OnMessage(connection, *packet);
        Listener::Handled(connection);
      },
      [connection, packet](const Status& why) { Answer(connection, *packet, why); });
}

void Node::OnLost(const ConnectionRef& connection) {
  if (connection->shard == nullptr) return;
  connection->shard->Post([connection](Dispatcher& dispatcher) { dispatcher.OnLost(connection); },
                          [](const Status&) {});
}

void Node::PostCommand(Shard& shard, const ConnectionRef& connection,
                       const std::shared_ptr<wire::Packet>& packet) {
  shard.Post(
      [connection, packet](Dispatcher& dispatcher) {
        dispatcher.OnCommand(connection, *packet);
        Listener::Handled(connection);
      },
      [connection, packet](const Status& why) { Answer(connection, *packet, why); });
}

// The shard of a device; the first one where none is named.
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
  if (named.ok()) return PostCommand(**named, connection, packet);
  Answer(connection, *packet, named.status());
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
  if (search.knowing.size() == 1) {
    return PostCommand(*search.knowing.front(), search.connection, search.packet);
  }
  if (Shard* serving = Serving(); search.knowing.empty() && serving != nullptr) {
    return PostCommand(*serving, search.connection, search.packet);
  }
  std::string where;
  for (const Shard* shard : search.knowing) where += (where.empty() ? "" : ", ") + shard->listing().uuid;
  Answer(search.connection, *search.packet,
         search.knowing.empty() ? Status(Code::kNotFound, "no job is here yet.")
                                : Status(Code::kInvalidArgument, "this job is on several devices: " + where +
                                                                     ". Hint: name one with --device."));
}

// ---- the whole

// A shard that was drained leaves the others to theirs; one that failed, or was told to stop, is the end. A
// device that could not be opened may be tried again.
void Node::Ended(Shard::End how) {
  const bool draining = draining_.load(std::memory_order_acquire);
  const bool all = draining ? Serving() == nullptr : how == Shard::End::kDone;
  if (all || how == Shard::End::kFaulted) RequestStop();
}

void Node::RequestStop() {
  for (const auto& shard : shards_) shard->RequestStop();
}

void Node::Drain() {
  if (!draining_.exchange(true, std::memory_order_acq_rel)) {
    hooks_.notify({"draining", 0, "", "", 0, "no new sessions are taken"});
  }
  bool any = false;
  for (const auto& shard : shards_) {
    if (!shard->Serves()) continue;
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
