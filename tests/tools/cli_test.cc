// The commands against a daemon's outside: a real telemetry server and a socket that answers as told. The
// program itself is run for its command line and exit codes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <future>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "client/wire/fd_socket.h"
#include "client/wire/text.h"
#include "daemon/telemetry.h"
#include "kernels/device.h"
#include "tools/cli/commands.h"

namespace bitpager::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using wire::Code;
using wire::MessageType;

// Accepts one connection, keeps its message, and answers it.
class OneAnswer {
 public:
  OneAnswer(const std::string& path, std::function<void(int socket, const wire::Packet&)> answer)
      : listener_(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
    const auto address = wire::UnixAddress(path);
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof(*address)), 0);
    EXPECT_EQ(::listen(listener_.get(), 1), 0);
    thread_ = std::thread([this, answer = std::move(answer)] {
      const wire::UniqueFd socket(::accept(listener_.get(), nullptr, nullptr));
      if (!socket) return;
      EXPECT_TRUE(wire::ReceivePacket(socket.get(), packet_).ok());
      EXPECT_TRUE(wire::CheckPacket(packet_).ok());
      answer(socket.get(), packet_);
    });
  }
  ~OneAnswer() {
    ::shutdown(listener_.get(), SHUT_RDWR);  // ends an accept that nobody came for
    thread_.join();
  }
  const wire::Packet& packet() {
    thread_.join();
    thread_ = std::thread([] {});
    return packet_;
  }

 private:
  wire::UniqueFd listener_;
  wire::Packet packet_;
  std::thread thread_;
};

void Reply(int socket, const wire::Packet& asked, Code code, const std::string& message,
           std::uint64_t value = 0) {
  wire::ReplyBody body;
  body.code = static_cast<std::uint32_t>(code);
  body.values[0] = value;
  wire::CopyText(body.message, message);
  EXPECT_TRUE(wire::SendBody(socket, asked.header().type, asked.header().sequence, body).ok());
}

class Cli : public ::testing::Test {
 protected:
  Cli() {
    char name[] = "/tmp/bitpager-cli-XXXXXX";
    folder_ = ::mkdtemp(name);
    target_.socket = folder_ + "/b.sock";
    target_.timeout_ms = 2000;
  }
  ~Cli() override { std::filesystem::remove_all(folder_); }

