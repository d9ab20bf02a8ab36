// A real daemon's figures, asked for over HTTP: beside the OS's, while jobs train and are killed, and at no
// cost when nobody asks.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <list>
#include <thread>

#include "client/wire/unique_fd.h"
#include "daemon/http_address.h"
#include "tests/process/trainer.h"
#include "tests/support/daemon_process.h"
#include "tests/support/figures.h"
#include "tests/support/raw_client.h"

namespace bitpager::testing {
namespace {

using daemon::DeviceSnapshot;
using daemon::JobSnapshot;
using daemon::Snapshot;
using ::testing::HasSubstr;

// What GET of `path` answers, header and all; empty when there is no answer in time.
std::string Get(const std::string& address, const std::string& path) {
  const wire::UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(daemon::ParseHttpAddress(address)->port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&to), sizeof(to)) != 0) return {};
  const std::string request = "GET " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
  if (::send(fd.get(), request.data(), request.size(), MSG_NOSIGNAL) < 0) return {};
  std::string out;
  char bytes[65536];
  for (;;) {
    pollfd ready{fd.get(), POLLIN, 0};
    if (::poll(&ready, 1, 20'000) <= 0) return {};
    const ssize_t got = ::recv(fd.get(), bytes, sizeof(bytes), 0);
    if (got <= 0) return out;
    out.append(bytes, static_cast<std::size_t>(got));
  }
}
std::string BodyOf(const std::string& reply) {
  return reply.substr(std::min(reply.size(), reply.find("\r\n\r\n") + 4));
}

// Bytes of a line of /proc/PID/status, as "RssAnon".
std::uint64_t StatusBytes(pid_t pid, const std::string& name) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(name + ":"))
      return std::strtoull(line.c_str() + name.size() + 1, nullptr, 10) * 1024;
  }
  return 0;
}

void ExpectSums(const Snapshot& s) {
  const DeviceSnapshot& device = s.devices.at(0);
  std::uint64_t resident = 0, host = 0, dirty = 0, leased = 0, steps = 0, evicted = 0, loaded = 0;
  for (const JobSnapshot& job : s.jobs) {
    resident += job.resident_bytes;
    host += job.host_bytes + job.buffer_bytes;
    dirty += job.dirty_bytes;
    leased += job.leased_bytes;
    steps += job.steps;
    evicted += SumOf(job.evictions_by_reason);
    loaded += SumOf(job.moved_by_reason.to_device);
  }
  for (const daemon::PastJobSnapshot& past : s.past_jobs) {
    steps += past.steps;
    evicted += SumOf(past.evictions_by_reason);
    loaded += SumOf(past.moved_by_reason.to_device);
  }
  EXPECT_EQ(resident, device.used_bytes);
  EXPECT_EQ(host, device.host_committed_bytes);
  EXPECT_EQ(dirty, device.dirty_bytes);
  EXPECT_EQ(leased, device.leased_bytes);
  EXPECT_EQ(steps, device.steps);
  EXPECT_EQ(evicted, SumOf(device.evictions_by_reason));
  EXPECT_EQ(loaded, SumOf(device.moved_by_reason.to_device));
}

std::vector<std::string> Flags(const std::string& page, const std::string& device_budget) {
  return {"--device",    "cpu",        "--device-budget", device_budget, "--host-budget", "256MiB",
          "--page-size", page,         "--window-pages",  "4",           "--threads",     "1",
          "--http",      "127.0.0.1:0"};
}

TEST(Metrics, SayWhereTheyAreAndAreThere) {
  DaemonProcess daemon(Flags("16KiB", "1MiB"));
  const auto status = daemon.Status();
  ASSERT_TRUE(status);
  ASSERT_TRUE(daemon::ParseHttpAddress(status->http).ok()) << status->http;
  EXPECT_THAT(daemon.Log(), HasSubstr("http://" + status->http));  // told before anybody was answered
  EXPECT_THAT(Get(status->http, "/metrics"), HasSubstr("\nbitpager_page_bytes 16384\n"));
  EXPECT_EQ(BodyOf(Get(status->http, "/healthz")), R"({"status":"ok"})");
  const auto over_http = daemon::SnapshotFromJson(BodyOf(Get(status->http, "/api/status")));
  ASSERT_TRUE(over_http.ok());
  EXPECT_EQ(over_http->pid, daemon.pid());
  EXPECT_EQ(over_http->start_unix_ms, status->start_unix_ms);
}

