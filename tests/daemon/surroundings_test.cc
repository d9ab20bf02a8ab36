// The log's lines, core dumps, and the service manager's protocol over real sockets. One thread; children
// where a process's own limits or descriptors change.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>

#include "client/wire/fd_socket.h"
#include "daemon/log.h"
#include "daemon/notify.h"
#include "daemon/user_namespace.h"

namespace bitpager::daemon {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

// Exit code of `body` in a child.
int InChild(const std::function<bool()>& body) {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(body() ? 0 : 1);
  int status = -1;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

std::string Logged(const std::string& level, LogStyle style, const std::function<void()>& body) {
  testing::internal::CaptureStderr();
  EXPECT_TRUE(StartLog(level, style).ok());
  body();
  return testing::internal::GetCapturedStderr();
}

TEST(Log, JournalLinesStartWithTheirPriority) {
  const std::string text = Logged("trace", LogStyle::kJournal, [] {
    spdlog::error("e");
    spdlog::warn("w");
    spdlog::info("i");
    spdlog::debug("d");
  });
  EXPECT_EQ(text, "<3>e\n<4>w\n<6>i\n<7>d\n");
}

TEST(Log, TerminalLinesCarryTimeAndLevel) {
  const std::string text = Logged("info", LogStyle::kTerminal, [] {
    spdlog::debug("hidden");
    spdlog::warn("low on frames");
  });
  EXPECT_THAT(text, MatchesRegex("[0-9]+-[0-9]+-[0-9]+ [0-9]+:[0-9]+:[0-9]+\\.[0-9]+ warn  low on frames\n"));
}

TEST(Log, NamesCannotForgeLines) {
  EXPECT_EQ(Logged("info", LogStyle::kJournal, [] { spdlog::info("job {}", "a\n<3>forged\033[2J"); }),
            "<6>job a\\x0a<3>forged\\x1b[2J\n");
}

TEST(Log, JournalIsKnownByItsStream) {
  testing::internal::CaptureStderr();
  struct stat file {};
  ASSERT_EQ(::fstat(STDERR_FILENO, &file), 0);
  ::setenv("JOURNAL_STREAM", (std::to_string(file.st_dev) + ":" + std::to_string(file.st_ino)).c_str(), 1);
  EXPECT_TRUE(StartLog("info").ok());
  spdlog::info("i");
  ::setenv("JOURNAL_STREAM", "1:1", 1);
  EXPECT_TRUE(StartLog("info").ok());
  spdlog::info("t");
  ::unsetenv("JOURNAL_STREAM");
  EXPECT_THAT(testing::internal::GetCapturedStderr(), MatchesRegex("<6>i\n2.* info  t\n"));
}

TEST(Log, RefusesUnknownLevels) {
  EXPECT_EQ(StartLog("loud").code(), wire::Code::kInvalidArgument);
  EXPECT_FALSE(IsLogLevel("INFO"));
  EXPECT_TRUE(IsLogLevel("off"));
}

TEST(CoreDumps, AreForbidden) {
  EXPECT_EQ(InChild([] {
              rlimit limit{};
              return ForbidCoreDumps().ok() && ::getrlimit(RLIMIT_CORE, &limit) == 0 && limit.rlim_max == 0 &&
                     ::prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 0;
            }),
            0);
}

class Manager : public ::testing::Test {
 protected:
  void Listen(const std::string& name, bool abstract) {
    fd_.Reset(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    name.copy(address.sun_path + (abstract ? 1 : 0), name.size());
    const auto bytes =
        static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size() + (abstract ? 1 : 0));
    ASSERT_EQ(::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&address), bytes), 0);
    ::setenv("NOTIFY_SOCKET", (abstract ? "@" + name : name).c_str(), 1);
  }
  std::string Heard() {
    char text[256];
    const ssize_t bytes = ::recv(fd_.get(), text, sizeof(text), MSG_DONTWAIT);
    return bytes < 0 ? "nothing" : std::string(text, static_cast<std::size_t>(bytes));
  }
  ~Manager() override { ::unsetenv("NOTIFY_SOCKET"); }
  wire::UniqueFd fd_;
};

