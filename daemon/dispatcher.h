// The dispatcher: one thread that owns sessions, page tables and the pager, and makes the device's calls. It
// only loops over the roles' work and idles; DoWork is what tests single-step.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>

#include "client/wire/fd_socket.h"
#include "client/wire/status.h"
#include "client/wire/unique_fd.h"
#include "daemon/connection.h"
#include "daemon/control.h"
#include "daemon/core.h"
#include "daemon/leases.h"
#include "daemon/lifecycle.h"
#include "daemon/mailbox.h"
#include "daemon/pressure.h"
#include "daemon/sharing.h"
#include "daemon/tasks.h"

namespace bitpager::daemon {

class Dispatcher {
 public:
  // Reserves the host region, makes the bells.
  [[nodiscard]] static wire::Result<std::unique_ptr<Dispatcher>> Make(const Settings& settings,
                                                                      kernels::Device& device,
                                                                      const Clock& clock);

  // ---- any thread
  void Post(Mailbox::Call call) { mailbox_.Post(std::move(call)); }
  // Ends Run: finishes what is under way, tells the clients, returns.
  void RequestStop();

  // ---- dispatcher thread
  void OnMessage(const ConnectionRef& connection, wire::Packet& packet);
  // A limit or evict of a connection that this device does not serve: of another's, or nobody's.
  void OnCommand(const ConnectionRef& connection, wire::Packet& packet);
  void OnLost(const ConnectionRef& connection);
  // Everything that can be done now. Returns how much there was.
  int DoWork();
  // Until RequestStop, and then until what was ready is done and the device has let go of the sessions'
  // memory. False: it never did, or has failed; nothing may be freed under it, so the process must end as it
  // is.
  [[nodiscard]] bool Run();
  // Nothing runs on the device, moves or is read for the shared base. Requests may still wait.
  [[nodiscard]] bool idle() const { return tasks_.idle() && sharing_.idle(); }
  // No new sessions; Run returns when the last one is gone.
  void Drain() { core_.draining = true; }

  [[nodiscard]] Core& core() { return core_; }
  [[nodiscard]] Control& control() { return control_; }
  // Called on this thread whenever the number of sessions changed.
  void SetSessionsChanged(std::function<void(std::size_t)> call) { sessions_changed_ = std::move(call); }

 private:
  void LookAgain();
  Dispatcher(const Settings& settings, kernels::Device& device, const Clock& clock, wire::UniqueFd bell,
             wire::UniqueFd epoll)
      : epoll_(std::move(epoll)), core_(settings, device, clock), mailbox_(std::move(bell)) {}

  int ServeSessions();
  int SettleWeights();
  [[nodiscard]] int ReapSessions();
  // At most `longest_ns`; negative: until something rings.
  void Sleep(std::int64_t longest_ns = -1);
  [[nodiscard]] std::int64_t SleepNs(std::uint64_t now_ns) const;
  [[nodiscard]] bool IsAwake(std::uint64_t now_ns) const;
  [[nodiscard]] std::uint64_t SpinNs() const;
  [[nodiscard]] bool AwaitsSilently() const;
  // Of the device or the disk. What was under way there never ends, so that only asking tells.
  [[nodiscard]] wire::Status Fault();
  void CheckDevice(std::uint64_t now_ns);
  void EndSessions();
  [[nodiscard]] bool AwaitDevice();

  wire::UniqueFd epoll_;  // first: the sessions in core_ take their bells out of it
  Core core_;
  Mailbox mailbox_;
  Leases leases_{core_};
  Sharing sharing_{core_, leases_, [this] { mailbox_.Post([] {}); }};
  Lifecycle lifecycle_{core_, leases_, sharing_};
  Tasks tasks_{core_, leases_, sharing_};
  Pressure pressure_{core_};
  Control control_{core_, lifecycle_, tasks_, pressure_};
  std::atomic<bool> stopping_{false};  // pairs with Run's load; the mailbox's bell wakes it
  std::unordered_map<wire::SessionId, ConnectionRef, wire::IdHash> connections_;  // by session
  bool ending_ = false;   // no more requests are taken
  bool faulted_ = false;  // the device failed: nothing on it is waited for
  std::uint64_t next_expiry_ns_ = 0;
  std::uint64_t next_fault_look_ns_ = 0;
  std::uint64_t last_work_ns_ = 0;  // Run: when there was something to do
  std::function<void(std::size_t)> sessions_changed_ = [](std::size_t) {};
};

}  // namespace bitpager::daemon
