#include "daemon/ipc_self_test.h"

#include <fcntl.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>

#include "client/wire/status.h"
#include "daemon/shared_memory.h"
#include "kernels/child_process.h"
#include "kernels/device.h"
#include "kernels/ipc_probe.h"

namespace bitpager::daemon {
namespace {

using wire::Result;
using wire::Status;

constexpr std::size_t kLongestLine = 4096;

// Starts `command` as `child`; what it prints can be read from `output`.
Status StartWithOutput(const std::vector<std::string>& command, kernels::ChildProcess& child,
                       wire::UniqueFd& output) {
  int ends[2] = {-1, -1};
  if (::pipe2(ends, O_CLOEXEC) != 0) return {wire::Code::kInternal, std::strerror(errno)};
  output.Reset(ends[0]);
  const wire::UniqueFd theirs(ends[1]);
  return child.Start(command, theirs.get(), STDOUT_FILENO);
}

// The first line that comes from `output`. Nothing, and no reason, when `bell` rings.
std::optional<std::string> ReadLine(int output, int bell, int limit_ms, std::string& why) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(limit_ms);
  std::string line;
  for (;;) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()).count();
    pollfd waits[] = {{output, POLLIN, 0}, {bell, POLLIN, 0}};
    const int ready = left <= 0 ? 0 : ::poll(waits, 2, static_cast<int>(left));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) {
      why = "no answer within " + std::to_string(limit_ms) + " ms";
      return std::nullopt;
    }
    if (waits[1].revents != 0) return std::nullopt;
    char bytes[256];
    const ssize_t got = ::read(output, bytes, sizeof(bytes));
    if (got <= 0 || line.size() > kLongestLine) {
      why = "the test ended without an answer";
      return std::nullopt;
    }
    line.append(bytes, static_cast<std::size_t>(got));
    if (const std::size_t at = line.find('\n'); at != std::string::npos) return line.substr(0, at);
  }
}

// Says what was found and ends this process, in which nothing is taken down any more.
[[noreturn]] void AnswerAndEnd(const Result<bool>& survives) {
  const std::string line = survives.ok() ? (*survives ? "yes" : "no") : survives.status().message();
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
  std::_Exit(0);
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
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  Ring(bell_.get());
  thread_.join();
}

void IpcSelfTest::Start(std::vector<std::string> command, Limits limits) {
  bell_.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!bell_ || command.empty()) {
    return Conclude({IpcSurvival::kUnknown, bell_ ? "no command" : std::strerror(errno)});
  }
  Skip("it is tested once no client was here for " + std::to_string(limits.quiet_ms / 1000) + " s");
  thread_ = std::thread([this, command = std::move(command), limits] { Run(command, limits); });
}

void IpcSelfTest::SetSessions(std::size_t sessions) {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    sessions_ = sessions;
  }
  Ring(bell_.get());
}

IpcFinding IpcSelfTest::finding() const {
  const std::lock_guard lock(mutex_);
  return finding_;
}

void IpcSelfTest::Conclude(IpcFinding finding) {
  const std::lock_guard lock(mutex_);
  finding_ = std::move(finding);
}

// True once there was no session for so long; false: told to stop.
bool IpcSelfTest::AwaitQuiet(int quiet_ms) {
  for (;;) {
    Quiet(bell_.get());
    int wait_ms = -1;
    {
      const std::lock_guard lock(mutex_);
      if (stop_) return false;
      if (sessions_ == 0) wait_ms = quiet_ms;
    }
    pollfd bell{bell_.get(), POLLIN, 0};
    if (::poll(&bell, 1, wait_ms) == 0) return true;
  }
}

void IpcSelfTest::Run(const std::vector<std::string>& command, Limits limits) {
  while (AwaitQuiet(limits.quiet_ms)) {
    kernels::ChildProcess child;
    wire::UniqueFd output;
    const Status started = StartWithOutput(command, child, output);
    if (!started.ok()) return Conclude({IpcSurvival::kUnknown, started.message()});
    std::string why;
    const std::optional<std::string> line = ReadLine(output.get(), bell_.get(), limits.test_ms, why);
    if (!line && why.empty()) continue;  // the memory is wanted, or this is the end
    if (line == "yes") return Conclude({IpcSurvival::kYes, {}});
    if (line == "no") {
      spdlog::warn(
          "memory that a client lent by a CUDA handle does not survive the client: one that is killed in the "
          "middle of a step can end the daemon with it. Hint: "
          "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True in the training processes, whose memory is lent "
          "by "
          "file then");
      return Conclude({IpcSurvival::kNo, {}});
    }
    return Conclude({IpcSurvival::kUnknown, line.value_or(why)});
  }
}

void ProbeAndEnd(std::unique_ptr<kernels::Device> device, const std::vector<std::string>& exporter) {
  kernels::Device& kept = *device.release();  // for ever
  Result<std::unique_ptr<kernels::IpcProbe>> started = kernels::IpcProbe::Start(kept, exporter);
  if (!started.ok()) AnswerAndEnd(started.status());
  kernels::IpcProbe& probe = *started->release();
  for (;;) {
    if (const std::optional<Result<bool>> answer = probe.Poll()) AnswerAndEnd(*answer);
    // Memory that went with its owner is a fault of whoever reads it.
    if (Status fault = kept.TakeFault(); !fault.ok()) AnswerAndEnd(false);
    ::usleep(1000);
  }
}

void RunIpcProbe(const std::string& uuid, const std::vector<std::string>& exporter) {
  kernels::DeviceOptions options;
  options.kind = "cuda";
  options.uuid = uuid;
  options.bare = true;
  Result<std::unique_ptr<kernels::Device>> device = kernels::OpenDevice(options);
  if (!device.ok()) AnswerAndEnd(device.status());
  ProbeAndEnd(std::move(*device), exporter);
}

}  // namespace bitpager::daemon
