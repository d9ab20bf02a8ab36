// How a daemon starts, idles and ends.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "client/wire/fd_socket.h"
#include "tests/process/trainer.h"
#include "tests/support/daemon_process.h"
#include "tests/support/raw_client.h"

namespace bitpager::testing {
namespace {

using ::testing::HasSubstr;
using wire::Code;
using Clock = std::chrono::steady_clock;

const std::vector<std::string> kSmall = {"--device-budget", "1MiB",  "--host-budget",  "32MiB",
                                         "--page-size",     "16KiB", "--window-pages", "4",
                                         "--threads",       "1"};

std::vector<std::string> SmallAnd(std::vector<std::string> more) {
  more.insert(more.begin(), kSmall.begin(), kSmall.end());
  return more;
}

// Whether it exited, and not with 0.
bool Refused(DaemonProcess& daemon) {
  const auto status = daemon.Wait(Millis(5'000));
  return status && WIFEXITED(*status) && WEXITSTATUS(*status) != 0;
}

// Whether each of its threads has stopped: the signal reaches them one after the other.
bool IsStopped(pid_t pid) {
  for (const auto& task : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task")) {
    std::ifstream file(task.path() / "stat");
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    const std::size_t name_end = text.rfind(')');
    if (name_end == std::string::npos || text.substr(name_end, 3) != ") T") return false;
  }
  return true;
}

// From the start of the program until its first client has been answered: the best of some tries, for the
// machine may be busy with something else.
Millis TimeToServe(const std::vector<std::string>& flags) {
  constexpr int kTries = 10;
  Millis best(1'000'000);
  for (int i = 0; i < kTries && best.count() > 300 * kSlowdown; ++i) {
    const auto begun = Clock::now();
    DaemonProcess daemon(flags);
    EXPECT_TRUE(daemon.Open("first")->Noop().ok());
    best = std::min(best, std::chrono::duration_cast<Millis>(Clock::now() - begun));
  }
  return best;
}

TEST(Start, ServesWithin300Ms) {
  EXPECT_LE(TimeToServe(kSmall).count(), 300 * kSlowdown);
}

TEST(Start, ServesWithin300MsWithLargeBudgets) {
  EXPECT_LE(TimeToServe({}).count(), 300 * kSlowdown);
}

TEST(Start, ReplacesAStaleSocket) {
  TempFolder folder;
  {
    const auto address = wire::UnixAddress(folder.path() + "/s");
    const wire::UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET, 0));
    ASSERT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof(*address)), 0);
  }
  DaemonProcess daemon({kSmall, folder.path(), ~0U, true});
  EXPECT_TRUE(daemon.Open("job")->Noop().ok());
}

