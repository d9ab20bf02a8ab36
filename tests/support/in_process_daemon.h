// The daemon's core without its threads: a Dispatcher on the CPU device, single-stepped under a fake clock,
// and raw clients over socket pairs. Everything on the test's thread but the device's queues.
#pragma once

#include <dirent.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <memory>
#include <string>
#include <vector>

#include "daemon/dispatcher.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/support/fake_clock.h"
#include "tests/support/raw_client.h"
#include "tests/support/scripted_device.h"

namespace bitpager::testing {

inline constexpr std::uint64_t kTestPageBytes = 16U << 10;

// 16 frames of 16 KiB in windows of 2, 256 host frames.
[[nodiscard]] inline daemon::Settings TestSettings() {
  daemon::Settings settings;
  settings.pager.page_bytes = kTestPageBytes;
  settings.pager.device_frames = 16;
  settings.pager.host_frames = 256;
  settings.pager.window_pages = 2;
  settings.pager.windows_in_flight = 2;
  settings.pager.poison = true;
  settings.host_budget_bytes = settings.pager.host_frames * kTestPageBytes;
  return settings;
}

// The same, for tests of which buffers are not the subject: these count against the host budget.
[[nodiscard]] inline daemon::Settings RoomyTestSettings() {
  daemon::Settings settings = TestSettings();
  settings.host_budget_bytes = std::uint64_t{1} << 30;
  return settings;
}

// Open descriptors of this process.
[[nodiscard]] inline std::size_t OpenFds() {
  std::size_t count = 0;
  DIR* folder = ::opendir("/proc/self/fd");
  while (::readdir(folder) != nullptr) ++count;
  ::closedir(folder);
  return count;
}

class InProcessDaemon {
 public:
  // `launch_pages`: not 0, and the device says that it likes launches of so many pages. `card_bytes`: not 0,
  // and it has memory of its own.
  explicit InProcessDaemon(const daemon::Settings& settings = TestSettings(), std::uint32_t launch_pages = 0,
                           std::uint64_t card_bytes = 0) {
    auto inner = kernels::cpu::OpenCpuDevice(1);
    EXPECT_TRUE(inner.ok());
    device = std::make_unique<ScriptedDevice>(std::move(*inner));
    device->launch_pages = launch_pages;
    device->card_bytes = card_bytes;
    auto made = daemon::Dispatcher::Make(settings, *device, clock);
    EXPECT_TRUE(made.ok());
    dispatcher = std::move(*made);
    core().notify = [this](const daemon::Notice& notice) { notices.push_back(notice); };
  }
  ~InProcessDaemon() {
    Settle();
    lines_.clear();
    dispatcher.reset();
  }

  // A socket pair; the daemon sees `peer` at the other end.
  [[nodiscard]] std::unique_ptr<RawClient> Connect(daemon::Peer peer = {1000, 1000, 1}) {
    int ends[2] = {-1, -1};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
    lines_.push_back({std::make_shared<daemon::Connection>(wire::UniqueFd(ends[0]), peer), false});
    auto client = std::make_unique<RawClient>(wire::UniqueFd(ends[1]));
    client->SetInProcess();
    client->turn = [this] { Turn(); };
    return client;
  }
  // Connected, with a session of `job`.
  [[nodiscard]] std::unique_ptr<RawClient> Open(const std::string& job, std::uint32_t rank = 0,
                                                daemon::Peer peer = {1000, 1000, 1}) {
    auto client = Connect(peer);
    const Reply reply = client->Hello(RawClient::HelloBodyOf(job, rank));
    EXPECT_TRUE(reply.ok()) << reply.text();
    return client;
  }

  // As Open, with a pidfd: no heartbeat is wanted, so that the clock may be moved.
  [[nodiscard]] std::unique_ptr<RawClient> OpenPatient(const std::string& job) {
    auto client = Connect();
    const Reply reply = client->Hello(RawClient::HelloBodyOf(job), PidfdOf(::getpid()).get());
    EXPECT_TRUE(reply.ok()) << reply.text();
    return client;
  }

  // Plays the listener once, then lets the dispatcher work once.
  int Turn() {
    int work = 0;
    for (Line& line : lines_) work += Listen(line);
    std::erase_if(lines_, [](const Line& line) { return line.lost; });
    return work + dispatcher->DoWork();
  }
  // Until nothing happens any more and the device is idle.
  void Settle() {
    for (int quiet = 0; quiet < 3;) quiet = Turn() > 0 || Moving() ? 0 : quiet + 1;
  }
  template <typename Condition>
  [[nodiscard]] bool TurnUntil(Condition condition, int timeout_ms = kPatienceMs) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > end) return false;
      Turn();
    }
    return true;
  }
  void CheckInvariants() { core().pager.CheckInvariants(); }

  [[nodiscard]] daemon::Core& core() { return dispatcher->core(); }
  [[nodiscard]] std::size_t sessions() { return core().registry.sessions().size(); }
  [[nodiscard]] std::size_t jobs() { return core().registry.jobs().size(); }
  // Of this name, with `text` somewhere in its own.
  [[nodiscard]] bool Noticed(const std::string& name, const std::string& text = "") const {
    for (const daemon::Notice& notice : notices) {
      if (notice.name == name && notice.text.find(text) != std::string::npos) return true;
    }
    return false;
  }

  FakeClock clock;
  std::unique_ptr<ScriptedDevice> device;
  std::unique_ptr<daemon::Dispatcher> dispatcher;
  std::vector<daemon::Notice> notices;

 private:
  struct Line {
    daemon::ConnectionRef connection;
    bool lost = false;
  };

  int Listen(Line& line) {
    int work = 0;
    for (;;) {
      wire::Packet packet;
      const wire::Status got = wire::ReceivePacket(line.connection->socket.get(), packet);
      if (got.code() == wire::Code::kPending) return work;
      ++work;
      if (!got.ok() || packet.closed) {
        line.lost = true;
        line.connection->HangUp();
        dispatcher->OnLost(line.connection);
        return work;
      }
      dispatcher->OnMessage(line.connection, packet);
    }
  }
  [[nodiscard]] bool Moving() {
    if (!dispatcher->idle()) return true;
    for (const auto& [id, session] : core().registry.sessions()) {
      if (session->active) return true;
    }
    return false;
  }

  std::vector<Line> lines_;
};

}  // namespace bitpager::testing
