// bitpagerd: reads its settings, opens the device, and runs three threads: the listener, the dispatcher (this
// one hands over to it), and telemetry. Ends on SIGTERM or SIGINT, on drain, or (private) with its last
// client.
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "daemon/background.h"
#include "daemon/config.h"
#include "daemon/event.h"
#include "daemon/http_server.h"
#include "daemon/http_site.h"
#include "daemon/ipc_self_test.h"
#include "daemon/listener.h"
#include "daemon/log.h"
#include "daemon/machine.h"
#include "daemon/node.h"
#include "daemon/notify.h"
#include "daemon/private_life.h"
#include "daemon/shared_memory.h"
#include "daemon/telemetry.h"
#include "daemon/user_namespace.h"
#include "kernels/ipc_probe.h"

namespace bitpager::daemon {
namespace {

using wire::Status;

constexpr const char* kIpcProbe = "--ipc-probe";
constexpr const char* kIpcExporter = "--ipc-exporter";
constexpr int kIpcExporterSocket = 3;

// The file that this process runs, also where it was found by PATH.
std::string OwnProgram() {
  char path[PATH_MAX];
  const ssize_t length = ::readlink("/proc/self/exe", path, sizeof(path) - 1);
  return length > 0 ? std::string(path, static_cast<std::size_t>(length)) : std::string();
}

int Refuse(const Status& status) {
  std::fprintf(stderr, "bitpagerd: %s\n", status.message().c_str());
  return ExitCodeOf(status);
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

// Everything that runs, in the order in which it ends.
class Daemon {
 public:
  explicit Daemon(const Config& config)
      : config_(config), started_ns_(clock_.NowNs()), started_unix_ms_(UnixMs()) {}

  Status Start() {
    wire::Result<std::unique_ptr<Node>> node = Node::Make(config_, ReadMachine(), clock_);
    if (!node.ok()) return node.status();
    node_ = std::move(*node);
    wire::Result<wire::UniqueFd> bell = MakeBell();
    if (!bell.ok()) return bell.status();
    done_bell_ = std::move(*bell);
    Status started = node_->Start(Hooks());
    if (!started.ok()) return started;
    Status place = TakePlace();
    if (!place.ok()) return place;
    Status http = ServeHttp();
    if (!http.ok()) return http;
    Status telemetry = telemetry_.Start(
        config_, [this] { return TakeSnapshot(); },
        [this](std::uint64_t cells) { return node_->ObservePages(cells); });
    if (!telemetry.ok()) return telemetry;
    if (config_.private_mode) {
      private_life_.Start(config_.private_first_client_ms, config_.private_grace_ms,
                          [this] { node_->RequestStop(); });
    }
    // Last, so that the first client finds all of it; who connected since the place was taken has waited.
    listener_->Serve();
    spdlog::info("serving {} on {}", config_.socket_path, node_->Describe());
    return NotifyReady("serving");
  }

  // Until every device's dispatcher ended. False: a device still works on what a destructor would free.
  [[nodiscard]] bool Run(int signals) {
    std::thread watcher([this, signals] { WatchSignals(signals); });
    const bool let_go = node_->Wait();
    static_cast<void>(NotifyStopping().ok());
    Ring(done_bell_.get());
    watcher.join();
    listener_->Stop();
    http_.reset();
    telemetry_.Stop();
    if (let_go) {
      spdlog::info("ended: every session was told");
    } else {
      spdlog::error("the device did not end what it runs: ending under it, every session was told");
    }
    return let_go;
  }

 private:
  Status TakePlace() {
    wire::Result<std::optional<int>> activated = TakeActivatedSocket();
    if (!activated.ok()) return activated.status();
    if (!activated->has_value()) {
      if (Status folder = MakeSocketFolder(config_); !folder.ok()) return folder;
    }
    Node* node = node_.get();
    ListenerEvents events;
    events.message = [node](const ConnectionRef& connection, std::shared_ptr<wire::Packet> packet) {
      node->OnMessage(connection, std::move(packet));
    };
    events.lost = [node](const ConnectionRef& connection) { node->OnLost(connection); };
    wire::Result<std::unique_ptr<Listener>> listener =
        Listener::Bind(ListenerOptionsOf(config_, activated->value_or(-1)), std::move(events));
    if (!listener.ok()) return listener.status();
    listener_ = std::move(*listener);
    return {};
  }

  Status ServeHttp() {
    if (config_.http.empty()) return {};
    const wire::Result<HttpAddress> address = ParseHttpAddress(config_.http);
    if (!address.ok()) return address.status();
    wire::Result<std::unique_ptr<HttpServer>> server = HttpServer::Bind(*address, site_, events_);
    if (!server.ok()) {
      // Private daemons read the machine's settings too, and one of them has the port.
      if (!config_.private_mode) return server.status();
      spdlog::warn("no HTTP: {}", server.status().message());
      return {};
    }
    http_ = std::move(*server);
    http_text_ = ToText(http_->address());
    http_->Serve();
    spdlog::info("metrics and dashboard on http://{}", http_text_);
    return {};
  }

  NodeHooks Hooks() {
    NodeHooks hooks;
    hooks.watch = [this](const ConnectionRef& c, wire::UniqueFd pidfd) {
      return listener_->Watch(c, std::move(pidfd));
    };
    hooks.notify = [this](Event event) { Tell(std::move(event)); };
    hooks.sessions_changed = [this](std::size_t sessions) {
      if (config_.private_mode) private_life_.SetSessions(sessions);
    };
    hooks.ipc_probe = [](const std::string& uuid) {
      return std::vector<std::string>{OwnProgram(), kIpcProbe, uuid};
    };
    return hooks;
  }

  void Tell(Event event) {
    const bool bad = event.name == "killed" || event.name == "error" || event.name == "nonfinite";
    spdlog::log(bad ? spdlog::level::warn : spdlog::level::info, "{} job={} bytes={} {}", event.name,
                event.job, event.bytes, event.text);
    events_.Add(std::move(event));
  }

  wire::Result<Snapshot> TakeSnapshot() {
    wire::Result<Snapshot> snapshot = node_->Observe();
    if (!snapshot.ok()) return snapshot;
    snapshot->version = kVersion;
    snapshot->pid = ::getpid();
    snapshot->uptime_ms = (clock_.NowNs() - started_ns_) / 1'000'000;
    snapshot->start_unix_ms = started_unix_ms_;
    snapshot->http = http_text_;
    snapshot->events = events_.Counts();
    snapshot->totals.events_dropped = events_.dropped();
    snapshot->totals.http = site_.counts();
    snapshot->private_mode = config_.private_mode;
    snapshot->socket_path = config_.socket_path;
    return snapshot;
  }

  void WatchSignals(int signals) {
    if (WaitEither(signals, done_bell_.get())) {
      spdlog::info("told to stop: finishing what is ready");
      node_->RequestStop();
    }
  }

  const Config config_;
  const Clock clock_;
  const std::uint64_t started_ns_;
  const std::int64_t started_unix_ms_;
  EventLog events_;
  HttpSite site_{
      {[this] { return TakeSnapshot(); }, [this](std::uint64_t cells) { return node_->ObservePages(cells); }},
      events_,
      clock_};
  std::string http_text_;  // constant once HTTP is served, before any thread reads it
  Telemetry telemetry_{events_};
  std::unique_ptr<Node> node_;
  PrivateLife private_life_;  // ends before the node that it stops
  wire::UniqueFd done_bell_;
  std::unique_ptr<Listener> listener_;
  std::unique_ptr<HttpServer> http_;  // first to go: it asks the node
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

// The two processes of a test (ipc_self_test.h), told by this program to itself.
std::optional<int> RunAsHelper(int argc, char** argv) {
  if (argc != 3) return std::nullopt;
  const std::string_view role = argv[1];
  const std::string uuid = argv[2];
  if (role == kIpcProbe) RunIpcProbe(uuid, {OwnProgram(), kIpcExporter, uuid});
  if (role == kIpcExporter) return kernels::RunIpcExporter(uuid, kIpcExporterSocket);
  return std::nullopt;
}

int Main(int argc, char** argv) {
  if (const std::optional<int> done = RunAsHelper(argc, argv)) return *done;
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
