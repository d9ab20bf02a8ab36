// Finding a daemon: error texts, the search order, refusals at the hello, private daemons.
#include "client/connect.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <optional>

#include "client/private_daemon.h"
#include "client/session.h"
#include "client/wire/text.h"
#include "tests/client/fake_daemon.h"

namespace bitpager::client {
namespace {

using namespace std::chrono_literals;
using testing::FakeDaemon;
using ::testing::HasSubstr;
using testing::TemporaryPath;
using wire::Code;
using wire::Status;
using Script = FakeDaemon::Script;

// Sets an environment variable for a scope; nullptr unsets it.
class WithEnvironment {
 public:
  WithEnvironment(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    value == nullptr ? ::unsetenv(name) : ::setenv(name, value, 1);
  }
  ~WithEnvironment() { before_ ? ::setenv(name_, before_->c_str(), 1) : ::unsetenv(name_); }
  WithEnvironment(const WithEnvironment&) = delete;
  WithEnvironment& operator=(const WithEnvironment&) = delete;

 private:
  const char* name_;
  std::optional<std::string> before_;
};

Status ConnectStatus(const std::string& socket) {
  ConnectOptions options;
  options.socket = socket;
  options.job = "test";
  return Session::Connect(options).status();
}

// What a client says of a daemon that behaves as `script`.
Status StatusWith(Script script) {
  FakeDaemon daemon(TemporaryPath("sock"), std::move(script));
  return ConnectStatus(daemon.path());
}

TEST(Connect, SaysWhenThereIsNoSuchFile) {
  const Status status = ConnectStatus("/nonexistent/x.sock");
  EXPECT_EQ(status.code(), Code::kUnreachable);
  EXPECT_THAT(status.message(), HasSubstr("cannot reach bitpagerd at /nonexistent/x.sock (no such file)"));
  EXPECT_THAT(status.message(), HasSubstr("Hint:"));
}

TEST(Connect, SaysWhenTheSocketIsStale) {
  const std::string path = TemporaryPath("stale");
  {
    const wire::UniqueFd listener(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    const sockaddr_un address = *wire::UnixAddress(path);
    ASSERT_EQ(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  }
  const Status status = ConnectStatus(path);
  EXPECT_EQ(status.code(), Code::kUnreachable);
  EXPECT_THAT(status.message(), HasSubstr("(connection refused: stale socket?). Hint:"));
}

TEST(Connect, SaysWhenTheFileIsAnotherProgramsSocket) {
  const std::string path = TemporaryPath("stream");
  const wire::UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_un address = *wire::UnixAddress(path);
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(::listen(listener.get(), 1), 0);
  EXPECT_THAT(ConnectStatus(path).message(), HasSubstr("another program's file"));
}

TEST(Connect, HintsAtTheGroupWhenPermissionIsMissing) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to become somebody else";
  FakeDaemon daemon(TemporaryPath("closed"));
  ASSERT_EQ(::chmod(daemon.path().c_str(), 0600), 0);
  ASSERT_EQ(::chmod(daemon.path().substr(0, daemon.path().rfind('/')).c_str(), 0755), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (::setgid(65534) != 0 || ::setuid(65534) != 0) ::_exit(2);
    const Status status = ConnectStatus(daemon.path());
    const bool good = status.code() == Code::kPermissionDenied &&
                      status.message().find("sudo usermod -aG bitpager $USER") != std::string::npos;
    ::_exit(good ? 0 : 1);
  }
  int how = 0;
  ASSERT_EQ(::waitpid(child, &how, 0), child);
  EXPECT_EQ(WEXITSTATUS(how), 0);
}

TEST(Connect, ANamedSocketInTheEnvironmentMustAnswer) {
  const WithEnvironment named("BITPAGER_SOCKET", "/nonexistent/named.sock");
  const Status status = ConnectStatus("");
  EXPECT_EQ(status.code(), Code::kUnreachable);
  EXPECT_THAT(status.message(), HasSubstr("/nonexistent/named.sock"));
}

TEST(Connect, TakesTheEnvironmentsSocketAndTheOptionBeforeIt) {
  FakeDaemon first(TemporaryPath("first"));
  FakeDaemon second(TemporaryPath("second"));
  const WithEnvironment named("BITPAGER_SOCKET", first.path().c_str());
  ConnectOptions options;
  options.job = "test";
  const auto by_environment = Session::Connect(options);
  ASSERT_TRUE(by_environment.ok());
  EXPECT_EQ((*by_environment)->info().socket, first.path());
  options.socket = second.path();
  const auto by_option = Session::Connect(options);
  ASSERT_TRUE(by_option.ok());
  EXPECT_EQ((*by_option)->info().socket, second.path());
}

TEST(Connect, LooksInTheUsersRuntimeFolder) {
  const std::string folder = TemporaryPath("run");
  ASSERT_EQ(::mkdir(folder.c_str(), 0700), 0);
  ASSERT_EQ(::mkdir((folder + "/bitpager").c_str(), 0700), 0);
  const WithEnvironment unnamed("BITPAGER_SOCKET", nullptr);
  const WithEnvironment runtime("XDG_RUNTIME_DIR", folder.c_str());
  if (::access("/run/bitpager/bitpager.sock", F_OK) == 0) GTEST_SKIP() << "a system daemon runs here";
  FakeDaemon daemon(folder + "/bitpager/bitpager.sock");
  const auto session = Session::Connect({});
  ASSERT_TRUE(session.ok()) << session.status().message();
  EXPECT_EQ((*session)->info().socket, daemon.path());
}

TEST(Connect, ListsWhatWasTriedWhenItMayNotStartADaemon) {
  if (::access("/run/bitpager/bitpager.sock", F_OK) == 0) GTEST_SKIP() << "a system daemon runs here";
  const WithEnvironment unnamed("BITPAGER_SOCKET", nullptr);
  const WithEnvironment runtime("XDG_RUNTIME_DIR", "/nonexistent/run");
  ConnectOptions options;
  options.spawn = false;
  const Status status = Session::Connect(options).status();
  EXPECT_EQ(status.code(), Code::kUnreachable);
  EXPECT_THAT(status.message(), HasSubstr("/run/bitpager/bitpager.sock"));
  EXPECT_THAT(status.message(), HasSubstr("XDG_RUNTIME_DIR is not used: cannot look at /nonexistent/run"));
}

TEST(Connect, DoesNotLookWhereAnotherUserCouldServe) {
  if (::access("/run/bitpager/bitpager.sock", F_OK) == 0) GTEST_SKIP() << "a system daemon runs here";
  const std::string folder = TemporaryPath("open-run");
  ASSERT_EQ(::mkdir(folder.c_str(), 0700), 0);
  ASSERT_EQ(::mkdir((folder + "/bitpager").c_str(), 0700), 0);
  const WithEnvironment unnamed("BITPAGER_SOCKET", nullptr);
  const WithEnvironment runtime("XDG_RUNTIME_DIR", folder.c_str());
  FakeDaemon daemon(folder + "/bitpager/bitpager.sock");
  ConnectOptions options;
  options.spawn = false;
  ASSERT_TRUE(Session::Connect(options).ok());
  const auto refused = [&] {
    const Status status = Session::Connect(options).status();
    EXPECT_EQ(status.code(), Code::kUnreachable);
    EXPECT_THAT(status.message(), HasSubstr(folder + " is not a folder that belongs to this user alone"));
  };
  ASSERT_EQ(::chmod(folder.c_str(), 0770), 0);
  refused();
  ASSERT_EQ(::chmod(folder.c_str(), 0700), 0);
  if (::geteuid() != 0) return;
  ASSERT_EQ(::chown(folder.c_str(), 65501, 65501), 0);  // as sudo, which may keep the variable
  refused();
}

TEST(Hello, PassesOnARefusal) {
  Script script;
  script.on_message = [](FakeDaemon& daemon, const wire::Packet& packet) {
    wire::ReplyBody body;
    body.code = static_cast<std::uint32_t>(Code::kDraining);
    wire::CopyText(body.message, "draining since noon");
    daemon.Reply(packet, body);
    daemon.HangUp();
    return true;
  };
  const Status status = StatusWith(std::move(script));
  EXPECT_EQ(status.code(), Code::kDraining);
  EXPECT_THAT(status.message(), HasSubstr("draining since noon"));
}

TEST(Hello, ADaemonThatHangsUpIsReportedAtOnce) {
  Script script;
  script.on_message = [](FakeDaemon& daemon, const wire::Packet&) {
    daemon.HangUp();
    return true;
  };
  EXPECT_EQ(StatusWith(std::move(script)).code(), Code::kDaemonLost);
}

TEST(Hello, RefusesGarbageAnswers) {
  const auto garbage = [](auto write) {
    Script script;
    script.on_message = [write](FakeDaemon& daemon, const wire::Packet& packet) {
      write(daemon, packet);
      return true;
    };
    return StatusWith(std::move(script)).code();
  };
  const auto raw = [](FakeDaemon& d, std::span<const std::byte> bytes) {
    [[maybe_unused]] const Status sent = wire::SendPacket(d.connection(), bytes);
  };
  EXPECT_EQ(garbage([&](FakeDaemon& d, const wire::Packet&) { raw(d, std::array<std::byte, 3>{}); }),
            Code::kProtocol);
  EXPECT_EQ(garbage([&](FakeDaemon& d, const wire::Packet&) { raw(d, std::array<std::byte, 900>{}); }),
            Code::kProtocol);
  EXPECT_EQ(garbage([&](FakeDaemon& d, const wire::Packet& p) {
              wire::MessageHeader header = p.header();
              header.version = 99;
              header.body_bytes = 0;
              raw(d, std::as_bytes(std::span(&header, 1)));
            }),
            Code::kUnknownVersion);
  const auto answer = [](FakeDaemon& d, wire::MessageType type, std::uint32_t sequence, std::uint64_t page) {
    wire::ReplyBody body;
    body.values[0] = 1;
    body.values[2] = page;
    [[maybe_unused]] const Status sent = wire::SendBody(d.connection(), type, sequence, body);
  };
  using enum wire::MessageType;
  EXPECT_EQ(garbage([&](FakeDaemon& d, const wire::Packet&) { answer(d, kHello, 77, 4096); }),
            Code::kProtocol);
  EXPECT_EQ(garbage([&](FakeDaemon& d, const wire::Packet&) { answer(d, kUsage, 1, 4096); }),
            Code::kProtocol);
  EXPECT_EQ(garbage([&](FakeDaemon& d, const wire::Packet&) { answer(d, kHello, 1, 0); }), Code::kProtocol);
  EXPECT_EQ(garbage([&](FakeDaemon& d, const wire::Packet&) { answer(d, kHello, 1, 4096); }), Code::kProtocol)
      << "no fds";
  EXPECT_EQ(garbage([&](FakeDaemon& d, const wire::Packet&) {
              [[maybe_unused]] const Status sent =
                  wire::SendBody(d.connection(), kHello, 1, wire::DropExtentBody{});
            }),
            Code::kProtocol);
}

TEST(Hello, RefusesASegmentThatIsNotOneOfThisVersion) {
  const auto with = [](auto change) {
    Script script;
    script.on_segment = change;
    return StatusWith(std::move(script)).code();
  };
  EXPECT_EQ(with([](wire::SegmentHeader& h) { h.magic = 1; }), Code::kProtocol);
  EXPECT_EQ(with([](wire::SegmentHeader& h) { h.version = 2; }), Code::kUnknownVersion);
  EXPECT_EQ(with([](wire::SegmentHeader& h) { h.request_slots = 512; }), Code::kProtocol);
  EXPECT_EQ(with([](wire::SegmentHeader& h) { h.total_bytes = 4096; }), Code::kProtocol);
  EXPECT_EQ(with([](wire::SegmentHeader&) {}), Code::kOk);
  Script unsealed;
  unsealed.seal_segment = false;
  EXPECT_EQ(StatusWith(std::move(unsealed)).code(), Code::kProtocol);
}

class PrivateDaemon : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::access("/run/bitpager/bitpager.sock", F_OK) == 0) GTEST_SKIP() << "a system daemon runs here";
    ASSERT_EQ(::mkdir(folder_.c_str(), 0700), 0);
    unnamed_.emplace("BITPAGER_SOCKET", nullptr);
    runtime_.emplace("XDG_RUNTIME_DIR", folder_.c_str());
  }
  // A program that stands for bitpagerd.
  std::string Program(const std::string& lines) {
    const std::string path = folder_ + "/program";
    std::ofstream(path) << "#!/bin/sh\n" << lines;
    ::chmod(path.c_str(), 0755);
    return path;
  }
  std::string folder_ = TemporaryPath("private");
  std::optional<WithEnvironment> unnamed_;
  std::optional<WithEnvironment> runtime_;
};

