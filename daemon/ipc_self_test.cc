#include "daemon/ipc_self_test.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>

#include "client/wire/status.h"
#include "kernels/device.h"
#include "kernels/ipc_probe.h"

namespace bitpager::daemon {
namespace {

using wire::Result;
using wire::Status;

constexpr std::size_t kLongestLine = 4096;

// A process whose standard output can be read; killed and reaped with this.
class Child {
 public:
  Child() = default;
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }

  // Empty, or why it could not be started.
  [[nodiscard]] std::string Start(std::vector<std::string> command) {
    int ends[2] = {-1, -1};
    if (::pipe2(ends, O_CLOEXEC) != 0) return std::strerror(errno);
    output_.Reset(ends[0]);
    const wire::UniqueFd theirs(ends[1]);
    std::vector<char*> arguments;
    for (std::string& word : command) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none;
    sigemptyset(&none);
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawnattr_init(&attributes);
    ::posix_spawnattr_setsigmask(&attributes, &none);
    ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    ::posix_spawn_file_actions_adddup2(&actions, theirs.get(), STDOUT_FILENO);
    const int error =
        ::posix_spawn(&pid_, command[0].c_str(), &actions, &attributes, arguments.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    ::posix_spawnattr_destroy(&attributes);
    if (error == 0) return {};
    pid_ = -1;
    return "cannot start " + command[0] + ": " + std::strerror(error);
  }

  [[nodiscard]] int output() const { return output_.get(); }

 private:
  pid_t pid_ = -1;
  wire::UniqueFd output_;
};

// The first line that `child` prints. Nothing when `stop` rings.
std::optional<std::string> ReadLine(const Child& child, int stop, int limit_ms, std::string& why) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(limit_ms);
  std::string line;
  for (;;) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()).count();
    pollfd waits[] = {{child.output(), POLLIN, 0}, {stop, POLLIN, 0}};
    const int ready = left <= 0 ? 0 : ::poll(waits, 2, static_cast<int>(left));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) {
      why = "no answer within " + std::to_string(limit_ms) + " ms";
      return std::nullopt;
    }
    if (waits[1].revents != 0) return std::nullopt;
    char bytes[256];
    const ssize_t got = ::read(child.output(), bytes, sizeof(bytes));
    if (got <= 0 || line.size() > kLongestLine) {
      why = "the test ended without an answer";
      return std::nullopt;
    }
    line.append(bytes, static_cast<std::size_t>(got));
    if (const std::size_t at = line.find('\n'); at != std::string::npos) return line.substr(0, at);
  }
}

// One probe on this thread, which makes all of the device's calls.
Result<bool> Probe(const std::string& uuid, const std::vector<std::string>& exporter) {
  kernels::DeviceOptions options;
  options.kind = "cuda";
  options.uuid = uuid;
  Result<std::unique_ptr<kernels::Device>> device = kernels::OpenDevice(options);
  if (!device.ok()) return device.status();
  Result<std::unique_ptr<kernels::IpcProbe>> probe = kernels::IpcProbe::Start(**device, exporter);
  if (!probe.ok()) return probe.status();
  for (;;) {
    if (const std::optional<Result<bool>> answer = (*probe)->Poll()) return *answer;
    // Memory that went with its owner is a fault of whoever reads it.
    if (Status fault = (*device)->TakeFault(); !fault.ok()) return false;
    ::usleep(1000);
  }
}

}  // namespace

const char* IpcSurvivalName(IpcSurvival survival) {
  switch (survival) {
    case IpcSurvival::kNotTested:
      return "not tested";
    case IpcSurvival::kYes:
      return "yes";
    case IpcSurvival::kNo:
      return "no";
    case IpcSurvival::kUnknown:
      return "unknown";
  }
  return "unknown";
}

IpcSelfTest::~IpcSelfTest() {
  if (!thread_.joinable()) return;
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(stop_.get(), &one, sizeof(one));
  thread_.join();
}

void IpcSelfTest::Start(std::vector<std::string> command, int limit_ms) {
  stop_.Reset(::eventfd(0, EFD_CLOEXEC));
  if (!stop_ || command.empty()) {
    return Conclude({IpcSurvival::kUnknown, stop_ ? "no command" : std::strerror(errno)});
  }
  thread_ = std::thread([this, command = std::move(command), limit_ms] { Run(command, limit_ms); });
}

IpcFinding IpcSelfTest::finding() const {
  const std::lock_guard lock(mutex_);
  return finding_;
}

void IpcSelfTest::Conclude(IpcFinding finding) {
  const std::lock_guard lock(mutex_);
  finding_ = std::move(finding);
}

void IpcSelfTest::Run(std::vector<std::string> command, int limit_ms) {
  Child child;
  if (std::string why = child.Start(std::move(command)); !why.empty()) {
    return Conclude({IpcSurvival::kUnknown, std::move(why)});
  }
  std::string why;
  const std::optional<std::string> line = ReadLine(child, stop_.get(), limit_ms, why);
  if (!line && why.empty()) return;  // told to stop
  if (line == "yes") return Conclude({IpcSurvival::kYes, {}});
  if (line == "no") {
    spdlog::warn(
        "memory that a client lent by a CUDA handle does not survive the client: one that is killed in the "
        "middle of a step can end the daemon with it. Hint: PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True "
        "in the training processes, whose memory is lent by file then");
    return Conclude({IpcSurvival::kNo, {}});
  }
  Conclude({IpcSurvival::kUnknown, line.value_or(why)});
}

int RunIpcProbe(const std::string& uuid, const std::vector<std::string>& exporter) {
  const Result<bool> survives = Probe(uuid, exporter);
  const std::string line = survives.ok() ? (*survives ? "yes" : "no") : survives.status().message();
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
  // Nothing is taken down: a device with a fault may never let go.
  std::_Exit(0);
}

}  // namespace bitpager::daemon
