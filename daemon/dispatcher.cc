#include "daemon/dispatcher.h"

#include <sched.h>
#include <sys/epoll.h>
#include <sys/prctl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>
#include <span>
#include <utility>

#include "client/wire/cpu.h"
#include "daemon/shared_memory.h"

namespace bitpager::daemon {
namespace {

using wire::Code;
using wire::Status;

// A session that ends with the daemon has so long to finish what it had ready.
constexpr std::uint64_t kStopGraceNs = 10'000'000'000;

// What runs on the device by then holds memory of sessions, and has so long again to end.
constexpr std::uint64_t kDeviceGraceNs = 30'000'000'000;

// Between looks for a fault while what runs does not end: what failed never does.
constexpr std::uint64_t kFaultLookNs = 1'000'000;

// While waiting for an end: often enough to keep the limits above.
constexpr std::int64_t kEndLookNs = 20'000'000;

// Short beside a window's time on the link; long beside a look.
constexpr std::uint64_t kShortestNapNs = 20'000;
constexpr std::uint64_t kLongestNapNs = 250'000;

// Sleeps up to `nap_ns` (negative: without end) until one of epoll's descriptors is ready.
int WaitFor(int epoll, std::span<epoll_event> events, std::int64_t nap_ns) {
  const timespec nap{nap_ns / 1'000'000'000, nap_ns % 1'000'000'000};
  const int most = static_cast<int>(events.size());
  const int count = ::epoll_pwait2(epoll, events.data(), most, nap_ns < 0 ? nullptr : &nap, nullptr);
  if (count >= 0 || errno != ENOSYS) return count;
  // Kernels before 5.11 and some sandboxes count in whole milliseconds.
  return ::epoll_wait(epoll, events.data(), most,
                      nap_ns < 0 ? -1 : static_cast<int>((nap_ns + 999'999) / 1'000'000));
}

bool AddToEpoll(int epoll, int fd) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  return ::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

// Between looks for work. Now and then whoever else waits for this processor goes first: a client whose bell
// woke this thread often does, and without that it would wait until the spinning ends.
void Pause(unsigned& looks) {
  __builtin_ia32_pause();
  if (++looks % 16 == 0) ::sched_yield();
}

}  // namespace

wire::Result<std::unique_ptr<Dispatcher>> Dispatcher::Make(const Settings& settings, kernels::Device& device,
                                                           const Clock& clock) {
  wire::Result<wire::UniqueFd> bell = MakeBell();
  if (!bell.ok()) return bell.status();
  wire::UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll || !AddToEpoll(epoll.get(), bell->get()) || !AddToEpoll(epoll.get(), device.progress_fd())) {
    return Status(Code::kOutOfMemory, "cannot make the dispatcher's epoll. Hint: raise ulimit -n.");
  }
  std::unique_ptr<Dispatcher> made(
      new Dispatcher(settings, device, clock, std::move(*bell), std::move(epoll)));
  Status started = made->core_.mover.Start(settings.disk_folder);
  if (!started.ok()) return started;
  const int disk_bell = made->core_.mover.disk_bell();
  if (disk_bell >= 0 && !AddToEpoll(made->epoll_.get(), disk_bell)) {
    return Status(Code::kOutOfMemory, "cannot watch the disk. Hint: raise ulimit -n.");
  }
  return made;
}

void Dispatcher::RequestStop() {
  stopping_.store(true, std::memory_order_release);
  mailbox_.Post([] {});
}

void Dispatcher::OnMessage(const ConnectionRef& connection, wire::Packet& packet) {
  const bool fresh = !connection->session;
  control_.Handle(connection, packet);
  LookAgain();
  if (!fresh || !connection->session) return;
  Session* session = core_.registry.FindSession(connection->session);
  if (session == nullptr) return;
  connections_[connection->session] = connection;
  if (!session->WatchBell(epoll_.get())) {
    tasks_.FailSession(*session, {Code::kOutOfMemory, "no memory to watch a session's bell."});
  }
  sessions_changed_(core_.registry.sessions().size());
}

void Dispatcher::OnCommand(const ConnectionRef& connection, wire::Packet& packet) {
  control_.HandleCommand(connection, packet);
  LookAgain();
}

// A message was handled: whatever it began or ended may be work, or have a deadline.
void Dispatcher::LookAgain() {
  tasks_.Touch();
  next_expiry_ns_ = 0;
}

void Dispatcher::OnLost(const ConnectionRef& connection) {
  if (connection->session) lifecycle_.Close(connection->session, false);
}

int Dispatcher::ServeSessions() {
  int work = 0;
  for (const auto& [id, session] : core_.registry.sessions()) {
    // A request that came is work, also where its stream is not ready yet: it is looked at again soon.
    const std::size_t before = session->pending.size();
    if (!ending_ && !session->closing && !session->TakeRequests()) {
      tasks_.FailSession(*session, {Code::kProtocol, "the request ring holds what no client writes."});
    }
    work += session->pending.size() > before ? 1 : 0;
    if (!session->pending.empty()) work += tasks_.Advance(*session);
  }
  return work;
}

int Dispatcher::ReapSessions() {
  std::erase_if(connections_, [&](const auto& entry) {
    const Session* session = core_.registry.FindSession(entry.first);
    return session == nullptr || (session->closing && session->failed() && (entry.second->HangUp(), true));
  });
  const int reaped = lifecycle_.Reap();
  if (reaped == 0) return 0;
  tasks_.Touch();
  next_expiry_ns_ = 0;
  sessions_changed_(core_.registry.sessions().size());
  return reaped;
}

int Dispatcher::SettleWeights() {
  const int work = sharing_.Poll();
  if (work == 0) return 0;
  for (const wire::SessionId id : sharing_.TakeSettled()) {
    if (Session* session = core_.registry.FindSession(id); session != nullptr) tasks_.Settled(*session);
  }
  tasks_.Touch();
  return work;
}

Status Dispatcher::Fault() {
  Status fault = core_.device.TakeFault();
  return fault.ok() ? core_.mover.disk_fault() : fault;
}

void Dispatcher::CheckDevice(std::uint64_t now_ns) {
  next_fault_look_ns_ = now_ns + kFaultLookNs;
  if (faulted_) return;
  const Status fault = Fault();
  if (fault.ok()) return;
  faulted_ = true;
  tasks_.FailAll({Code::kDeviceFault, fault.message()});
  core_.Tell({"error", "", 0, "device fault: " + fault.message()});
  RequestStop();
}

int Dispatcher::DoWork() {
  int work = mailbox_.Drain();
  work += ServeSessions();
  const int moved = core_.mover.Poll() + tasks_.PollRuns() + (leases_.revoking() ? leases_.Poll() : 0);
  const std::uint64_t now_ns = core_.clock.NowNs();
  if (moved > 0) tasks_.Touch();
  if (moved > 0 || (now_ns >= next_fault_look_ns_ && !tasks_.idle())) CheckDevice(now_ns);
  work += moved + tasks_.PumpPager();
  work += SettleWeights();
  work += ReapSessions() + lifecycle_.EmptyBuffers();
  work += tasks_.TellBursts(now_ns);
  if (core_.room.Poll(now_ns) || pressure_.Poll(now_ns)) {
    tasks_.Touch();
    ++work;
  }
  if (next_expiry_ns_ <= now_ns) {
    const int expired = lifecycle_.Expire(now_ns);
    for (const wire::SessionId dead : lifecycle_.TakeDead()) lifecycle_.Close(dead, false);
    // Work, or Run would sleep over the frames that came free and the sessions to be reaped.
    if (expired > 0) tasks_.Touch();
    work += expired;
    next_expiry_ns_ = lifecycle_.NextDeadlineNs().value_or(~std::uint64_t{0});
  }
  return work;
}

bool Dispatcher::Run() {
  // Naps are shorter than the 50 us by which the kernel may lengthen them otherwise.
  static_cast<void>(::prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL));
  last_work_ns_ = core_.clock.NowNs();
  unsigned looks = 0;
  while (!stopping_.load(std::memory_order_acquire)) {
    if (DoWork() > 0) {
      last_work_ns_ = core_.clock.NowNs();
    } else if (IsAwake(core_.clock.NowNs())) {
      Pause(looks);
    } else if (core_.draining && core_.registry.sessions().empty()) {
      break;
    } else {
      Sleep();
    }
  }
  EndSessions();
  return AwaitDevice();
}

void Dispatcher::Sleep(std::int64_t longest_ns) {
  for (const auto& [id, session] : core_.registry.sessions()) session->AnnounceSleep(true);
  // Pairs with the client's fence between its push and its look at daemon_sleeps.
  wire::StoreLoadFence();
  bool work = false;
  for (const auto& [id, session] : core_.registry.sessions())
    work = work || (!ending_ && session->CanTakeRequests());
  std::array<epoll_event, 32> events{};
  std::int64_t nap_ns = work ? 0 : SleepNs(core_.clock.NowNs());
  if (longest_ns >= 0) nap_ns = nap_ns < 0 ? longest_ns : std::min(nap_ns, longest_ns);
  const int count = WaitFor(epoll_.get(), events, nap_ns);
  for (const auto& [id, session] : core_.registry.sessions()) session->AnnounceSleep(false);
  for (int i = 0; i < count; ++i) Quiet(events[static_cast<std::size_t>(i)].data.fd);
}

// Whether to look for work once more before sleeping.
bool Dispatcher::IsAwake(std::uint64_t now_ns) const {
  return now_ns - last_work_ns_ < SpinNs() || now_ns < tasks_.expected_until_ns();
}

// Looked for work before sleeping. Longer while something is under way that rings no bell: waking up costs
// more than a small step takes.
std::uint64_t Dispatcher::SpinNs() const {
  return core_.device_info.rings_progress || !AwaitsSilently() ? core_.settings.spin_ns
                                                               : core_.settings.silent_spin_ns;
}

// The device works, or a request waits for its stream: neither rings when it is done.
bool Dispatcher::AwaitsSilently() const {
  if (!tasks_.idle()) return true;
  for (const auto& [id, session] : core_.registry.sessions()) {
    if (!session->active && !session->pending.empty()) return true;
  }
  return false;
}

// Nanoseconds; negative: until something rings.
std::int64_t Dispatcher::SleepNs(std::uint64_t now_ns) const {
  // A device that rings no bell, and a stream that stores `ready` without ringing one, are looked at again
  // soon; the longer nothing happened, the less often.
  const std::uint64_t quiet_ns = now_ns - last_work_ns_;
  const auto soon_ns = static_cast<std::int64_t>(std::clamp(quiet_ns / 16, kShortestNapNs, kLongestNapNs));
  if (!core_.device_info.rings_progress && !tasks_.idle()) return soon_ns;
  for (const auto& [id, session] : core_.registry.sessions()) {
    if (!session->active && !session->pending.empty()) return soon_ns;
  }
  if (leases_.revoking()) return leases_.LookAgainNs();
  const auto or_never = [](std::optional<std::uint64_t> at_ns) { return at_ns.value_or(~std::uint64_t{0}); };
  const std::uint64_t next_ns =
      std::min({next_expiry_ns_, or_never(core_.room.NextDeadlineNs()), or_never(pressure_.NextDeadlineNs()),
                or_never(tasks_.NextBurstNs())});
  if (next_ns == ~std::uint64_t{0}) return -1;
  const std::uint64_t left_ns = next_ns > now_ns ? next_ns - now_ns : 0;
  return static_cast<std::int64_t>(std::min<std::uint64_t>(left_ns + 1'000'000, 60'000'000'000));
}

void Dispatcher::EndSessions() {
  core_.draining = true;
  DoWork();  // takes what was pushed before the end
  ending_ = true;
  const std::uint64_t give_up_ns = core_.clock.NowNs() + kStopGraceNs;
  const auto busy = [&] {
    for (const auto& [id, session] : core_.registry.sessions()) {
      if (session->active || session->HeadReady()) return true;
    }
    return !tasks_.idle();
  };
  while (!faulted_ && busy() && core_.clock.NowNs() < give_up_ns) {
    if (DoWork() == 0) Sleep(kEndLookNs);
  }
  for (const auto& [id, session] : core_.registry.sessions()) session->Fail(Code::kDraining);
  for (const auto& [id, connection] : connections_) connection->HangUp();
}

// Nothing new is launched: windows that run end, and copies.
bool Dispatcher::AwaitDevice() {
  // What runs on a device that has failed may never be seen to end.
  const std::uint64_t give_up_ns = core_.clock.NowNs() + (faulted_ ? 0 : kDeviceGraceNs);
  bool told = false;
  while (tasks_.running() || core_.mover.copying()) {
    if (!Fault().ok()) return false;
    if (!std::exchange(told, true)) {
      core_.Tell({"error", "", 0, "ending: requests still run; their sessions were told of the end"});
    }
    if (core_.clock.NowNs() >= give_up_ns) {
      core_.Tell({"error", "", 0, "the device did not end what it runs: the process ends under it"});
      return false;
    }
    if (tasks_.PollRuns() + core_.mover.Poll() == 0) Sleep(kEndLookNs);
  }
  return !faulted_;
}

}  // namespace bitpager::daemon