TEST_F(PrivateDaemon, ThatEndsAtOnceIsReportedWithItsLog) {
  ConnectOptions options;
  options.daemon_path = Program("echo \"arguments: $*\"; echo 'no memory for it' >&2; exit 3\n");
  const auto start = std::chrono::steady_clock::now();
  const Status status = Session::Connect(options).status();
  EXPECT_EQ(status.code(), Code::kUnreachable);
  EXPECT_THAT(status.message(), HasSubstr("exit status 3"));
  EXPECT_THAT(status.message(), HasSubstr("no memory for it"));
  EXPECT_THAT(status.message(),
              HasSubstr("arguments: --background --private --socket " + folder_ + "/bitpager/private.sock"));
  EXPECT_LT(std::chrono::steady_clock::now() - start, 2s);
}

TEST_F(PrivateDaemon, ThatDoesNotExistIsReportedWithAHint) {
  ConnectOptions options;
  options.daemon_path = "/nonexistent/bitpagerd";
  EXPECT_EQ(Session::Connect(options).status().code(), Code::kNotFound);
  options.daemon_path.clear();
  const WithEnvironment program("BITPAGERD", "/nonexistent/other");
  const Status status = Session::Connect(options).status();
  EXPECT_EQ(status.code(), Code::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr("/nonexistent/other is not a program (option or BITPAGERD)"));
}

