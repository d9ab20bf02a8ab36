// The devices of this node: one shard each, with a device, a dispatcher and the thread that runs both. Routes
// what the listener hears to the shard that it is for: by the device that a hello names, later by the
// connection. A node with one device opens it at the start; with several, each is opened when its first
// client comes, since a context costs memory of the card and a second of time.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "client/wire/fd_socket.h"
#include "client/wire/status.h"
#include "daemon/config.h"
#include "daemon/connection.h"
#include "daemon/core.h"
#include "daemon/dispatcher.h"
#include "daemon/event.h"
#include "daemon/ipc_self_test.h"
#include "daemon/machine.h"
#include "daemon/page_map.h"
#include "daemon/shard.h"
#include "daemon/snapshot.h"
#include "daemon/user_namespace.h"

namespace bitpager::daemon {

// What happens outside, as each shard needs it; called on the shards' threads.
struct NodeHooks {
  std::function<wire::Status(const ConnectionRef&, wire::UniqueFd)> watch;
  std::function<void(Event)> notify;
  std::function<void(std::size_t)> sessions_changed;  // of all shards together
  // The command of IpcSelfTest for a device; none: nothing is tested.
  std::function<std::vector<std::string>(const std::string& uuid)> ipc_probe;
};

class Node {
 public:
  // Chooses the devices that `config` names. kNotFound, with the reason, when there is none.
  [[nodiscard]] static wire::Result<std::unique_ptr<Node>> Make(const Config& config,
                                                                const MachineFacts& machine,
                                                                const Clock& clock);
  // Opens what serves one of the devices; on the thread that is to run it.
  using Opener = std::function<wire::Result<Shard::Parts>(const kernels::DeviceListing&)>;
  // Of these devices, at least one. test_handles: whether IpcSelfTest runs where it can.
  [[nodiscard]] static std::unique_ptr<Node> Of(const std::vector<kernels::DeviceListing>& devices,
                                                bool test_handles, const Opener& open);
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  // Before any message: opens the only device. Errors: those of OpenDevice and ResolveBudgets.
  [[nodiscard]] wire::Status Start(NodeHooks hooks);

  // ---- listener thread
  void OnMessage(const ConnectionRef& connection, std::shared_ptr<wire::Packet> packet);
  void OnLost(const ConnectionRef& connection);

  // ---- any thread
  // Every shard ends: what is ready is finished, clients are told.
  void RequestStop();
  // No new sessions; Wait returns when the last one is gone.
  void Drain();
  // All shards together. kUnreachable when one does not answer within 2 s.
  [[nodiscard]] wire::Result<Snapshot> Observe();
  // The pages of every device, in about `cells` cells each. kUnreachable likewise.
  [[nodiscard]] wire::Result<PageMap> ObservePages(std::uint64_t cells);
  // For people: what is served.
  [[nodiscard]] std::string Describe() const;

  // Until every shard has ended: by RequestStop, Drain, or because one device failed. False: a device still
  // works on what a destructor would free; the process must end as it is.
  [[nodiscard]] bool Wait();

 private:
  // A command that looks for its job.
  struct Search {
    ConnectionRef connection;
    std::shared_ptr<wire::Packet> packet;
    std::vector<Shard*> knowing;
  };

  explicit Node(bool test_handles) : test_handles_(test_handles) {}
  void Ended(Shard::End how);
  void Prepare(Shard& shard, IpcSelfTest& ipc_test, Dispatcher& dispatcher);
  template <typename T>
  [[nodiscard]] wire::Result<std::vector<std::optional<T>>> Ask(T (*observe)(Core&, std::uint64_t),
                                                                std::uint64_t argument);
  // Refuses where the shard does not serve.
  static void Post(Shard& shard, const ConnectionRef& connection,
                   const std::shared_ptr<wire::Packet>& packet);
  // A limit or evict of a connection that may be served by another shard, on another thread.
  static void PostCommand(Shard& shard, const ConnectionRef& connection,
                          const std::shared_ptr<wire::Packet>& packet);
  static void Answer(const ConnectionRef& connection, const wire::Packet& packet, const wire::Status& status);
  void Hello(const ConnectionRef& connection, const std::shared_ptr<wire::Packet>& packet);
  void DrainAsked(const ConnectionRef& connection, const wire::Packet& packet);
  // The first shard that serves or is about to; null where none is.
  [[nodiscard]] Shard* Serving() const;
  [[nodiscard]] wire::Result<Shard*> ShardNamed(std::string_view device);
  void Command(const ConnectionRef& connection, std::shared_ptr<wire::Packet> packet);
  void Seek(Search search, std::size_t index);
  void Found(const Search& search);

  const bool test_handles_;
  const std::optional<std::uint32_t> ambiguous_uid_ = AmbiguousUid();
  NodeHooks hooks_;
  std::vector<std::unique_ptr<IpcSelfTest>> ipc_tests_;  // one for each shard; constant after Make
  std::vector<std::unique_ptr<Shard>> shards_;           // constant after Make, never empty
  std::mutex sessions_mutex_;  // guards what follows, and the order in which sums of it are told
  std::map<const Shard*, std::size_t> sessions_;
  std::atomic<bool> draining_{false};  // partners: the looks of Hello, Prepare and Ended
};

}  // namespace bitpager::daemon