TEST(Metrics, AddUpWhileJobsTrainAndAreKilled) {
  DaemonProcess daemon(Flags("16KiB", "1MiB"));
  const std::string http = daemon.Status()->http;
  std::list<Child> children;
  const auto start = [&](int i) {
    children.emplace_back([&daemon, i] {
      auto session = client::Session::Connect(daemon.ConnectOptionsOf("job" + std::to_string(i % 3)));
      if (!session.ok()) return 1;
      Trainer trainer(*session, {static_cast<std::uint64_t>(40 + 10 * (i % 5)) * 6144});
      if (!trainer.Create().ok()) return 2;
      for (std::uint64_t step = 1;; ++step) {
        if (!trainer.Step(step).ok()) return 3;
      }
    });
  };
  for (int i = 0; i < 3; ++i) start(i);
  std::uint64_t steps = 0;
  std::uint64_t killed = 0;  // that had a session
  for (int i = 3; i < 15; ++i) {
    bool attached = false;
    EXPECT_TRUE(WaitUntil(
        [&] {
          const auto s = daemon::SnapshotFromJson(BodyOf(Get(http, "/api/status")));
          if (!s.ok()) return false;
          ExpectSums(*s);
          const auto is_next = [&](const auto& session) { return session.pid == children.front().pid(); };
          attached = std::any_of(s->sessions.begin(), s->sessions.end(), is_next);
          // It ends by itself where the one before it of its job is not buried yet.
          if (!attached) return children.front().Wait(Millis(0)).has_value();
          return std::exchange(steps, s->devices[0].steps) < s->devices[0].steps;
        },
        Millis(30'000)));
    killed += attached ? 1 : 0;
    children.front().Signal(SIGKILL);
    static_cast<void>(children.front().Wait(Millis(5'000)));
    children.pop_front();
    start(i);
    const auto asked = daemon.Status();
    ASSERT_TRUE(asked);
    ExpectSums(*asked);
  }
  children.clear();
  EXPECT_TRUE(WaitUntil([&] { return daemon.Status()->jobs.empty(); }, Millis(10'000)));
  const auto end = daemon.Status();
  ExpectSums(*end);
  EXPECT_GE(end->devices[0].steps, steps) << "counts outlive their jobs";
  EXPECT_GE(killed, 4U);
  EXPECT_GE(end->totals.sessions_lost, killed);
  EXPECT_THAT(Get(http, "/metrics"),
              HasSubstr("bitpager_steps_total{gpu=\"cpu\",UUID=\"cpu-0\",job=\"job0\"}"));
}

// Everything that we say we hold is what the OS says our process holds, within one segment.
TEST(Metrics, AreWhatTheSystemSays) {
  if (kSlowdown > 1) GTEST_SKIP() << "a sanitizer's shadow memory is nobody's";
  constexpr std::uint64_t kPage = 512U << 10;
  constexpr std::uint64_t kPages = 24;
  constexpr std::uint64_t kElementsOfPage = 1008U * 256;
  DaemonProcess daemon(Flags("512KiB", "6MiB"));
  const auto round = [&](const auto& look) {
    auto session = daemon.Open("truth");
    Trainer trainer(session, {kPages * kElementsOfPage});
    ASSERT_TRUE(trainer.Create().ok());
    for (std::uint64_t step = 1; step <= 3; ++step) ASSERT_TRUE(trainer.Step(step).ok());
    // Pages that stayed have no copy on the host yet: they are written back, so that all memory is in use.
    RawClient line{wire::UniqueFd(ConnectRaw(daemon.socket()))};
    wire::EvictBody evict;
    wire::CopyText(evict.job, "truth");
    ASSERT_TRUE(line.Ask(wire::MessageType::kEvict, evict).ok());
    ASSERT_TRUE(WaitUntil([&] { return daemon.Status()->devices[0].used_bytes == 0; }, Millis(20'000)));
    look();
  };
  round([] {});  // what the heap and the threads come to take, they have taken
  // What was given back to the system has gone.
  const auto idle = [&] {
    const auto s = daemon.Status();
    return s && s->jobs.empty() && s->devices[0].own_bytes == 0;
  };
  ASSERT_TRUE(WaitUntil(idle, Millis(20'000)));
  std::uint64_t anon = StatusBytes(daemon.pid(), "RssAnon");
  ASSERT_TRUE(WaitUntil([&] { return std::exchange(anon, StatusBytes(daemon.pid(), "RssAnon")) == anon; },
                        Millis(20'000)));
  const std::uint64_t shmem = StatusBytes(daemon.pid(), "RssShmem");
  ASSERT_GT(anon, 0U);
  round([&] {
    const auto s = daemon.Status();
    ASSERT_TRUE(s);
    const std::uint64_t host = s->devices[0].host_committed_bytes - s->jobs[0].buffer_bytes;
    EXPECT_EQ(host, kPages * kPage);
    EXPECT_EQ(s->devices[0].own_bytes, 12 * kPage);
    const auto grown = static_cast<double>(StatusBytes(daemon.pid(), "RssAnon") - anon);
    EXPECT_NEAR(grown, static_cast<double>(s->devices[0].own_bytes + host), kPage);
    const auto shared = static_cast<double>(StatusBytes(daemon.pid(), "RssShmem") - shmem);
    // Of a session's own slab, committed whole, only what was used is there.
    EXPECT_LE(shared, static_cast<double>(s->jobs[0].buffer_bytes) + kPage);
    EXPECT_GE(shared, static_cast<double>(kPages * kElementsOfPage * 8) - kPage);
  });
}

TEST(Metrics, CostNothingWhenNobodyAsks) {
  DaemonProcess daemon(Flags("16KiB", "1MiB"));
  auto session = daemon.Open("idle");
  ASSERT_TRUE(session->Noop().ok());
  const auto scraped = [&] { return Get(daemon.Status()->http, "/metrics"); };
  EXPECT_THAT(scraped(), HasSubstr("bitpager_scrapes_total 0\n"));
  std::this_thread::sleep_for(Millis(200));
  const std::uint64_t before_ns = daemon.Use().cpu_ns;
  std::this_thread::sleep_for(Millis(1'000));
  EXPECT_LT(daemon.Use().cpu_ns - before_ns, 10'000'000U * kSlowdown) << "ns of CPU in a second";
}

TEST(Metrics, APortThatIsTakenIsRefusedButByPrivateDaemons) {
  DaemonProcess first(Flags("16KiB", "1MiB"));
  const std::string http = first.Status()->http;
  std::vector<std::string> flags = Flags("16KiB", "1MiB");
  flags.back() = http;
  DaemonProcess::Options options;
  options.flags = flags;
  options.wait = false;
  DaemonProcess second(options);
  const auto ended = second.Wait(Millis(10'000));
  ASSERT_TRUE(ended);
  EXPECT_TRUE(WIFEXITED(*ended) && WEXITSTATUS(*ended) != 0);
  EXPECT_THAT(second.Log(), HasSubstr("cannot serve HTTP on " + http));
  flags.emplace_back("--private");
  DaemonProcess lone(flags);
  EXPECT_EQ(lone.Status()->http, "");
  EXPECT_THAT(lone.Log(), HasSubstr("no HTTP"));  // told before anybody was answered
  EXPECT_TRUE(lone.Open("job")->Noop().ok());
}

TEST(Metrics, AnAddressThatOthersReachNeedsAWord) {
  std::vector<std::string> flags = Flags("16KiB", "1MiB");
  flags.back() = "0.0.0.0:0";
  DaemonProcess::Options options;
  options.flags = flags;
  options.wait = false;
  DaemonProcess refused(options);
  const auto ended = refused.Wait(Millis(10'000));
  ASSERT_TRUE(ended);
  EXPECT_TRUE(WIFEXITED(*ended) && WEXITSTATUS(*ended) == 2);
  EXPECT_THAT(refused.Log(), HasSubstr("--http-remote"));
  flags.emplace_back("--http-remote");
  DaemonProcess open(flags);
  EXPECT_EQ(BodyOf(Get(open.Status()->http, "/healthz")), R"({"status":"ok"})");
}

}  // namespace
}  // namespace bitpager::testing