TEST_F(PrivateDaemon, InheritsNoFdsAndNoTerminal) {
  const wire::UniqueFd leak(::open("/dev/null", O_RDONLY));  // not close-on-exec, as a program's own may be
  ConnectOptions options;
  options.daemon_path = Program("ls /proc/self/fd | tr '\\n' ' '; readlink /proc/self/fd/0; exit 1\n");
  const Status status = Session::Connect(options).status();
  EXPECT_THAT(status.message(), HasSubstr("0 1 2 3 /dev/null")) << "3 is ls's own";
}

TEST_F(PrivateDaemon, FolderMustBelongToThisUserAlone) {
  ASSERT_EQ(::mkdir((folder_ + "/bitpager").c_str(), 0700), 0);
  ASSERT_EQ(::chmod((folder_ + "/bitpager").c_str(), 0755), 0);
  EXPECT_EQ(PrivateFolder().status().code(), Code::kPermissionDenied);
  ASSERT_EQ(::rmdir((folder_ + "/bitpager").c_str()), 0);
  ASSERT_EQ(::symlink("/tmp", (folder_ + "/bitpager").c_str()), 0);
  EXPECT_EQ(PrivateFolder().status().code(), Code::kPermissionDenied);
}

}  // namespace
}  // namespace bitpager::client