TEST_F(Manager, HearsReadyStatusAndStopping) {
  const std::string path = "/tmp/bitpager-notify-" + std::to_string(::getpid());
  Listen(path, false);
  ASSERT_TRUE(NotifyReady("serving\nREADY=0").ok());
  EXPECT_EQ(Heard(), "READY=1\nSTATUS=serving READY=0") << "a status has one line";
  ASSERT_TRUE(NotifyStatus("2 jobs").ok());
  EXPECT_EQ(Heard(), "STATUS=2 jobs");
  ASSERT_TRUE(NotifyStopping().ok());
  EXPECT_EQ(Heard(), "STOPPING=1");
  ::unlink(path.c_str());
}

TEST_F(Manager, HearsOnAnAbstractSocket) {
  Listen("bitpager-notify-" + std::to_string(::getpid()), true);
  ASSERT_TRUE(Notify("READY=1").ok());
  EXPECT_EQ(Heard(), "READY=1");
}

TEST_F(Manager, AbsentOneIsFineAndAGoneOneIsSaid) {
  ::unsetenv("NOTIFY_SOCKET");
  EXPECT_TRUE(NotifyReady("x").ok());
  ::setenv("NOTIFY_SOCKET", "/tmp/bitpager-nobody-here", 1);
  EXPECT_EQ(NotifyReady("x").code(), wire::Code::kUnreachable);
  ::setenv("NOTIFY_SOCKET", "relative", 1);
  EXPECT_EQ(NotifyReady("x").code(), wire::Code::kUnreachable);
}

// In a child: makes `fd` descriptor 3 and says that `count` were passed.
void PassAs3(int fd, int count) {
  if (fd != 3) ::dup2(fd, 3);
  ::setenv("LISTEN_PID", std::to_string(::getpid()).c_str(), 1);
  ::setenv("LISTEN_FDS", std::to_string(count).c_str(), 1);
}

int BoundSocket(int type, bool listening) {
  const int fd = ::socket(AF_UNIX, type, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  ::bind(fd, reinterpret_cast<const sockaddr*>(&address),
         sizeof(sa_family_t));  // a name of the kernel's choice
  if (listening) ::listen(fd, 1);
  return fd;
}

TEST(Activation, TakesOneListeningSeqpacketSocket) {
  EXPECT_EQ(InChild([] {
              PassAs3(BoundSocket(SOCK_SEQPACKET, true), 1);
              const auto taken = TakeActivatedSocket();
              return taken.ok() && taken.value() == 3 && std::getenv("LISTEN_FDS") == nullptr &&
                     (::fcntl(3, F_GETFD) & FD_CLOEXEC) != 0;
            }),
            0);
}

TEST(Activation, RefusesOtherSocketsAndNumbers) {
  const auto refused = [](int type, bool listening, int count) {
    return InChild([=] {
      PassAs3(BoundSocket(type, listening), count);
      return TakeActivatedSocket().status().code() == wire::Code::kInvalidArgument;
    });
  };
  EXPECT_EQ(refused(SOCK_STREAM, true, 1), 0);
  EXPECT_EQ(refused(SOCK_SEQPACKET, false, 1), 0);
  EXPECT_EQ(refused(SOCK_SEQPACKET, true, 2), 0);
}

TEST(Activation, IsForThisProcessAlone) {
  EXPECT_EQ(InChild([] {
              ::setenv("LISTEN_PID", std::to_string(::getppid()).c_str(), 1);
              ::setenv("LISTEN_FDS", "1", 1);
              const auto taken = TakeActivatedSocket();
              return taken.ok() && !taken->has_value();
            }),
            0);
  EXPECT_EQ(InChild([] { return !TakeActivatedSocket()->has_value(); }), 0);
}

TEST(UserNamespace, WhereEveryUidIsMappedEachIsOneUser) {
  EXPECT_EQ(AmbiguousUid("         0          0 4294967295\n", "65534\n"), std::nullopt);
  EXPECT_EQ(AmbiguousUid("", ""), std::nullopt);
}

TEST(UserNamespace, WhereSomeAreNotTheOverflowUidIsSeveral) {
  EXPECT_EQ(AmbiguousUid("0 1000 1\n", "65534\n"), 65534U);
  EXPECT_EQ(AmbiguousUid("0 1000 1\n1 100000 65536\n", "65000\n"), 65000U);
  EXPECT_EQ(AmbiguousUid("0 1000 1\n", ""), 65534U);
}

}  // namespace
}  // namespace bitpager::daemon
