// bitpagerd: reads its settings, opens the device, and runs three threads: the listener, the dispatcher (this
// one hands over to it), and telemetry. Ends on SIGTERM or SIGINT, on drain, or (private) with its last
// client.
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <optional>
#include <thread>

#include "daemon/background.h"
#include "daemon/config.h"
#include "daemon/dispatcher.h"
#include "daemon/listener.h"
#include "daemon/log.h"
#include "daemon/machine.h"
#include "daemon/notify.h"
#include "daemon/observe.h"
#include "daemon/private_life.h"
#include "daemon/shared_memory.h"
#include "daemon/telemetry.h"
#include "daemon/user_namespace.h"

namespace bitpager::daemon {
namespace {

using wire::Code;
using wire::Status;

int Refuse(const Status& status) {
  std::fprintf(stderr, "bitpagerd: %s\n", status.message().c_str());
  return ExitCodeOf(status);
}

// At least one; a run of them as long as the device's segments.
std::uint32_t SegmentFrames(const kernels::DeviceInfo& device, std::uint64_t page_bytes) {
  return static_cast<std::uint32_t>(std::max<std::uint64_t>(1, device.segment_bytes / page_bytes));
}

Settings SettingsOf(const Config& config, const Budgets& budgets, const kernels::DeviceInfo& device) {
  Settings out;
  out.pager.page_bytes = config.page_bytes;
  out.pager.device_frames = budgets.device_bytes / config.page_bytes;
  out.pager.host_frames = budgets.host_bytes / config.page_bytes;
  out.pager.segment_frames = SegmentFrames(device, config.page_bytes);
  out.pager.window_pages = config.window_pages;
  out.pager.windows_in_flight = config.windows_in_flight;
  out.pager.policy = config.policy;
  out.pager.poison = config.poison_frames;
  out.job_weight = config.job_weight;
  out.job_device_quota_bytes = budgets.job_device_quota_bytes;
  out.job_host_quota_bytes = budgets.job_host_quota_bytes;
  out.linger_ms = config.linger_ms;
  out.max_sessions = config.max_sessions;
  out.max_sessions_of_user = config.max_sessions_of_user;
  out.lease_return_ms = static_cast<std::uint64_t>(config.lease_return_ms);
  out.host_budget_bytes = budgets.host_bytes;
  out.owner_uid = ::getuid();
  out.ambiguous_uid = AmbiguousUid();
  return out;
}

// Beside their sessions, users have connections that ask one thing and go.
ListenerOptions ListenerOptionsOf(const Config& config, int activated_fd) {
  constexpr std::uint32_t kOthers = 32;
  ListenerOptions out;
  out.path = config.socket_path;
  out.mode = config.socket_mode;
  out.group = config.socket_group;
  out.activated_fd = activated_fd;
  out.max_connections = config.max_sessions + 4 * kOthers;
  out.max_connections_of_user = config.max_sessions_of_user + kOthers;
  return out;
}

// Runs `call` on the dispatcher thread and waits for it.
wire::Result<Snapshot> AskDispatcher(Dispatcher& dispatcher, const Config& config, std::uint64_t started_ns) {
  auto promise = std::make_shared<std::promise<Snapshot>>();
  std::future<Snapshot> future = promise->get_future();
  dispatcher.Post([promise, &dispatcher] { promise->set_value(Observe(dispatcher.core())); });
  if (future.wait_for(std::chrono::seconds(2)) != std::future_status::ready) {
    return Status(Code::kUnreachable, "the dispatcher did not answer within 2 s.");
  }
  Snapshot snapshot = future.get();
  snapshot.version = kVersion;
  snapshot.pid = ::getpid();
  snapshot.uptime_ms = (Clock().NowNs() - started_ns) / 1'000'000;
  snapshot.private_mode = config.private_mode;
  snapshot.socket_path = config.socket_path;
  return snapshot;
}

// Everything that runs, in the order in which it ends.
class Daemon {
 public:
  explicit Daemon(const Config& config) : config_(config) {}

  Status Start() {
    const MachineFacts machine = ReadMachine();
    wire::Result<std::unique_ptr<kernels::Device>> device =
        kernels::OpenDevice(DeviceOptionsOf(config_, machine));
    if (!device.ok()) return device.status();
    device_ = std::move(*device);
    const kernels::DeviceInfo info = device_->Info();
    wire::Result<Budgets> budgets = ResolveBudgets(
        config_, machine, {info.in_host_memory, info.pins_host, info.free_bytes, info.total_bytes});
    if (!budgets.ok()) return budgets.status();
    wire::Result<std::unique_ptr<Dispatcher>> made =
        Dispatcher::Make(SettingsOf(config_, *budgets, info), *device_, clock_);
    if (!made.ok()) return made.status();
    dispatcher_ = std::move(*made);
    Status connected = Connect();
    if (!connected.ok()) return connected;
    spdlog::info("serving {} on {} ({}): device budget {}, host budget {} (of {}: {}), page {}",
                 config_.socket_path, info.name, info.simd, FormatBytes(budgets->device_bytes),
                 FormatBytes(budgets->host_bytes), budgets->room_source, FormatBytes(budgets->room_bytes),
                 FormatBytes(config_.page_bytes));
    return {};
  }

