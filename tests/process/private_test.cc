// Private daemons, and daemons among many: who starts them, who reaps them, who may reach them.
#include <dirent.h>
#include <gmock/gmock.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "tests/process/trainer.h"
#include "tests/support/daemon_process.h"
#include "tests/support/raw_client.h"

namespace bitpager::testing {
namespace {

using ::testing::HasSubstr;
using wire::Code;

const std::vector<std::string> kSmall = {"--device-budget", "1MiB",  "--host-budget",  "32MiB",
                                         "--page-size",     "16KiB", "--window-pages", "4",
                                         "--threads",       "1"};

std::vector<std::string> SmallAnd(std::vector<std::string> more) {
  more.insert(more.begin(), kSmall.begin(), kSmall.end());
  return more;
}

// In a child: its own environment, where no daemon is named and the user's folder is `folder`.
client::ConnectOptions PrivateOptions(const std::string& folder) {
  ::unsetenv("BITPAGER_SOCKET");
  ::setenv("XDG_RUNTIME_DIR", folder.c_str(), 1);
  client::ConnectOptions options;
  options.job = "job";
  options.client = "private-test";
  options.threads = 1;
  options.daemon_path = DaemonProcess::Program();
  return options;
}

TEST(Private, ADaemonIsNobodysChildAndLeavesNoZombie) {
  if (::access("/run/bitpager/bitpager.sock", F_OK) == 0) GTEST_SKIP() << "a system daemon runs here";
  TempFolder folder;
  Child starter([&] {
    const client::ConnectOptions options = PrivateOptions(folder.path());
    auto session = client::Session::Connect(options);
    if (!session.ok()) return 1;
    if (!(*session)->Noop().ok()) return 2;
    if (::waitpid(-1, nullptr, WNOHANG) != -1 || errno != ECHILD) return 3;
    auto second = client::Session::Connect(options);
    if (!second.ok() || (*second)->info().socket != (*session)->info().socket) return 4;
    (*second)->Disconnect();
    (*session)->Disconnect();
    const std::string socket = folder.path() + "/bitpager/private.sock";
    if (!WaitUntil([&] { return ::access(socket.c_str(), F_OK) != 0; }, Millis(10'000))) return 5;
    // And another one, as a notebook does that goes on after a pause.
    auto later = client::Session::Connect(options);
    if (!later.ok() || !(*later)->Noop().ok()) return 6;
    return ::waitpid(-1, nullptr, WNOHANG) == -1 && errno == ECHILD ? 0 : 7;
  });
  const auto status = starter.Wait(Millis(60'000));
  ASSERT_TRUE(status);
  EXPECT_TRUE(WIFEXITED(*status) && WEXITSTATUS(*status) == 0) << WEXITSTATUS(*status);
  // The last client has gone: so does the daemon, and takes its socket along.
  const std::string socket = folder.path() + "/bitpager/private.sock";
  EXPECT_TRUE(WaitUntil([&] { return ::access(socket.c_str(), F_OK) != 0; }, Millis(10'000)));
}

TEST(Private, ADaemonThatCannotServeIsReportedByWhoStartedIt) {
  if (::access("/run/bitpager/bitpager.sock", F_OK) == 0) GTEST_SKIP() << "a system daemon runs here";
  TempFolder folder;
  ASSERT_EQ(::mkdir((folder.path() + "/bitpager").c_str(), 0700), 0);
  // Where its socket belongs lies a file.
  std::ofstream(folder.path() + "/bitpager/private.sock") << "x";
  Child starter([&] {
    const auto session = client::Session::Connect(PrivateOptions(folder.path()));
    if (session.status().code() != Code::kUnreachable) return 1;
    return session.status().message().find("not a socket") != std::string::npos ? 0 : 2;
  });
  const auto status = starter.Wait(Millis(20'000));
  ASSERT_TRUE(status);
  EXPECT_TRUE(WIFEXITED(*status) && WEXITSTATUS(*status) == 0) << WEXITSTATUS(*status);
}

TEST(Race, ManyDaemonsOnOneStaleSocketLeaveOneServing) {
  TempFolder folder;
  {
    DaemonProcess killed({kSmall, folder.path(), ~0U, true});
    killed.Signal(SIGKILL);
    ASSERT_TRUE(killed.Wait(Millis(2'000)));
  }
  std::vector<std::unique_ptr<DaemonProcess>> racers;
  for (int i = 0; i < 4; ++i) {
    racers.push_back(
        std::make_unique<DaemonProcess>(DaemonProcess::Options{kSmall, folder.path(), ~0U, false}));
  }
  int ended = 0;
  EXPECT_TRUE(WaitUntil(
      [&] {
        ended = 0;
        for (const auto& racer : racers) ended += racer->Wait(Millis(0)) ? 1 : 0;
        return ended >= 3;
      },
      Millis(10'000)));
  EXPECT_EQ(ended, 3);
  for (const auto& racer : racers) {
    if (racer->Wait(Millis(0))) {
      EXPECT_THAT(racer->Log(), HasSubstr("already serves"));
    } else {
      ASSERT_TRUE(WaitUntil([&] { return racer->Serves(); }, Millis(5'000)));
      EXPECT_TRUE(racer->Open("job")->Noop().ok());
    }
  }
}

TEST(Strangers, ThatSayNothingDoNotKeepOthersOut) {
  DaemonProcess daemon(SmallAnd({"--max-sessions", "8"}));
  std::vector<wire::UniqueFd> silent;
  for (int i = 0; i < 200; ++i) silent.emplace_back(ConnectRaw(daemon.socket()));
  RawClient turned_away{wire::UniqueFd(ConnectRaw(daemon.socket()))};
  const Reply reply = turned_away.Ask(wire::MessageType::kHello, RawClient::HelloBodyOf("job"));
  EXPECT_EQ(reply.code(), Code::kBudgetExceeded) << "136 connections are all it takes";
  EXPECT_LT(daemon.Use().fds, 250U);
  // They are hung up after a while, and there is room again.
  EXPECT_TRUE(WaitUntil(
      [&] {
        client::ConnectOptions options = daemon.ConnectOptionsOf("job");
        const auto session = client::Session::Connect(options);
        return session.ok() && (*session)->Noop().ok();
      },
      Millis(20'000)));
}

// ---- a group that may use the daemon

// As user `uid`, in `groups`.
int AsMember(std::uint32_t uid, const std::vector<gid_t>& groups, const std::function<int()>& body) {
  if (::setgroups(groups.size(), groups.data()) != 0 || ::setgid(uid) != 0 || ::setuid(uid) != 0) return 99;
  return body();
}

TEST(SocketGroup, LetsItsMembersInAndNobodyElse) {
  if (::getuid() != 0) GTEST_SKIP() << "needs root, to become two other users";
  const group* found = ::getgrnam("users");
  if (found == nullptr) found = ::getgrnam("daemon");
  if (found == nullptr) GTEST_SKIP() << "needs a group 'users' or 'daemon'";
  const std::string name = found->gr_name;
  const gid_t gid = found->gr_gid;
  TempFolder folder;
  ASSERT_EQ(::chmod(folder.path().c_str(), 0755), 0);
  DaemonProcess daemon({SmallAnd({"--socket-group", name}), folder.path(), ~0U, true});
  struct stat info {};
  ASSERT_EQ(::stat(daemon.socket().c_str(), &info), 0);
  EXPECT_EQ(info.st_gid, gid);
  EXPECT_EQ(info.st_mode & 0777, 0660U);
  Child member([&] {
    return AsMember(65501, {gid}, [&] {
      auto session = client::Session::Connect(daemon.ConnectOptionsOf("job"));
      if (!session.ok()) return 1;
      Trainer trainer(*session, {50'000});
      if (!trainer.Create().ok() || !trainer.Step(1).ok()) return 2;
      const auto status = daemon.Status();
      if (!status || status->sessions.size() != 1 || status->sessions[0].uid != 65501) return 3;
      RawClient line{wire::UniqueFd(ConnectRaw(daemon.socket()))};
      return line.AskBare(wire::MessageType::kDrain).code() == Code::kPermissionDenied ? 0 : 4;
    });
  });
  const auto ended = member.Wait(Millis(20'000));
  ASSERT_TRUE(ended);
  EXPECT_TRUE(WIFEXITED(*ended) && WEXITSTATUS(*ended) == 0) << WEXITSTATUS(*ended) << daemon.Log();
  Child stranger([&] {
    return AsMember(65502, {}, [&] {
      const auto session = client::Session::Connect(daemon.ConnectOptionsOf("job"));
      return session.status().code() == Code::kPermissionDenied ? 0 : 1;
    });
  });
  EXPECT_TRUE(stranger.Succeeds());
}

}  // namespace
}  // namespace bitpager::testing
