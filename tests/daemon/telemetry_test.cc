// The telemetry server over real ipc sockets, its own thread on one side, askers on the other.
#include "daemon/telemetry.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>
#include <zmq.hpp>

#include "client/wire/fd_socket.h"

namespace bitpager::daemon {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;
using ::testing::HasSubstr;
using wire::Code;

class TelemetryServer : public ::testing::Test {
 protected:
  TelemetryServer() {
    char name[] = "/tmp/bitpager-telemetry-XXXXXX";
    folder_ = ::mkdtemp(name);
    config_.socket_path = folder_ + "/b.sock";
    config_.status_endpoint = "ipc://" + config_.socket_path + ".status";
    config_.events_endpoint = "ipc://" + config_.socket_path + ".events";
  }
  ~TelemetryServer() override {
    telemetry_.Stop();
    std::filesystem::remove_all(folder_);
  }
  wire::Status Start() {
    const TakePages take_pages = [this](std::uint64_t cells) -> wire::Result<PageMap> {
      cells_ = cells;
      if (fail_) return wire::Status(Code::kDraining, "the dispatcher has ended");
      PageMap map;
      map.devices.resize(1);
      map.devices[0].uuid = "cpu-0";
      return map;
    };
    return telemetry_.Start(
        config_,
        [this]() -> wire::Result<Snapshot> {
          ++taken_;
          if (fail_) return wire::Status(Code::kDraining, "the dispatcher has ended");
          Snapshot s;
          s.version = kVersion;
          s.page_bytes = 4096;
          s.totals.requests = taken_;
          return s;
        },
        take_pages);
  }
  zmq::socket_t Asker(zmq::socket_type type = zmq::socket_type::dealer) {
    zmq::socket_t socket(context_, type);
    socket.set(zmq::sockopt::linger, 0);
    socket.set(zmq::sockopt::rcvtimeo, 5000);
    socket.connect(config_.status_endpoint);
    return socket;
  }
  static std::string Receive(zmq::socket_t& socket) {
    zmq::message_t frame;
    std::string last;
    do {
      if (!socket.recv(frame)) return "timeout";
      last = frame.to_string();
    } while (frame.more());
    return last;
  }
  std::string Ask(const std::string& body) {
    zmq::socket_t socket = Asker();
    socket.send(zmq::buffer(body), zmq::send_flags::none);
    return Receive(socket);
  }
  void ExpectServing() { EXPECT_THAT(Ask(R"({"query":"status"})"), HasSubstr("\"page_bytes\":4096")); }

  std::string folder_;
  Config config_;
  std::atomic<int> taken_{0};
  std::atomic<std::uint64_t> cells_{0};  // of the last page map
  std::atomic<bool> fail_{false};
  zmq::context_t context_{1};
  EventLog events_;
  Telemetry telemetry_{events_};
};

mode_t ModeOf(const std::string& path) {
  struct stat file {};
  return ::stat(path.c_str(), &file) == 0 ? file.st_mode & 07777 : 0;
}

TEST_F(TelemetryServer, AnswersStatusAndVersion) {
  ASSERT_TRUE(Start().ok());
  const auto snapshot = SnapshotFromJson(Ask(R"({"query":"status"})"));
  ASSERT_TRUE(snapshot.ok()) << snapshot.status().message();
  EXPECT_EQ(snapshot->version, kVersion);
  EXPECT_EQ(json::parse(Ask(R"({"query":"version"})"))["version"], kVersion);
}

TEST_F(TelemetryServer, AnswersReqSocketsInTheirEnvelope) {
  ASSERT_TRUE(Start().ok());
  zmq::socket_t req = Asker(zmq::socket_type::req);
  for (int i = 0; i < 3; ++i) {
    req.send(zmq::str_buffer(R"({"query":"status"})"), zmq::send_flags::none);
    EXPECT_THAT(Receive(req), HasSubstr("\"page_bytes\":4096"));
  }
}

TEST_F(TelemetryServer, EachReplyIsYoungerThanItsQuery) {
  ASSERT_TRUE(Start().ok());
  for (int i = 1; i <= 5; ++i) EXPECT_EQ(json::parse(Ask(R"({"query":"status"})"))["totals"]["requests"], i);
}

TEST_F(TelemetryServer, GarbageGetsAnErrorAndHarmsNothing) {
  ASSERT_TRUE(Start().ok());
  for (const std::string& bad :
       {std::string(), std::string("hello"), std::string("{"), std::string("[]"), std::string("null"),
        std::string("{\"query\":1}"), std::string("{\"query\":\"drop tables\"}"),
        std::string("{\"q\":\"status\"}"), std::string("\0\xff\xfe", 3), std::string("{\"query\":\"\xff\"}"),
        std::string(4000, '['), std::string(4000, '{')}) {
    const json reply = json::parse(Ask(bad));
    EXPECT_EQ(reply["schema_version"], 1);
    EXPECT_EQ(reply["error"]["code"], "protocol");
    EXPECT_THAT(reply["error"]["message"].get<std::string>(), HasSubstr("Hint: "));
  }
  EXPECT_EQ(taken_, 0) << "the dispatcher was not troubled";
  ExpectServing();
}

TEST_F(TelemetryServer, LongAndManyFramedMessagesHarmNothing) {
  ASSERT_TRUE(Start().ok());
  zmq::socket_t big = Asker();
  big.send(zmq::buffer(std::string(1 << 20, 'x')), zmq::send_flags::none);
  zmq::socket_t frames = Asker();
  for (int i = 0; i < 500; ++i) frames.send(zmq::str_buffer("f"), zmq::send_flags::sndmore);
  frames.send(zmq::str_buffer(R"({"query":"status"})"), zmq::send_flags::none);
  EXPECT_THAT(Receive(frames), HasSubstr("too many frames"));
  ExpectServing();
}

TEST_F(TelemetryServer, RawBytesOnTheSocketHarmNothing) {
  ASSERT_TRUE(Start().ok());
  const auto address = wire::UnixAddress(config_.socket_path + ".status");
  for (int i = 0; i < 50; ++i) {
    const wire::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof(*address)), 0);
    const std::string bytes(static_cast<std::size_t>(i * 7), static_cast<char>(i * 37));
    [[maybe_unused]] const ssize_t sent = ::send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  ExpectServing();
}

