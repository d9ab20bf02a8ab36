// How long kept states stay when the sessions of a job ask for different times.
#include <gtest/gtest.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "tests/support/in_process_daemon.h"
#include "tests/support/raw_trainer.h"

namespace bitpager::testing {
namespace {

class Linger : public ::testing::Test {
 protected:
  // A session of job "job". linger_ms: what it asks for; -1: nothing.
  std::unique_ptr<RawClient> Open(std::uint32_t rank, std::int64_t linger_ms) {
    auto client = daemon_.Connect();
    wire::HelloBody hello = RawClient::HelloBodyOf("job", rank);
    hello.linger_ms = linger_ms;
    const Reply reply = client->Hello(hello, PidfdOf(::getpid()).get());
    EXPECT_TRUE(reply.ok()) << reply.text();
    return client;
  }
  void MakeStates(RawClient& client) {
    RawTrainer trainer(client, {20'000});
    ASSERT_TRUE(trainer.Create().ok());
    trainer.StepOk(1);
  }
  bool Resume(RawClient& client) {
    RawTrainer trainer(client, {20'000});
    wire::CreateArenaBody body;
    body.resume = wire::Resume::kContinue;
    body.step = 1;
    return trainer.Create(body).ok();
  }
  void End(std::unique_ptr<RawClient>& client) {
    client.reset();
    daemon_.Settle();
  }
  void Pass(std::uint64_t seconds) {
    daemon_.clock.AdvanceMs(seconds * 1000);
    daemon_.Settle();
  }
  // So many extents are kept for so long, and then the job is gone.
  void ExpectKept(std::size_t extents, std::uint64_t seconds) {
    EXPECT_EQ(kept(), extents);
    Pass(seconds - 1);
    EXPECT_EQ(kept(), extents);
    Pass(2);
    EXPECT_EQ(daemon_.jobs(), 0U);
  }
  std::size_t kept() {
    return daemon_.jobs() == 0 ? 0 : daemon_.core().registry.jobs().begin()->second.extents.size();
  }

  InProcessDaemon daemon_;  // keeps nothing unless asked
};

TEST_F(Linger, ASessionThatKeepsNothingShortensNothing) {
  auto first = Open(0, 60'000);
  MakeStates(*first);
  auto last = Open(1, 0);
  MakeStates(*last);
  End(first);
  End(last);
  ExpectKept(1, 60);  // what asked for nothing went
}

TEST_F(Linger, TheLongestTimeOfWhatIsKeptCounts) {
  auto longer = Open(0, 60'000);
  auto shorter = Open(1, 10'000);
  MakeStates(*longer);
  MakeStates(*shorter);
  End(longer);
  End(shorter);
  ExpectKept(2, 60);
}

TEST_F(Linger, ASessionWithoutStatesMayAskForTheJob) {
  auto asks = Open(0, 120'000);
  auto trains = Open(1, 10'000);
  MakeStates(*trains);
  End(asks);
  End(trains);
  ExpectKept(1, 120);
}

TEST_F(Linger, WhoAsksNothingGetsWhatTheJobAsksFor) {
  auto silent = Open(0, -1);
  MakeStates(*silent);
  auto asks = Open(1, 60'000);
  End(silent);
  End(asks);
  ExpectKept(1, 60);
}

TEST_F(Linger, WhatNobodyResumedStaysAsLongAsItsOwnerAsked) {
  auto client = Open(0, 60'000);
  MakeStates(*client);
  auto other = Open(1, 60'000);
  MakeStates(*other);
  End(client);
  End(other);
  Pass(30);
  auto back = Open(0, 0);
  ASSERT_TRUE(Resume(*back));
  Pass(100);  // no time runs while a session lives
  EXPECT_EQ(kept(), 2U);
  End(back);
  EXPECT_EQ(kept(), 1U) << "what was resumed is dropped, as its new owner asked";
  Pass(59);
  EXPECT_EQ(kept(), 1U);
  auto again = Open(1, 0);
  EXPECT_TRUE(Resume(*again));
  End(again);
  EXPECT_EQ(daemon_.jobs(), 0U) << "an earlier run's wish does not outlive it";
}

}  // namespace
}  // namespace bitpager::testing
