// What the daemon tells as events: what bursts are one, what is none, and what each says. In-process daemon.
#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "daemon/observe.h"
#include "tests/support/commands.h"
#include "tests/support/figures.h"
#include "tests/support/in_process_daemon.h"
#include "tests/support/raw_trainer.h"

namespace bitpager::testing {
namespace {

class Told : public ::testing::Test {
 protected:
  Told() : client_(daemon_.OpenPatient("job")), trainer_(*client_, {8 * 6144}) {
    EXPECT_TRUE(trainer_.Create().ok());
    trainer_.StepOk(1);
    daemon_.Settle();
    daemon_.notices.clear();
  }
  std::vector<daemon::Notice> Named(const std::string& name) {
    std::vector<daemon::Notice> out;
    for (const daemon::Notice& notice : daemon_.notices) {
      if (notice.name == name) out.push_back(notice);
    }
    return out;
  }
  InProcessDaemon daemon_{RoomyTestSettings()};
  std::unique_ptr<RawClient> client_;
  RawTrainer trainer_;
};

TEST_F(Told, ABurstOfEvictionsIsOneEvent) {
  auto line = daemon_.Connect();
  ASSERT_TRUE(line->Ask(wire::MessageType::kEvict, EvictOf("job")).ok());
  daemon_.Settle();
  EXPECT_TRUE(Named("evict").empty()) << "it may go on";
  daemon_.clock.AdvanceMs(201);
  EXPECT_GT(daemon_.Turn(), 0);
  ASSERT_EQ(Named("evict").size(), 1U);
  EXPECT_EQ(Named("evict")[0].job, "job");
  EXPECT_EQ(Named("evict")[0].bytes, 8 * kTestPageBytes);
  EXPECT_EQ(Named("evict")[0].text, "command");
  EXPECT_EQ(daemon::Observe(daemon_.core()).jobs[0].last_event, "evict");
  daemon_.clock.AdvanceMs(10'000);
  daemon_.Turn();
  EXPECT_EQ(Named("evict").size(), 1U);
}

TEST_F(Told, AStepsOwnStreamingIsNoEvent) {
  auto other = daemon_.OpenPatient("streams");
  RawTrainer wide(*other, {60 * 6144});
  ASSERT_TRUE(wide.Create().ok());
  for (std::uint64_t step = 1; step <= 2; ++step) wide.StepOk(step);
  daemon_.clock.AdvanceMs(6'000);
  daemon_.Turn();
  daemon_.notices.clear();
  const std::uint64_t before = SumOf(daemon::Observe(daemon_.core()).devices[0].evictions_by_reason);
  for (std::uint64_t step = 3; step <= 8; ++step) {
    wide.StepOk(step);
    daemon_.clock.AdvanceMs(1'000);
    daemon_.Turn();
  }
  EXPECT_GT(SumOf(daemon::Observe(daemon_.core()).devices[0].evictions_by_reason), before + 200);
  EXPECT_TRUE(Named("evict").empty());
}

TEST_F(Told, PagesThatALimitTakesAreAnEvent) {
  auto line = daemon_.Connect();
  ASSERT_TRUE(line->Ask(wire::MessageType::kLimit, LimitOf("job", 3 * kTestPageBytes)).ok());
  daemon_.Settle();
  daemon_.clock.AdvanceMs(201);
  daemon_.Turn();
  ASSERT_EQ(Named("limit").size(), 1U);
  EXPECT_EQ(Named("limit")[0].bytes, 3 * kTestPageBytes);
  ASSERT_EQ(Named("evict").size(), 1U);
  EXPECT_EQ(Named("evict")[0].bytes, 5 * kTestPageBytes);
  EXPECT_EQ(Named("evict")[0].text, "limit");
}

TEST_F(Told, NonFiniteGradientsNameStepAndTensorAndDoNotFlood) {
  for (std::uint64_t step = 2; step <= 40; ++step) {
    const wire::RequestRecord record = trainer_.Prepare(step);
    auto* grad = reinterpret_cast<float*>(trainer_.buffer().map.base() + trainer_.entry(0).grad.offset);
    grad[300] = std::numeric_limits<float>::quiet_NaN();
    client_->Push(record);
    ASSERT_TRUE(client_->Wait());
  }
  ASSERT_EQ(Named("nonfinite").size(), 1U);
  EXPECT_NE(Named("nonfinite")[0].text.find("1 blocks"), std::string::npos) << Named("nonfinite")[0].text;
  EXPECT_NE(Named("nonfinite")[0].text.find("tensor 0"), std::string::npos);
  daemon_.clock.AdvanceMs(1'001);
  const wire::RequestRecord record = trainer_.Prepare(41);
  reinterpret_cast<float*>(trainer_.buffer().map.base() + trainer_.entry(0).grad.offset)[300] =
      std::numeric_limits<float>::infinity();
  client_->Push(record);
  ASSERT_TRUE(client_->Wait());
  ASSERT_EQ(Named("nonfinite").size(), 2U);
  EXPECT_NE(Named("nonfinite")[1].text.find("38 times before"), std::string::npos)
      << Named("nonfinite")[1].text;
  EXPECT_EQ(daemon::Observe(daemon_.core()).jobs[0].nonfinite_blocks, 40U);
}

TEST_F(Told, ComingGoingAndRefusals) {
  auto second = daemon_.OpenPatient("second");
  ASSERT_EQ(Named("attach").size(), 1U);
  EXPECT_EQ(Named("attach")[0].text, "raw");
  EXPECT_EQ(second->Ask(wire::MessageType::kCreateBuffer, wire::CreateBufferBody{1U << 30}).code(),
            wire::Code::kBudgetExceeded);
  ASSERT_EQ(Named("error").size(), 1U);
  EXPECT_EQ(Named("error")[0].job, "second");
  EXPECT_TRUE(second->AskBare(wire::MessageType::kDetach).ok());
  daemon_.Settle();
  ASSERT_EQ(Named("detach").size(), 1U);
  client_->HangUp();
  daemon_.Settle();
  ASSERT_EQ(Named("killed").size(), 1U);
  EXPECT_EQ(Named("killed")[0].bytes, 8 * kTestPageBytes);
}

}  // namespace
}  // namespace bitpager::testing
