#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <limits>

#include "tests/support/in_process_daemon.h"
#include "tests/support/raw_trainer.h"

namespace bitpager::testing {
namespace {

using wire::Code;
using wire::MessageType;

TEST(Hello, OpensASession) {
  InProcessDaemon daemon;
  auto client = daemon.Connect();
  const Reply reply = client->Hello(RawClient::HelloBodyOf("train"), PidfdOf(::getpid()).get());
  ASSERT_TRUE(reply.ok()) << reply.text();
  EXPECT_EQ(client->page_bytes(), kTestPageBytes);
  EXPECT_EQ(reply.value(3), 0U) << "a client with a pidfd is not asked for heartbeats";
  EXPECT_EQ(client->view().header().magic, wire::kSegmentMagic);
  EXPECT_EQ(client->view().header().version, wire::kWireVersion);
  EXPECT_EQ(client->view().header().page_bytes, kTestPageBytes);
  EXPECT_EQ(RawClient::CodeOf(client->Run(wire::Op::kNoop, wire::PhaseBody{})), Code::kOk);
}

TEST(Hello, TellsAnUnknownVersionAndBothNumbers) {
  InProcessDaemon daemon;
  auto client = daemon.Connect();
  wire::MessageHeader header;
  header.version = wire::kWireVersion + 7;
  header.body_bytes = sizeof(wire::HelloBody);
  std::array<std::byte, sizeof(header) + sizeof(wire::HelloBody)> bytes{};
  std::memcpy(bytes.data(), &header, sizeof(header));
  ASSERT_TRUE(wire::SendPacket(client->socket(), bytes).ok());
  const Reply reply = client->Receive();
  EXPECT_EQ(reply.code(), Code::kUnknownVersion);
  EXPECT_THAT(reply.text(), ::testing::HasSubstr(std::to_string(wire::kWireVersion + 7)));
  EXPECT_EQ(daemon.sessions(), 0U);
}

TEST(Hello, RefusesBadNamesWeightsAndLongClients) {
  InProcessDaemon daemon;
  auto refused = [&](const wire::HelloBody& hello) {
    auto client = daemon.Connect();
    const Reply reply = client->Hello(hello);
    EXPECT_EQ(reply.code(), Code::kInvalidArgument);
    EXPECT_FALSE(reply.text().empty());
    EXPECT_TRUE(reply.fds.empty());
  };
  refused(RawClient::HelloBodyOf(""));
  refused(RawClient::HelloBodyOf("a b"));
  refused(RawClient::HelloBodyOf("../etc"));
  wire::HelloBody hello = RawClient::HelloBodyOf("job");
  std::memset(hello.job, 'x', sizeof(hello.job));
  refused(hello);
  hello = RawClient::HelloBodyOf("job");
  std::memset(hello.client, 'x', sizeof(hello.client));
  refused(hello);
  for (const double weight :
       {-1.0, 1e7, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    hello = RawClient::HelloBodyOf("job");
    hello.weight = weight;
    refused(hello);
  }
  daemon.Settle();
  EXPECT_EQ(daemon.sessions(), 0U);
  EXPECT_EQ(daemon.jobs(), 0U);
}

TEST(Hello, RefusesAForeignFdAsPidfdAndKeepsNothing) {
  InProcessDaemon daemon;
  const std::size_t before = OpenFds();
  {
    auto client = daemon.Connect();
    const wire::UniqueFd memory = MakeMemory(4096);
    const Reply reply = client->Hello(RawClient::HelloBodyOf("job"), memory.get());
    EXPECT_EQ(reply.code(), Code::kInvalidArgument);
    EXPECT_THAT(reply.text(), ::testing::HasSubstr("pidfd"));
    const int two[2] = {memory.get(), memory.get()};
    EXPECT_EQ(client->Ask(MessageType::kHello, RawClient::HelloBodyOf("job"), two).code(),
              Code::kInvalidArgument);
  }
  daemon.Settle();
  EXPECT_EQ(daemon.sessions(), 0U);
  EXPECT_EQ(daemon.jobs(), 0U);
  EXPECT_EQ(OpenFds(), before);
}

TEST(Hello, IsSaidOncePerConnection) {
  InProcessDaemon daemon;
  auto client = daemon.Open("job");
  EXPECT_EQ(client->Ask(MessageType::kHello, RawClient::HelloBodyOf("job")).code(), Code::kAlreadyExists);
  EXPECT_EQ(RawClient::CodeOf(client->Run(wire::Op::kNoop, wire::PhaseBody{})), Code::kOk);
  EXPECT_TRUE(client->AskBare(MessageType::kDetach).ok());
  daemon.Settle();
  EXPECT_EQ(daemon.sessions(), 0U);
  EXPECT_EQ(client->Ask(MessageType::kHello, RawClient::HelloBodyOf("job")).code(), Code::kAlreadyExists);
}

TEST(Hello, MustComeFirst) {
  InProcessDaemon daemon;
  auto client = daemon.Connect();
  EXPECT_EQ(client->Ask(MessageType::kCreateBuffer, wire::CreateBufferBody{4096}).code(), Code::kProtocol);
  EXPECT_TRUE(client->Receive(200).closed);
}

TEST(Hello, RefusesBodiesOfTheWrongSizeAndUnknownTypes) {
  InProcessDaemon daemon;
  auto healthy = daemon.Open("healthy");
  for (const auto type : {MessageType::kHello, MessageType::kCreateBuffer, MessageType::kCreateArena,
                          MessageType::kLimit, MessageType::kEvict}) {
    auto client = type == MessageType::kHello ? daemon.Connect() : daemon.Open("job");
    EXPECT_EQ(client->Ask(type, wire::PrefetchBody{}).code(), Code::kProtocol);
    EXPECT_TRUE(client->Receive(200).closed);
  }
  auto client = daemon.Open("job");
  EXPECT_EQ(client->AskBare(static_cast<MessageType>(999)).code(), Code::kProtocol);
  daemon.Settle();
  EXPECT_EQ(daemon.sessions(), 1U);
  EXPECT_EQ(RawClient::CodeOf(healthy->Run(wire::Op::kNoop, wire::PhaseBody{})), Code::kOk);
}

TEST(Hello, RefusesMoreSessionsThanConfigured) {
  daemon::Settings settings = TestSettings();
  settings.max_sessions = 2;
  InProcessDaemon daemon(settings);
  auto first = daemon.Open("job", 0);
  auto second = daemon.Open("job", 1);
  auto third = daemon.Connect();
  const Reply reply = third->Hello(RawClient::HelloBodyOf("job", 2));
  EXPECT_EQ(reply.code(), Code::kBudgetExceeded);
  EXPECT_THAT(reply.text(), ::testing::HasSubstr("2 sessions"));
}

TEST(Hello, OneUserCannotTakeAllSessions) {
  daemon::Settings settings = TestSettings();
  settings.max_sessions = 4;
  settings.max_sessions_of_user = 2;
  settings.owner_uid = 500;
  InProcessDaemon daemon(settings);
  auto first = daemon.Open("job", 0);
  auto second = daemon.Open("job", 1);
  auto third = daemon.Connect();
  const Reply refused = third->Hello(RawClient::HelloBodyOf("job", 2));
  EXPECT_EQ(refused.code(), Code::kBudgetExceeded);
  EXPECT_THAT(refused.text(), ::testing::HasSubstr("uid 1000 has 2 sessions"));
  auto another = daemon.Open("job", 0, {2000, 2000, 1});
  auto owner = daemon.Open("job", 0, {500, 500, 1});
  first->HangUp();
  daemon.Settle();
  EXPECT_TRUE(third->Hello(RawClient::HelloBodyOf("job", 2)).ok());
}

TEST(Hello, IsRefusedToAUidThatStandsForSeveralUsers) {
  daemon::Settings settings = TestSettings();
  settings.ambiguous_uid = 65534;
  InProcessDaemon daemon(settings);
  auto nobody = daemon.Connect({65534, 65534, 1});
  const Reply refused = nobody->Hello(RawClient::HelloBodyOf("job"));
  EXPECT_EQ(refused.code(), Code::kPermissionDenied);
  EXPECT_THAT(refused.text(), ::testing::HasSubstr("user namespace"));
  wire::EvictBody evict;
  wire::CopyText(evict.job, "job");
  EXPECT_EQ(nobody->Ask(MessageType::kEvict, evict).code(), Code::kPermissionDenied);
  EXPECT_EQ(daemon.jobs(), 0U);
  auto someone = daemon.Open("job");
  EXPECT_EQ(daemon.sessions(), 1U);
}

TEST(Hello, IsRefusedWhileDraining) {
  InProcessDaemon daemon;
  auto before = daemon.Open("job");
  daemon.dispatcher->Drain();
  auto client = daemon.Connect();
  EXPECT_EQ(client->Hello(RawClient::HelloBodyOf("job")).code(), Code::kDraining);
  EXPECT_EQ(RawClient::CodeOf(before->Run(wire::Op::kNoop, wire::PhaseBody{})), Code::kOk)
      << "sessions that are there go on";
}

TEST(Heartbeat, ItsEndEndsASessionWithoutPidfd) {
  InProcessDaemon daemon;
  auto client = daemon.Open("silent");
  auto beating = daemon.Open("beating");
  for (int i = 0; i < 12; ++i) {
    daemon.clock.AdvanceMs(100);
    beating->view().header().heartbeat.word.fetch_add(1);
    daemon.Turn();
  }
  daemon.Settle();
  EXPECT_EQ(daemon.sessions(), 1U);
  EXPECT_EQ(daemon.core().counters.sessions_lost, 1U);
  EXPECT_TRUE(daemon.Noticed("killed"));
  EXPECT_EQ(RawClient::CodeOf(beating->Run(wire::Op::kNoop, wire::PhaseBody{})), Code::kOk);
}

TEST(Heartbeat, WorkIsReportedWhenTimeEndsASession) {
  // The loop sleeps when DoWork reports none: the turn that finds a session dead must report some, or the
  // session would stay until something else wakes the loop.
  InProcessDaemon daemon;
  auto client = daemon.Open("silent");
  daemon.Settle();
  daemon.clock.AdvanceMs(1000);
  while (daemon.sessions() > 0) ASSERT_GT(daemon.Turn(), 0);
}

TEST(Session, HangUpGivesEverythingBack) {
  InProcessDaemon daemon;
  const std::size_t fds = OpenFds();
  const std::int64_t imports = daemon.device->imports;
  {
    auto client = daemon.Open("job");
    RawTrainer trainer(*client, {20'000, 300});
    ASSERT_TRUE(trainer.Create().ok());
    trainer.StepOk(1);
    EXPECT_GT(daemon.core().pager.used_host_frames(), 0U);
  }
  daemon.Settle();
  EXPECT_EQ(daemon.sessions(), 0U);
  EXPECT_EQ(daemon.jobs(), 0U);
  EXPECT_EQ(daemon.core().pager.used_host_frames(), 0U);
  EXPECT_EQ(daemon.core().pager.free_frames(), daemon.core().pager.config().device_frames);
  EXPECT_EQ(daemon.device->imports, imports);
  EXPECT_EQ(daemon.device->scratches, 0);
  EXPECT_EQ(daemon.device->shared_words, 0);
  EXPECT_EQ(OpenFds(), fds);
}

TEST(Session, APushedStepIsAppliedThoughItsClientHangsUp) {
  daemon::Settings settings = TestSettings();
  settings.linger_ms = 60'000;
  InProcessDaemon daemon(settings);
  auto client = daemon.Open("job");
  RawTrainer trainer(*client, {20'000});
  ASSERT_TRUE(trainer.Create().ok());
  client->Push(trainer.Prepare(1));
  client->HangUp();
  daemon.Settle();
  auto back = daemon.Open("job");
  RawTrainer again(*back, {20'000});
  wire::CreateArenaBody body;
  body.resume = wire::Resume::kContinue;
  body.step = 1;
  const Reply reply = again.Create(body);
  EXPECT_TRUE(reply.ok()) << reply.text();
}

}  // namespace
}  // namespace bitpager::testing