TEST_F(TelemetryServer, FloodIsCoalescedAndOthersAreServed) {
  ASSERT_TRUE(Start().ok());
  zmq::socket_t flooder = Asker();
  for (int i = 0; i < 5000; ++i)
    flooder.send(zmq::str_buffer(R"({"query":"status"})"), zmq::send_flags::dontwait);
  ExpectServing();
  EXPECT_LT(taken_, 5000);
}

TEST_F(TelemetryServer, RunningOutOfDescriptorsTurnsConnectionsAway) {
  int ready[2];
  ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  const pid_t server = ::fork();
  if (server == 0) {
    const rlimit few{64, 64};
    const bool started = ::setrlimit(RLIMIT_NOFILE, &few) == 0 && Start().ok();
    [[maybe_unused]] const ssize_t told = ::write(ready[1], started ? "y" : "n", 1);
    ::pause();
    ::_exit(0);
  }
  char started = 'n';
  ASSERT_EQ(::read(ready[0], &started, 1), 1);
  ASSERT_EQ(started, 'y');
  const auto address = wire::UnixAddress(config_.socket_path + ".status");
  {
    std::vector<wire::UniqueFd> flood;
    for (int i = 0; i < 300; ++i) {
      flood.emplace_back(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
      ::connect(flood.back().get(), reinterpret_cast<const sockaddr*>(&*address), sizeof(*address));
      if (i % 50 == 0) std::this_thread::sleep_for(milliseconds(10));
    }
    std::this_thread::sleep_for(milliseconds(100));
    EXPECT_EQ(::waitpid(server, nullptr, WNOHANG), 0) << "the server has ended";
  }
  ExpectServing();
  ::kill(server, SIGKILL);
  ::waitpid(server, nullptr, 0);
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_F(TelemetryServer, SnapshotErrorBecomesTheReply) {
  fail_ = true;
  ASSERT_TRUE(Start().ok());
  const json reply = json::parse(Ask(R"({"query":"status"})"));
  EXPECT_EQ(reply["error"]["code"], "draining");
  EXPECT_EQ(reply["error"]["message"], "the dispatcher has ended");
}

TEST_F(TelemetryServer, PublishesEvents) {
  ASSERT_TRUE(Start().ok());
  zmq::socket_t listener(context_, zmq::socket_type::sub);
  listener.set(zmq::sockopt::subscribe, "kill");
  listener.set(zmq::sockopt::rcvtimeo, 20);
  listener.connect(config_.events_endpoint);
  std::string body = "timeout";
  for (int i = 0; i < 250 && body == "timeout"; ++i) {  // subscriptions take a moment to arrive
    events_.Add({"attach", 0, "llm", "", 0, ""});
    events_.Add({"killed", 0, "llm\xff\"\n", "GPU-1", 42, "train.py"});
    body = Receive(listener);
  }
  const json event = json::parse(body);
  EXPECT_EQ(event["schema_version"], kEventSchemaVersion);
  EXPECT_EQ(event["name"], "killed");
  EXPECT_EQ(event["job"], "llm\xEF\xBF\xBD\"\n");
  EXPECT_EQ(event["device"], "GPU-1");
  EXPECT_EQ(event["bytes"], 42);
  EXPECT_EQ(event["text"], "train.py");
  EXPECT_GT(event["time_unix_ms"].get<std::int64_t>(), 0);
  EXPECT_GE(event["id"].get<std::uint64_t>(), events_.Last().front().id);
  EXPECT_LT(event["id"].get<std::uint64_t>(), events_.Next());
  EXPECT_EQ(event.size(), 8U);
}

TEST_F(TelemetryServer, PaintsPageMapsInTheCellsThatAreAskedFor) {
  ASSERT_TRUE(Start().ok());
  EXPECT_EQ(json::parse(Ask(R"({"query":"pages"})"))["devices"][0]["uuid"], "cpu-0");
  EXPECT_EQ(cells_, kUsualCells);
  EXPECT_EQ(json::parse(Ask(R"({"query":"pages","cells":64})"))["schema_version"], kPageMapSchemaVersion);
  EXPECT_EQ(cells_, 64U);
  for (const char* bad : {"63", "4097", "-1", "1e3", "\"64\"", "null", "[]", "18446744073709551615"}) {
    const std::string reply = Ask(std::string(R"({"query":"pages","cells":)") + bad + "}");
    EXPECT_THAT(reply, HasSubstr("cells is a number from 64 to 4096")) << bad;
  }
  EXPECT_EQ(cells_, 64U) << "the dispatcher was not troubled";
  fail_ = true;
  EXPECT_THAT(Ask(R"({"query":"pages"})"), HasSubstr("the dispatcher has ended"));
}

TEST_F(TelemetryServer, TellsTheLastEventsThatItKeeps) {
  events_.Add({"attach", 0, "early", "", 0, ""});
  ASSERT_TRUE(Start().ok());
  for (std::size_t i = 0; i < EventLog::kKept; ++i) events_.Add({"detach", 0, std::to_string(i), "", 0, ""});
  const json reply = json::parse(Ask(R"({"query":"events"})"));
  EXPECT_EQ(reply["schema_version"], kEventSchemaVersion);
  ASSERT_EQ(reply["events"].size(), EventLog::kKept);
  EXPECT_EQ(reply["events"][0]["job"], "0") << "the oldest one made room";
  EXPECT_EQ(reply["events"][EventLog::kKept - 1]["job"], std::to_string(EventLog::kKept - 1));
  EXPECT_EQ(taken_, 0) << "the dispatcher was not troubled";
}

TEST_F(TelemetryServer, EventsAfterStopHarmNothing) {
  ASSERT_TRUE(Start().ok());
  telemetry_.Stop();
  events_.Add({"detach", 0, "late", "", 0, ""});
  telemetry_.Stop();
}

TEST_F(TelemetryServer, FilesHaveTheSocketsModeAndGoAway) {
  config_.socket_mode = 0660;
  ASSERT_TRUE(Start().ok());
  EXPECT_EQ(ModeOf(config_.socket_path + ".status"), 0660U);
  EXPECT_EQ(ModeOf(config_.socket_path + ".events"), 0660U);
  telemetry_.Stop();
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

TEST_F(TelemetryServer, TakesOverAStaleSocketButNoOtherFile) {
  const std::string path = config_.socket_path + ".status";
  {
    const auto address = wire::UnixAddress(path);
    const wire::UniqueFd stale(::socket(AF_UNIX, SOCK_STREAM, 0));
    ASSERT_EQ(::bind(stale.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof(*address)), 0);
  }
  ASSERT_TRUE(Start().ok());
  ExpectServing();
  EXPECT_EQ(ModeOf(path), 0600U);
  telemetry_.Stop();
  std::ofstream(path) << "precious";
  const wire::Status refused = Start();
  EXPECT_EQ(refused.code(), Code::kInvalidArgument);
  EXPECT_THAT(refused.message(), HasSubstr("is no socket"));
  EXPECT_EQ(std::filesystem::file_size(path), 8U);
}

TEST_F(TelemetryServer, RefusesBadEndpointsWithAHint) {
  const auto refused = [&](const std::string& endpoint) {
    config_.status_endpoint = endpoint;
    const wire::Status status = Start();
    EXPECT_THAT(status.message(), HasSubstr("Hint: "));
    return status.code();
  };
  EXPECT_EQ(refused("tcp://127.0.0.1:5555"), Code::kInvalidArgument);
  EXPECT_EQ(refused("ipc://relative"), Code::kInvalidArgument);
  EXPECT_EQ(refused("ipc:///" + std::string(107, 'a')), Code::kInvalidArgument);
  EXPECT_EQ(refused("ipc://" + folder_ + "/no/such/folder/s"), Code::kInternal);
  config_.socket_group = "no-such-group-here";
  EXPECT_EQ(refused("ipc://" + folder_ + "/s"), Code::kInvalidArgument);
}

TEST_F(TelemetryServer, SleepsWhenNobodyAsks) {
  ASSERT_TRUE(Start().ok());
  ExpectServing();
  std::this_thread::sleep_for(milliseconds(100));
  const auto used_us = [] {
    rusage r{};
    ::getrusage(RUSAGE_SELF, &r);
    return (r.ru_utime.tv_sec + r.ru_stime.tv_sec) * 1'000'000L + r.ru_utime.tv_usec + r.ru_stime.tv_usec;
  };
  long best_us = 1'000'000;  // what a busy machine adds, it does not add each time
  for (int i = 0; i < 5 && best_us >= 5000; ++i) {
    const long before_us = used_us();
    std::this_thread::sleep_for(milliseconds(1000));
    best_us = std::min(best_us, used_us() - before_us);
  }
  EXPECT_LT(best_us, 5000) << "microseconds of CPU in a second";
}

}  // namespace
}  // namespace bitpager::daemon