  // Until the dispatcher ends. False: the device still works on what a destructor would free.
  [[nodiscard]] bool Run(int signals) {
    std::thread watcher([this, signals] { WatchSignals(signals); });
    const bool let_go = dispatcher_->Run();
    static_cast<void>(NotifyStopping().ok());
    Ring(done_bell_.get());
    watcher.join();
    listener_->Stop();
    telemetry_.Stop();
    if (let_go) {
      spdlog::info("ended: every session was told");
    } else {
      spdlog::error(
          "the device did not end what it runs within 40 s; ending under it, every session was told");
    }
    return let_go;
  }

 private:
  Status Connect() {
    wire::Result<wire::UniqueFd> bell = MakeBell();
    if (!bell.ok()) return bell.status();
    done_bell_ = std::move(*bell);
    wire::Result<std::optional<int>> activated = TakeActivatedSocket();
    if (!activated.ok()) return activated.status();
    Dispatcher* dispatcher = dispatcher_.get();
    ListenerEvents events;
    events.message = [dispatcher](ConnectionRef connection, std::shared_ptr<wire::Packet> packet) {
      dispatcher->Post([dispatcher, connection, packet] {
        dispatcher->OnMessage(connection, *packet);
        Listener::Handled(connection);
      });
    };
    events.lost = [dispatcher](ConnectionRef connection) {
      dispatcher->Post([dispatcher, connection] { dispatcher->OnLost(connection); });
    };
    wire::Result<std::unique_ptr<Listener>> listener =
        Listener::Start(ListenerOptionsOf(config_, activated->value_or(-1)), std::move(events));
    if (!listener.ok()) return listener.status();
    listener_ = std::move(*listener);
    const std::uint64_t started_ns = clock_.NowNs();
    Status telemetry = telemetry_.Start(
        config_, [this, started_ns] { return AskDispatcher(*dispatcher_, config_, started_ns); });
    if (!telemetry.ok()) return telemetry;
    SetHooks();
    return NotifyReady("serving");
  }

  void SetHooks() {
    Dispatcher* dispatcher = dispatcher_.get();
    Listener* listener = listener_.get();
    dispatcher->control().SetHooks({[listener](const ConnectionRef& c, wire::UniqueFd pidfd) {
                                      return listener->Watch(c, std::move(pidfd));
                                    },
                                    [dispatcher] {
                                      spdlog::info("draining: no new sessions");
                                      dispatcher->Drain();
                                    }});
    dispatcher->core().notify = [this](const Notice& notice) {
      const auto is = [&](const char* what) { return notice.name.find(what) != std::string::npos; };
      const bool bad = is("lost") || is("fail") || is("overdue") || is("awaited");
      spdlog::log(bad ? spdlog::level::warn : spdlog::level::info, "{} job={} bytes={} {}", notice.name,
                  notice.job, notice.bytes, notice.text);
      telemetry_.Publish(
          {notice.name, {{"job", notice.job}, {"text", notice.text}}, {{"bytes", notice.bytes}}});
    };
    if (!config_.private_mode) return;
    private_life_.Start(config_.private_first_client_ms, config_.private_grace_ms,
                        [dispatcher] { dispatcher->RequestStop(); });
    dispatcher->SetSessionsChanged([this](std::size_t sessions) { private_life_.SetSessions(sessions); });
  }

  void WatchSignals(int signals) {
    if (WaitEither(signals, done_bell_.get())) {
      spdlog::info("told to stop: finishing what is ready");
      dispatcher_->RequestStop();
    }
  }

  const Config config_;
  const Clock clock_;
  std::unique_ptr<kernels::Device> device_;
  std::unique_ptr<Dispatcher> dispatcher_;
  Telemetry telemetry_;
  wire::UniqueFd done_bell_;
  std::unique_ptr<Listener> listener_;
  PrivateLife private_life_;
};

// A session takes five descriptors. The soft limit is usually 1024, for programs that use select.
void RaiseOpenFiles() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) {
    spdlog::warn("cannot raise the limit of open files. Hint: LimitNOFILE= in the unit, or ulimit -n");
  }
}

int Main(int argc, char** argv) {
  wire::Result<LoadedConfig> loaded = LoadConfig(argc, argv);
  if (!loaded.ok()) return Refuse(loaded.status());
  if (!loaded->print_and_exit.empty()) {
    std::fputs(loaded->print_and_exit.c_str(), stdout);
    return 0;
  }
  std::optional<Background> background;
  if (loaded->config.background) {
    wire::Result<Background> split = Background::Split();
    if (!split.ok()) return Refuse(split.status());
    background = std::move(*split);
  }
  if (Status logging = StartLog(loaded->config.log_level); !logging.ok()) return Refuse(logging);
  if (Status cores = ForbidCoreDumps(); !cores.ok()) spdlog::warn("{}", cores.message());
  RaiseOpenFiles();
  // Blocked before any thread exists, so that only the signal watcher sees them.
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGTERM);
  sigaddset(&mask, SIGINT);
  ::pthread_sigmask(SIG_BLOCK, &mask, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  const wire::UniqueFd signals(::signalfd(-1, &mask, SFD_CLOEXEC | SFD_NONBLOCK));
  Daemon daemon(loaded->config);
  if (Status started = daemon.Start(); !started.ok()) {
    spdlog::error("{}", started.message());
    return ExitCodeOf(started);
  }
  if (background) background->Serving();
  if (daemon.Run(signals.get())) return 0;
  spdlog::shutdown();
  std::_Exit(1);
}

}  // namespace
}  // namespace bitpager::daemon

int main(int argc, char** argv) {
  return bitpager::daemon::Main(argc, argv);
}