  void StartTelemetry(wire::Result<daemon::Snapshot> snapshot) {
    daemon::Config config;
    config.status_endpoint = "ipc://" + target_.socket + ".status";
    config.events_endpoint = "ipc://" + target_.socket + ".events";
    ASSERT_TRUE(telemetry_.Start(config, [snapshot] { return snapshot; }).ok());
  }
  static daemon::Snapshot OneJob() {
    daemon::Snapshot s;
    s.version = daemon::kVersion;
    s.page_bytes = 4096;
    s.devices.emplace_back();
    s.devices[0].uuid = "cpu-0";
    s.jobs.emplace_back();
    s.jobs[0].name = "llm";
    return s;
  }
  int Run(const std::function<int()>& command) {
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    const int code = command();
    out_ = testing::internal::GetCapturedStdout();
    err_ = testing::internal::GetCapturedStderr();
    return code;
  }
  // The program, with BITPAGER_SOCKET naming nothing.
  int Program(const std::string& words) {
    const std::string line = "NO_COLOR=1 BITPAGER_SOCKET=" + folder_ + "/none.sock " + BITPAGER_CLI + " " +
                             words + " 2>" + folder_ + "/err";
    FILE* pipe = ::popen(line.c_str(), "r");
    out_.clear();
    char text[4096];
    while (const std::size_t bytes = std::fread(text, 1, sizeof(text), pipe)) out_.append(text, bytes);
    const int status = ::pclose(pipe);
    FILE* errors = std::fopen((folder_ + "/err").c_str(), "r");
    err_.assign(text, std::fread(text, 1, sizeof(text), errors));
    std::fclose(errors);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  std::string folder_;
  Target target_;
  daemon::EventLog events_;
  daemon::Telemetry telemetry_{events_};
  std::string out_;
  std::string err_;
};

TEST_F(Cli, StatusPrintsTheTable) {
  StartTelemetry(OneJob());
  EXPECT_EQ(Run([&] { return RunStatus(target_, {}); }), kOkExit);
  EXPECT_THAT(out_, AllOf(HasSubstr("llm"), HasSubstr("cpu-0"), Not(HasSubstr("\033"))));
  EXPECT_EQ(err_, "");
}

TEST_F(Cli, StatusJsonIsTheDaemonsReply) {
  StartTelemetry(OneJob());
  EXPECT_EQ(Run([&] { return RunStatus(target_, {true}); }), kOkExit);
  const auto parsed = nlohmann::json::parse(out_);
  EXPECT_EQ(parsed["schema_version"], 1);
  EXPECT_EQ(parsed["jobs"][0]["name"], "llm");
}

TEST_F(Cli, StatusOfAnErrorReplyIsAFailure) {
  StartTelemetry(wire::Status(Code::kDraining, "the dispatcher has ended"));
  EXPECT_EQ(Run([&] { return RunStatus(target_, {}); }), kFailureExit);
  EXPECT_THAT(err_, HasSubstr("the dispatcher has ended"));
}

TEST_F(Cli, UnreachableIsThreeWithAHint) {
  EXPECT_EQ(Run([&] { return RunStatus(target_, {}); }), kUnreachableExit);
  EXPECT_THAT(err_, AllOf(HasSubstr(target_.socket), HasSubstr("No such file"), HasSubstr("Hint: ")));
  EXPECT_EQ(Run([&] { return RunDrain(target_); }), kUnreachableExit);
  EXPECT_EQ(Run([&] { return RunEvict(target_, {"llm", "", ""}); }), kUnreachableExit);
}

TEST_F(Cli, StaleSocketIsSaid) {
  {
    const auto address = wire::UnixAddress(target_.socket);
    const wire::UniqueFd stale(::socket(AF_UNIX, SOCK_SEQPACKET, 0));
    ASSERT_EQ(::bind(stale.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof(*address)), 0);
  }
  EXPECT_EQ(Run([&] { return RunDrain(target_); }), kUnreachableExit);
  EXPECT_THAT(err_, HasSubstr("the daemon that made it is gone"));
}

TEST_F(Cli, LimitSendsWhatWasAsked) {
  OneAnswer daemon(target_.socket, [](int s, const wire::Packet& p) { Reply(s, p, Code::kOk, ""); });
  EXPECT_EQ(Run([&] { return RunLimit(target_, {"llm", "20G", "none", 2.5, "1234", "GPU-5"}); }), kOkExit);
  wire::LimitBody body;
  ASSERT_TRUE(wire::ReadBody(daemon.packet(), body));
  EXPECT_EQ(daemon.packet().header().type, MessageType::kLimit);
  EXPECT_EQ(wire::TextOf(body.job), "llm");
  EXPECT_EQ(body.uid, 1234U);
  EXPECT_EQ(wire::TextOf(body.device), "GPU-5");
  EXPECT_EQ(body.device_quota_bytes, 20ULL << 30);
  EXPECT_EQ(body.host_quota_bytes, ~0ULL);
  EXPECT_DOUBLE_EQ(body.weight, 2.5);
  EXPECT_THAT(out_, AllOf(HasSubstr("20 GiB"), HasSubstr("no limit but the budget")));
}

TEST_F(Cli, EvictSendsBytesAndSaysWhatLeaves) {
  OneAnswer daemon(target_.socket,
                   [](int s, const wire::Packet& p) { Reply(s, p, Code::kOk, "", 3U << 20); });
  EXPECT_EQ(Run([&] { return RunEvict(target_, {"llm", "3M", ""}); }), kOkExit);
  wire::EvictBody body;
  ASSERT_TRUE(wire::ReadBody(daemon.packet(), body));
  EXPECT_EQ(body.bytes, 3U << 20);
  EXPECT_EQ(body.uid, ~0U) << "the caller";
  EXPECT_EQ(wire::TextOf(body.device), "") << "the one that the job is on";
  EXPECT_THAT(out_, HasSubstr("3 MiB"));
}

TEST_F(Cli, DrainIsABareMessage) {
  OneAnswer daemon(target_.socket, [](int s, const wire::Packet& p) { Reply(s, p, Code::kOk, ""); });
  EXPECT_EQ(Run([&] { return RunDrain(target_); }), kOkExit);
  EXPECT_EQ(daemon.packet().header().type, MessageType::kDrain);
  EXPECT_EQ(daemon.packet().header().body_bytes, 0U);
}

TEST_F(Cli, RefusalIsAFailureWithTheDaemonsWords) {
  OneAnswer daemon(target_.socket, [](int s, const wire::Packet& p) {
    Reply(s, p, Code::kPermissionDenied, "job llm belongs to uid 5. Hint: ask its owner");
  });
  EXPECT_EQ(Run([&] { return RunEvict(target_, {"llm", "", ""}); }), kFailureExit);
  EXPECT_THAT(err_, HasSubstr("job llm belongs to uid 5. Hint: ask its owner"));
}

TEST_F(Cli, SilentDaemonIsUnreachableAfterTheTimeout) {
  target_.timeout_ms = 100;
  std::promise<void> asked;
  OneAnswer daemon(target_.socket,
                   [until = asked.get_future().share()](int, const wire::Packet&) { until.wait(); });
  EXPECT_EQ(Run([&] { return RunDrain(target_); }), kUnreachableExit);
  asked.set_value();
  EXPECT_THAT(err_, HasSubstr("did not answer within 100 ms"));
}

TEST_F(Cli, HangUpAndNonsenseAreNotSuccess) {
  {
    OneAnswer daemon(target_.socket, [](int, const wire::Packet&) {});
    EXPECT_EQ(Run([&] { return RunDrain(target_); }), kUnreachableExit);
    EXPECT_THAT(err_, HasSubstr("closed the connection"));
  }
  std::filesystem::remove(target_.socket);
  OneAnswer daemon(target_.socket,
                   [](int s, const wire::Packet&) { ::send(s, "nonsense", 8, MSG_NOSIGNAL); });
  EXPECT_EQ(Run([&] { return RunDrain(target_); }), kFailureExit);
}

TEST_F(Cli, BadValuesAreUsageBeforeAnythingIsSent) {
  for (const LimitOptions& bad :
       {LimitOptions{"llm", "", "", 0, ""}, LimitOptions{"llm", "20X", "", 0, ""},
        LimitOptions{"llm", "0", "", 0, ""}, LimitOptions{"llm", "40%", "", 0, ""},
        LimitOptions{"no job", "1G", "", 0, ""}, LimitOptions{std::string(64, 'a'), "1G", "", 0, ""},
        LimitOptions{"llm", "1G", "", -1, ""}, LimitOptions{"llm", "1G", "", 0, "no-such-user"},
        LimitOptions{"llm", "1G", "", 0, "", "GPU 5"}}) {
    EXPECT_EQ(Run([&] { return RunLimit(target_, bad); }), kUsageExit) << err_;
    EXPECT_THAT(err_, HasSubstr("Hint: "));
  }
  EXPECT_EQ(Run([&] { return RunEvict(target_, {"llm", "0", ""}); }), kUsageExit);
}

TEST_F(Cli, DoctorTellsOfTheDaemonAndTheMachine) {
  StartTelemetry(OneJob());
  Run([&] { return RunDoctor(target_, {true}); });
  const auto report = nlohmann::json::parse(out_);
  EXPECT_EQ(report["schema_version"], 1);
  std::map<std::string, nlohmann::json> checks;
  for (const auto& check : report["checks"]) checks[check["name"]] = check;
  for (const char* name : {"kernel", "memfd", "pidfd", "seqpacket", "memory", "cgroup", "memlock", "/dev/shm",
                           "processors", "SIMD", "GPU", "budgets", "daemon"}) {
    EXPECT_TRUE(checks.contains(name)) << name;
  }
  EXPECT_THAT(checks["daemon"]["found"], HasSubstr(daemon::kVersion));
  std::string why;
  const auto devices = kernels::ListDevices(&why);
  const bool gpu =
      std::any_of(devices.begin(), devices.end(), [](const auto& one) { return one.kind == "cuda"; });
  EXPECT_THAT(gpu ? std::string("CUDA") : why, HasSubstr("CUDA"));
  EXPECT_THAT(checks["GPU"]["found"], gpu ? HasSubstr("GPU-") : HasSubstr(why));
}

TEST_F(Cli, DoctorSaysWhyMemoryByHandleIsNotTestedYet) {
  daemon::Snapshot snapshot = OneJob();
  snapshot.devices[0].ipc_survives = "not tested";
  snapshot.devices[0].ipc_problem = "somebody is here";
  snapshot.devices.push_back(snapshot.devices[0]);
  snapshot.devices[1].uuid = "GPU-1";
  snapshot.devices[0].ipc_problem = "";  // takes no memory by handle
  StartTelemetry(snapshot);
  static_cast<void>(Run([&] { return RunDoctor(target_, {}); }));
  EXPECT_THAT(out_, HasSubstr("GPU-1: not tested yet whether it survives its process (somebody is here)"));
  EXPECT_THAT(out_, Not(HasSubstr("cpu-0: not tested")));
}

TEST_F(Cli, DoctorFaultsANamedDaemonThatIsNotThere) {
  EXPECT_EQ(Run([&] { return RunDoctor(target_, {}); }), kFailureExit);
  EXPECT_THAT(out_, AllOf(HasSubstr("fault"), HasSubstr("No such file")));
}

TEST_F(Cli, ProgramsExitCodes) {
  EXPECT_EQ(Program("--help"), 0);
  EXPECT_THAT(out_, AllOf(HasSubstr("status"), HasSubstr("doctor"), HasSubstr("Exit codes")));
  EXPECT_EQ(Program("--version"), 0);
  EXPECT_EQ(out_, std::string("bitpager ") + daemon::kVersion + "\n");
  EXPECT_EQ(Program("version"), 0);
  EXPECT_THAT(out_, HasSubstr("none reached"));
  EXPECT_EQ(Program(""), kUsageExit);
  EXPECT_EQ(Program("stauts"), kUsageExit);
  EXPECT_THAT(err_, HasSubstr("stauts"));
  EXPECT_EQ(Program("limit"), kUsageExit);
  EXPECT_EQ(Program("status --bogus"), kUsageExit);
  EXPECT_EQ(Program("limit llm lots"), kUsageExit);
  EXPECT_THAT(err_, HasSubstr("'lots'"));
  EXPECT_EQ(Program("status"), kUnreachableExit);
  EXPECT_THAT(err_, AllOf(HasSubstr("none.sock"), HasSubstr("Hint: "), Not(HasSubstr("\033"))));
}

}  // namespace
}  // namespace bitpager::cli
