#include <gtest/gtest.h>

#include "daemon/observe.h"
#include "tests/support/commands.h"
#include "tests/support/in_process_daemon.h"
#include "tests/support/raw_trainer.h"

namespace bitpager::testing {
namespace {

using wire::Code;
using wire::MessageType;

constexpr std::uint32_t kAlice = 1000;
constexpr std::uint32_t kBob = 2000;

class Commands : public ::testing::Test {
 protected:
  Commands() : client_(daemon_.Open("job", 0, {kAlice, kAlice, 1})), trainer_(*client_, {8 * 6144}) {
    EXPECT_TRUE(trainer_.Create().ok());
    trainer_.StepOk(1);
    daemon_.Settle();
  }
  std::uint64_t Resident() { return daemon_.core().pager.Usage({1})->resident_frames; }

  InProcessDaemon daemon_;
  std::unique_ptr<RawClient> client_;
  RawTrainer trainer_;
};

TEST_F(Commands, ObeyTheOwner) {
  auto line = daemon_.Connect({kAlice, kAlice, 1});
  EXPECT_GT(Resident(), 0U);
  const Reply reply = line->Ask(MessageType::kEvict, EvictOf("job"));
  EXPECT_TRUE(reply.ok()) << reply.text();
  EXPECT_EQ(reply.value(0), 8 * kTestPageBytes);
  daemon_.Settle();
  EXPECT_EQ(Resident(), 0U);
  EXPECT_TRUE(line->Ask(MessageType::kLimit, LimitOf("job", 3 * kTestPageBytes)).ok());
  trainer_.StepOk(2);
  daemon_.Settle();
  EXPECT_LE(Resident(), 3U);
  ShadowArena shadow = trainer_.Shadow();
  shadow.Step(1);
  shadow.Step(2);
  trainer_.ExpectParams(shadow);
}

TEST_F(Commands, ObeyRoot) {
  auto line = daemon_.Connect({0, 0, 1});
  EXPECT_EQ(line->Ask(MessageType::kEvict, EvictOf("job")).code(), Code::kNotFound) << "root has none of it";
  EXPECT_TRUE(line->Ask(MessageType::kEvict, EvictOf("job", kAlice)).ok());
  EXPECT_TRUE(line->Ask(MessageType::kLimit, LimitOf("job", ~0ULL, kAlice)).ok());
}

TEST_F(Commands, ObeyNobodyElse) {
  auto line = daemon_.Connect({kBob, kBob, 1});
  EXPECT_EQ(line->Ask(MessageType::kEvict, EvictOf("job", kAlice)).code(), Code::kPermissionDenied);
  EXPECT_EQ(line->Ask(MessageType::kEvict, EvictOf("job")).code(), Code::kNotFound);
  EXPECT_EQ(line->Ask(MessageType::kLimit, LimitOf("job", 3 * kTestPageBytes, kAlice)).code(),
            Code::kPermissionDenied);
  EXPECT_EQ(line->Ask(MessageType::kLimit, LimitOf("nothing", 0, kAlice)).code(), Code::kPermissionDenied)
      << "a stranger does not even learn which names exist";
  daemon_.Settle();
  EXPECT_EQ(Resident(), 8U);
  EXPECT_FALSE(daemon_.core().draining);
}

TEST_F(Commands, RefuseBadLimits) {
  auto line = daemon_.Connect({kAlice, kAlice, 1});
  EXPECT_EQ(line->Ask(MessageType::kLimit, LimitOf("job", 1)).code(), Code::kInvalidArgument);
  wire::LimitBody body = LimitOf("job", 0);
  body.weight = -1;
  EXPECT_EQ(line->Ask(MessageType::kLimit, body).code(), Code::kInvalidArgument);
  body.weight = 0;
  body.host_quota_bytes = kTestPageBytes;
  EXPECT_EQ(line->Ask(MessageType::kLimit, body).code(), Code::kQuotaExceeded) << "more is committed already";
}

TEST_F(Commands, DrainLetsSessionsFinish) {
  daemon_.dispatcher->Drain();
  trainer_.StepOk(2);
  auto late = daemon_.Connect();
  EXPECT_EQ(late->Hello(RawClient::HelloBodyOf("late")).code(), Code::kDraining);
  client_->HangUp();
  daemon_.Settle();
  daemon_.clock.tick_ns = 1000;
  EXPECT_TRUE(daemon_.dispatcher->Run()) << "it drains and nobody is left";
  EXPECT_EQ(daemon_.sessions(), 0U);
}

TEST_F(Commands, StopTellsTheSessions) {
  client_->Push(trainer_.Prepare(2));
  daemon_.clock.tick_ns = 1000;
  daemon_.dispatcher->RequestStop();
  EXPECT_TRUE(daemon_.dispatcher->Run());
  EXPECT_EQ(client_->failed(), Code::kDraining);
  const auto done = client_->Pop();
  ASSERT_TRUE(done) << "a ticket that was ready is applied and told";
  EXPECT_EQ(RawClient::CodeOf(*done), Code::kOk);
}

TEST_F(Commands, UsageCounts) {
  const Reply usage = client_->AskBare(MessageType::kUsage);
  ASSERT_TRUE(usage.ok());
  auto value = [&](wire::UsageValue which) { return usage.value(static_cast<std::size_t>(which)); };
  EXPECT_EQ(value(wire::UsageValue::kPages), 8U);
  EXPECT_EQ(value(wire::UsageValue::kResidentStateBytes), 8 * kTestPageBytes);
  EXPECT_EQ(value(wire::UsageValue::kHostBytes), 8 * kTestPageBytes);
  EXPECT_EQ(value(wire::UsageValue::kSteps), 1U);
  EXPECT_EQ(value(wire::UsageValue::kDeviceBudgetBytes), 16 * kTestPageBytes);
  EXPECT_EQ(value(wire::UsageValue::kBufferBytes), trainer_.buffer().map.bytes());
}

std::uint64_t ValueOf(const Reply& usage, wire::UsageValue which) {
  return usage.value(static_cast<std::size_t>(which)) / kTestPageBytes;
}

TEST_F(Commands, UsageTellsPeaksOfTheSessionAndOfTheJob) {
  using V = wire::UsageValue;
  auto second = daemon_.Open("job", 1, {kAlice, kAlice, 1});
  const auto evict = [&](std::uint64_t bytes) {
    wire::EvictBody body = EvictOf("job");
    body.bytes = bytes;
    EXPECT_TRUE(daemon_.Connect({kAlice, kAlice, 1})->Ask(MessageType::kEvict, body).ok());
    daemon_.Settle();
  };
  evict(6 * kTestPageBytes);
  ASSERT_EQ(Resident(), 2U);
  Reply usage = client_->AskBare(MessageType::kUsage);
  EXPECT_EQ(ValueOf(usage, V::kPeakResidentBytes), 8U);
  EXPECT_EQ(ValueOf(usage, V::kPeakHostBytes), 8U);
  usage = client_->Ask(MessageType::kUsage, wire::UsageBody{1});
  ASSERT_TRUE(usage.ok()) << usage.text();
  EXPECT_EQ(ValueOf(usage, V::kPeakResidentBytes), 2U) << "they begin anew at what it has";
  EXPECT_EQ(ValueOf(usage, V::kJobPeakResidentBytes), 8U) << "the job's go on";
  EXPECT_EQ(ValueOf(second->AskBare(MessageType::kUsage), V::kPeakResidentBytes), 8U)
      << "as do another session's: all was there when it came";
  usage = client_->AskBare(MessageType::kUsage);
  EXPECT_EQ(ValueOf(usage, V::kPeakResidentBytes), 2U) << "a quiet job's peak is what it has";
  trainer_.StepOk(2);
  daemon_.Settle();
  usage = client_->AskBare(MessageType::kUsage);
  EXPECT_EQ(ValueOf(usage, V::kPeakResidentBytes), 8U);
  auto late = daemon_.Open("job", 2, {kAlice, kAlice, 1});
  evict(0);
  EXPECT_EQ(ValueOf(late->AskBare(MessageType::kUsage), V::kPeakResidentBytes), 8U);
  (void)late->Ask(MessageType::kUsage, wire::UsageBody{1});
  EXPECT_EQ(ValueOf(late->AskBare(MessageType::kUsage), V::kPeakResidentBytes), 0U);
  const daemon::Snapshot seen = daemon::Observe(daemon_.core());
  ASSERT_EQ(seen.jobs.size(), 1U);
  EXPECT_EQ(seen.jobs[0].peak_resident_bytes, 8 * kTestPageBytes);
  EXPECT_EQ(seen.jobs[0].peak_host_bytes, 8 * kTestPageBytes);
}

TEST_F(Commands, AUsageMessageOfAWrongSizeIsRefused) {
  EXPECT_EQ(client_->Ask(MessageType::kUsage, EvictOf("job")).code(), Code::kProtocol);
}

}  // namespace
}  // namespace bitpager::testing