TEST(Start, ReplacesTheSocketsOfADaemonThatWasKilled) {
  TempFolder folder;
  DaemonProcess first({kSmall, folder.path(), ~0U, true});
  first.Signal(SIGKILL);
  ASSERT_TRUE(first.Wait(Millis(1'000)));
  DaemonProcess second({kSmall, folder.path(), ~0U, true});
  EXPECT_TRUE(second.Open("job")->Noop().ok());
  EXPECT_TRUE(second.Status());
}

TEST(Start, IsRefusedWhereADaemonServes) {
  TempFolder folder;
  DaemonProcess first({kSmall, folder.path(), ~0U, true});
  auto session = first.Open("job");
  DaemonProcess second({kSmall, folder.path(), ~0U, false});
  EXPECT_TRUE(Refused(second));
  EXPECT_THAT(second.Log(), HasSubstr("already serves"));
  EXPECT_TRUE(session->Noop().ok());
  EXPECT_TRUE(first.Open("other")->Noop().ok());
  EXPECT_TRUE(first.Status());
}

TEST(Start, MakesTheFolderOfASocketThatNobodyNamed) {
  if (::getuid() != 0) GTEST_SKIP() << "needs root, to become a user with a folder of his own";
  constexpr uid_t kUser = 65503;
  TempFolder runtime;
  ASSERT_EQ(::chown(runtime.path().c_str(), kUser, kUser), 0);
  const auto serve = [&] {
    if (::setgroups(0, nullptr) != 0 || ::setgid(kUser) != 0 || ::setuid(kUser) != 0) return 126;
    ::unsetenv("BITPAGER_SOCKET");
    ::setenv("XDG_RUNTIME_DIR", runtime.path().c_str(), 1);
    std::vector<std::string> arguments = kSmall;
    arguments.insert(arguments.begin(), DaemonProcess::Program());
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    ::execv(argv[0], argv.data());
    return 127;
  };
  const std::string folder = runtime.path() + "/bitpager";
  Child daemon(serve);
  const auto connects = [&] {
    const wire::UniqueFd socket(ConnectRaw(folder + "/bitpager.sock"));
    return static_cast<bool>(socket);
  };
  EXPECT_TRUE(WaitUntil([&] { return connects() || daemon.Wait(Millis(0)); }, Millis(10'000)));
  EXPECT_TRUE(connects());
  struct stat info {};
  ASSERT_EQ(::stat(folder.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700U);
  daemon.Signal(SIGTERM);
  ASSERT_TRUE(daemon.Succeeds());
  // As a service manager makes it.
  ASSERT_EQ(::chmod(folder.c_str(), 0755), 0);
  Child again(serve);
  EXPECT_TRUE(WaitUntil([&] { return connects() || again.Wait(Millis(0)); }, Millis(10'000)));
  EXPECT_TRUE(connects());
  again.Signal(SIGTERM);
  EXPECT_TRUE(again.Succeeds());
}

TEST(Start, IsRefusedOverAFileThatIsNoSocket) {
  TempFolder folder;
  { const wire::UniqueFd fd(::open((folder.path() + "/s").c_str(), O_CREAT | O_WRONLY, 0600)); }
  DaemonProcess daemon({kSmall, folder.path(), ~0U, false});
  EXPECT_TRUE(Refused(daemon));
  EXPECT_THAT(daemon.Log(), HasSubstr("not a socket"));
  struct stat info {};
  EXPECT_EQ(::stat((folder.path() + "/s").c_str(), &info), 0) << "the file stays";
}

TEST(Start, IsRefusedInAFolderThatIsNotThere) {
  DaemonProcess daemon({kSmall, "/tmp/bitpager-no-such-folder", ~0U, false});
  EXPECT_TRUE(Refused(daemon));
  EXPECT_THAT(daemon.Log(), HasSubstr("/tmp/bitpager-no-such-folder/s"));
}

TEST(Start, IsRefusedInAFolderOfAnother) {
  if (::getuid() != 0) GTEST_SKIP() << "needs root, to become another user";
  TempFolder folder;  // root's, 0700
  DaemonProcess daemon({kSmall, folder.path(), 65501, false});
  EXPECT_TRUE(Refused(daemon));
  EXPECT_THAT(daemon.Log(), HasSubstr("ermission denied"));
}

TEST(Start, RefusesBudgetsThatAreNotThere) {
  DaemonProcess daemon({{"--device-budget", "4096TiB"}, "", ~0U, false});
  EXPECT_TRUE(Refused(daemon));
  EXPECT_THAT(daemon.Log(), HasSubstr("device budget"));
  DaemonProcess window({{"--device-budget", "1MiB", "--page-size", "2MiB"}, "", ~0U, false});
  EXPECT_TRUE(Refused(window));
  EXPECT_THAT(window.Log(), HasSubstr("window"));
}

TEST(Start, IsNotBoundByTheSoftLimitOfOpenFiles) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit low = before;
  low.rlim_cur = 64;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  DaemonProcess daemon(kSmall);  // inherits it
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  std::vector<std::shared_ptr<client::Session>> sessions;
  for (int i = 0; i < 40; ++i) {
    client::ConnectOptions options = daemon.ConnectOptionsOf("job");
    options.rank = static_cast<std::uint32_t>(i);
    auto session = client::Session::Connect(options);
    ASSERT_TRUE(session.ok()) << session.status().message();
    sessions.push_back(*session);
  }
  EXPECT_TRUE(sessions.back()->Noop().ok());
}

TEST(Idle, UsesNoCpuWithTwoSessions) {
  DaemonProcess daemon(kSmall);
  auto one = daemon.Open("one");
  auto two = daemon.Open("two");
  Trainer trainer(one, {100'000});
  ASSERT_TRUE(trainer.Create().ok());
  ASSERT_TRUE(trainer.Step(1).ok());
  std::this_thread::sleep_for(Millis(100));
  const std::uint64_t before_ns = daemon.Use().cpu_ns;
  std::this_thread::sleep_for(Millis(10'000));
  EXPECT_LT(daemon.Use().cpu_ns - before_ns, 10'000'000U * kSlowdown);
  EXPECT_TRUE(one->Noop().ok());
  EXPECT_TRUE(two->Noop().ok());
}

TEST(Idle, ABellOfASessionThatEndedWakesNobody) {
  DaemonProcess daemon(kSmall);
  RawClient client{wire::UniqueFd(ConnectRaw(daemon.socket()))};
  ASSERT_TRUE(client.Hello(RawClient::HelloBodyOf("job"), PidfdOf(::getpid()).get()).ok());
  ASSERT_TRUE(client.AskBare(wire::MessageType::kDetach).ok());
  ASSERT_TRUE(WaitUntil([&] { return daemon.Status()->sessions.empty(); }, Millis(1'000)));
  const std::uint64_t one = 1;
  ASSERT_EQ(::write(client.request_bell(), &one, sizeof(one)), 8);
  const std::uint64_t before_ns = daemon.Use().cpu_ns;
  std::this_thread::sleep_for(Millis(500));
  EXPECT_LT(daemon.Use().cpu_ns - before_ns, 50'000'000U * kSlowdown);
  EXPECT_TRUE(daemon.Open("other")->Noop().ok());
}

TEST(Idle, AClientThatFillsItsRingsLetsTheDaemonSleep) {
  DaemonProcess daemon(kSmall);
  RawClient client{wire::UniqueFd(ConnectRaw(daemon.socket()))};
  ASSERT_TRUE(client.Hello(RawClient::HelloBodyOf("job"), PidfdOf(::getpid()).get()).ok());
  for (std::uint64_t ticket = 1; ticket <= wire::kRequestSlots; ++ticket) {
    wire::RequestRecord record;
    record.version = wire::kWireVersion;
    record.ticket = ticket;
    record.ready = ~0ULL;  // never
    client.PushRaw(record);
  }
  const wire::Word& taken = client.view().header().request_head.word;
  ASSERT_TRUE(WaitUntil([&] { return taken.load() == wire::kRequestSlots; }, Millis(10'000)));
  wire::RequestRecord more;
  more.ticket = wire::kRequestSlots + 1;
  more.ready = ~0ULL;
  client.PushRaw(more);
  const std::uint64_t before_ns = daemon.Use().cpu_ns;
  std::this_thread::sleep_for(Millis(1'000));
  EXPECT_LT(daemon.Use().cpu_ns - before_ns, 300'000'000U * kSlowdown) << "it looks at `ready`, and naps";
}

TEST(End, SigtermTellsItsClients) {
  DaemonProcess daemon(kSmall);
  auto session = daemon.Open("job");
  Trainer trainer(session, {50'000});
  ASSERT_TRUE(trainer.Create().ok());
  ASSERT_TRUE(trainer.Step(1).ok());
  daemon.Signal(SIGTERM);
  const auto asked = Clock::now();
  wire::Status said;
  for (std::uint64_t step = 2; said.ok(); ++step) said = trainer.Step(step);
  EXPECT_LT(Clock::now() - asked, Millis(1'000) * kSlowdown);
  EXPECT_TRUE(said.code() == Code::kDraining || said.code() == Code::kDaemonLost) << said.message();
  const auto status = daemon.Wait(Millis(2'000));
  ASSERT_TRUE(status);
  EXPECT_TRUE(WIFEXITED(*status) && WEXITSTATUS(*status) == 0) << daemon.Log();
  EXPECT_NE(::access(daemon.socket().c_str(), F_OK), 0) << "the socket file is gone";
}

TEST(End, AKilledDaemonIsNoticedByAWaitingClient) {
  DaemonProcess daemon(kSmall);
  auto session = daemon.Open("job");
  ASSERT_TRUE(session->Noop().ok());
  daemon.Signal(SIGSTOP);  // so that the client must wait
  ASSERT_TRUE(WaitUntil([&] { return IsStopped(daemon.pid()); }, Millis(5'000)));
  Clock::time_point killed;
  std::thread killer([&] {
    std::this_thread::sleep_for(Millis(200));
    killed = Clock::now();
    daemon.Signal(SIGKILL);
  });
  const wire::Status said = session->Noop();
  const auto noticed = Clock::now();
  killer.join();
  EXPECT_EQ(said.code(), Code::kDaemonLost) << said.message();
  EXPECT_FALSE(said.message().empty());
  EXPECT_LT(noticed - killed, Millis(1'000) * kSlowdown);
  EXPECT_EQ(session->Noop().code(), Code::kDaemonLost) << "and stays lost";
}

TEST(End, APrivateDaemonGoesWithItsLastClient) {
  DaemonProcess daemon(SmallAnd({"--private"}));
  auto one = daemon.Open("one");
  auto two = daemon.Open("two");
  one->Disconnect();
  std::this_thread::sleep_for(Millis(3'000));
  EXPECT_FALSE(daemon.Wait(Millis(0)));
  EXPECT_TRUE(two->Noop().ok());
  two->Disconnect();
  const auto status = daemon.Wait(Millis(6'000));
  ASSERT_TRUE(status);
  EXPECT_TRUE(WIFEXITED(*status) && WEXITSTATUS(*status) == 0) << daemon.Log();
}

TEST(Connect, SaysWhyItCannot) {
  TempFolder folder;
  client::ConnectOptions options;
  options.spawn = false;
  options.job = "job";
  options.socket = folder.path() + "/nobody";
  auto nobody = client::Session::Connect(options);
  EXPECT_EQ(nobody.status().code(), Code::kUnreachable);
  EXPECT_THAT(nobody.status().message(), HasSubstr(options.socket));
  options.socket = std::string(200, 'x');
  EXPECT_EQ(client::Session::Connect(options).status().code(), Code::kInvalidArgument);
  if (::getuid() != 0) return;  // the rest needs another user
  DaemonProcess daemon({kSmall, folder.path(), ~0U, true});
  ASSERT_EQ(::chmod(folder.path().c_str(), 0755), 0);
  Child stranger([&] {
    if (::setuid(65501) != 0) return 3;
    const auto session = client::Session::Connect(daemon.ConnectOptionsOf("job"));
    return session.status().code() == Code::kPermissionDenied && !session.status().message().empty() ? 0 : 1;
  });
  EXPECT_TRUE(stranger.Succeeds()) << "the socket is 0600";
}

TEST(Connect, MemoryThatIsNotThereIsRefusedWithTheBytes) {
  DaemonProcess daemon({"--device-budget", "1MiB", "--host-budget", "1MiB", "--page-size", "16KiB",
                        "--window-pages", "4", "--threads", "1"});
  auto session = daemon.Open("job");
  Trainer trainer(session, {10'000'000});
  const wire::Status said = trainer.Create();
  EXPECT_EQ(said.code(), Code::kBudgetExceeded) << said.message();
  EXPECT_THAT(said.message(), HasSubstr(std::to_string(80'000'000)));
  EXPECT_TRUE(session->Noop().ok());
}

}  // namespace
}  // namespace bitpager::testing
