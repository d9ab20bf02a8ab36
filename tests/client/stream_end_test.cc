// Requests on a GPU's stream that end otherwise: failures told later, sessions that end, and every way in
// which the daemon can go away while a stream waits for it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <thread>

#include "client/weight.h"
#include "client/wire/text.h"
#include "tests/client/stream_fixture.h"

namespace bitpager::client {
namespace {

using ::testing::HasSubstr;

TEST_F(Streams, TellsAFailureLaterWithItsStep) {
  Script script = GpuScript();
  script.on_request = [&](FakeDaemon& daemon, const wire::RequestRecord& record,
                          wire::CompletionRecord& done) {
    Apply(daemon, record);
    if (record.ticket == 2) {
      done.code = static_cast<std::uint32_t>(Code::kNonFinite);
      done.values[0] = 5;
      done.values[1] = 1;
    }
    if (record.ticket == 3) {
      done.code = static_cast<std::uint32_t>(Code::kBudgetExceeded);
      wire::CopyText(done.message, "no room");
    }
    return Then::kComplete;
  };
  Connect(std::move(script));
  for (std::uint64_t step = 11; step <= 14; ++step) MustStep(step);
  ASSERT_TRUE(Synchronized());
  Result<Finished> finished = session_->TakeFinished();
  ASSERT_TRUE(finished.ok());
  EXPECT_EQ(finished->note.step, 12U);
  EXPECT_EQ(finished->note.extent, arena_->id());
  EXPECT_EQ(CodeFrom(finished->record.code), Code::kNonFinite);
  EXPECT_EQ(finished->record.values[0], 5U);
  finished = session_->TakeFinished();
  ASSERT_TRUE(finished.ok());
  EXPECT_EQ(finished->note.step, 13U);
  EXPECT_THAT(StatusOf(finished->record).message(), HasSubstr("no room"));
  finished = session_->TakeFinished();
  ASSERT_TRUE(finished.ok());
  EXPECT_EQ(finished->note.step, 14U);
  EXPECT_EQ(finished->record.code, 0U);
}

TEST_F(Streams, TellsAFailureOnce) {
  Script script = GpuScript();
  script.on_request = [](FakeDaemon& daemon, const wire::RequestRecord& record,
                         wire::CompletionRecord& done) {
    Apply(daemon, record);
    done.code = static_cast<std::uint32_t>(Code::kCancelled);
    wire::CopyText(done.message, "not applied");
    return Then::kComplete;
  };
  Connect(std::move(script));
  MustStep(1);
  ASSERT_TRUE(Synchronized());
  Result<Finished> finished = session_->TakeFinished();
  ASSERT_TRUE(finished.ok());
  EXPECT_EQ(CodeFrom(finished->record.code), Code::kCancelled);
  finished = session_->TakeFinished();
  ASSERT_TRUE(finished.ok());
  EXPECT_EQ(CodeFrom(finished->record.code), Code::kOk);
  EXPECT_EQ(finished->note.step, 1U);
}

TEST_F(Streams, KilledDaemonReleasesAWaitingStreamWithinASecond) {
  Script script = GpuScript();
  script.on_request = [](FakeDaemon& daemon, const wire::RequestRecord&, wire::CompletionRecord&) {
    daemon.HangUp();
    return Then::kKeepOpen;
  };
  Connect(std::move(script));
  const Clock::time_point start = Clock::now();
  MustStep(1);
  EXPECT_TRUE(cuda_.Drained(Stream(1), 1000));
  EXPECT_LT(Clock::now() - start, 1s);
  EXPECT_EQ(Step(2).status().code(), Code::kDaemonLost);
  EXPECT_EQ(session_->Synchronize().code(), Code::kDaemonLost);
  EXPECT_EQ(session_->TakeFinished().status().code(), Code::kDaemonLost);
}

TEST_F(Streams, ALateStoreOfADyingDaemonDoesNotCatchTheStreamsAgain) {
  Script script = GpuScript();
  script.on_request = [](FakeDaemon& daemon, const wire::RequestRecord& record, wire::CompletionRecord&) {
    if (record.ticket == 2) daemon.HangUp();
    return Then::kKeepOpen;
  };
  Connect(std::move(script));
  MustStep(1);
  MustStep(2);
  wire::SegmentHeader& header = session_->connection()->view().header();
  ASSERT_TRUE(Becomes([&] { return header.done.word.load() == wire::kDoneReleased; }));
  header.done.word.store(1);  // its device's last act
  EXPECT_TRUE(Becomes([&] { return header.done.word.load() == wire::kDoneReleased; }, 1000ms));
}

TEST_F(Streams, SessionThatTheDaemonEndedReleasesTheStream) {
  Script script = GpuScript();
  script.on_request = [](FakeDaemon& daemon, const wire::RequestRecord&, wire::CompletionRecord&) {
    daemon.header().failed.word.store(static_cast<std::uint64_t>(Code::kDeviceFault));
    return Then::kKeepOpen;
  };
  Connect(std::move(script));
  MustStep(1);
  EXPECT_TRUE(cuda_.Drained(Stream(1), 1000));
  EXPECT_EQ(Step(2).status().code(), Code::kDeviceFault);
}

// Counts what is applied, each request after a while.
Script SlowCounting(std::atomic<int>& applied) {
  return GpuScript([&applied](FakeDaemon&, const wire::RequestRecord&) {
    std::this_thread::sleep_for(5ms);
    ++applied;
  });
}

TEST_F(Streams, DisconnectWaitsForWhatStreamsHold) {
  std::atomic<int> applied{0};
  Connect(SlowCounting(applied));
  for (std::uint64_t step = 1; step <= 5; ++step) MustStep(step);
  EXPECT_TRUE(cuda_.registered());
  session_->Disconnect();
  EXPECT_EQ(applied, 5);
  EXPECT_FALSE(cuda_.registered());
  EXPECT_EQ(Step(6).status().code(), Code::kUnreachable);
}

TEST_F(Streams, WhatIsDroppedIsDroppedBehindWhatWasAskedForBefore) {
  std::atomic<int> applied{0};
  std::vector<int> applied_before;  // a drop
  Script script = SlowCounting(applied);
  script.on_message = [&](FakeDaemon&, const wire::Packet& packet) {
    if (packet.header().type == wire::MessageType::kDropExtent) applied_before.push_back(applied);
    return false;
  };
  Connect(std::move(script));
  WeightOptions options;
  options.elements = 4096;
  Result<std::unique_ptr<Weight>> weight = Weight::Create(*session_, options);
  ASSERT_TRUE(weight.ok()) << weight.status().message();
  ASSERT_TRUE((*weight)->QuantizeOnStream(wire::DType::kBF16, At(kParams), Stream(1)).ok());
  weight->reset();
  for (std::uint64_t step = 1; step <= 3; ++step) MustStep(step);
  ASSERT_TRUE(session_->HintPhase(wire::Phase::kForward).ok());
  EXPECT_TRUE(applied_before.empty()) << "who lets go of a weight waits for nothing";
  ASSERT_TRUE(arena_->Drop().ok());
  EXPECT_EQ(applied_before, std::vector<int>{5});
  EXPECT_TRUE(arena_->Drop().ok()) << "once";
  EXPECT_TRUE(Synchronized());
  EXPECT_EQ(applied_before, (std::vector<int>{5, 5}));
}

TEST_F(Streams, MemoryIsAskedForBehindWhatIsToBeDropped) {
  std::vector<wire::MessageType> seen;
  Script script =
      GpuScript([&](FakeDaemon&, const wire::RequestRecord&) { std::this_thread::sleep_for(20ms); });
  script.on_message = [&](FakeDaemon&, const wire::Packet& packet) {
    const wire::MessageType type = packet.header().type;
    if (type == wire::MessageType::kDropExtent || type == wire::MessageType::kCreateWeight)
      seen.push_back(type);
    return false;
  };
  Connect(std::move(script));
  WeightOptions options;
  options.elements = 4096;
  for (int i = 0; i < 2; ++i) {
    const Result<std::unique_ptr<Weight>> weight = Weight::Create(*session_, options);
    ASSERT_TRUE(weight.ok()) << weight.status().message();
    ASSERT_TRUE((*weight)->QuantizeOnStream(wire::DType::kBF16, At(kParams), Stream(1)).ok());
  }
  session_->Disconnect();
  using enum wire::MessageType;
  EXPECT_EQ(seen, (std::vector<wire::MessageType>{kCreateWeight, kDropExtent, kCreateWeight, kDropExtent}));
}

TEST_F(Streams, ADropThatIsInterruptedMayBeAskedAgain) {
  struct sigaction action {};
  struct sigaction before {};
  action.sa_handler = [](int) {};
  ASSERT_EQ(::sigaction(SIGUSR1, &action, &before), 0);
  std::atomic<int> drops{0};
  Script script = GpuScript();
  script.on_message = [&](FakeDaemon&, const wire::Packet& packet) {
    drops += packet.header().type == wire::MessageType::kDropExtent ? 1 : 0;
    return false;
  };
  Connect(std::move(script));
  std::atomic<bool> backward{false};
  cuda_.Launch(Stream(1), backward);
  MustStep(1);
  std::atomic<bool> returned{false};
  std::thread signals([&returned, thread = ::pthread_self()] {
    while (!returned) {
      std::this_thread::sleep_for(50ms);
      ::pthread_kill(thread, SIGUSR1);
    }
  });
  EXPECT_EQ(arena_->Drop().code(), Code::kInterrupted);
  returned = true;
  signals.join();
  EXPECT_EQ(drops, 0);
  backward = true;
  EXPECT_TRUE(arena_->Drop().ok());
  EXPECT_EQ(drops, 1);
  EXPECT_TRUE(cuda_.Drained(Stream(1), 5000)) << "nobody looks at `backward` any more";
  ::sigaction(SIGUSR1, &before, nullptr);
}

// A daemon that waits for the inputs of a request, as its device does.
Script Deaf() {
  Script script = GpuScript();
  script.on_request = [](FakeDaemon&, const wire::RequestRecord&, wire::CompletionRecord&) {
    return Then::kKeepOpen;
  };
  return script;
}

// An illegal access in the client: its streams never mark anything again, and nobody may wait for them.
TEST_F(Streams, AClientWhoseContextFailedIsToldAndMayEnd) {
  Connect(Deaf());
  std::atomic<bool> backward{false};
  cuda_.Launch(Stream(1), backward);
  MustStep(1);
  std::thread later([&] {
    std::this_thread::sleep_for(100ms);
    cuda_.faulted = true;
  });
  const Status said = session_->Synchronize();
  later.join();
  EXPECT_EQ(said.code(), Code::kDeviceFault) << said.message();
  EXPECT_EQ(Step(2).status().code(), Code::kDeviceFault) << "from then on";
  EXPECT_EQ(arena_->Drop().code(), Code::kDeviceFault);
  session_->Disconnect();
  EXPECT_EQ(daemon_->header().ready.word.load(), 0U);
}

TEST_F(Streams, AClientWhoseContextFailedMayEndAtOnce) {
  Connect(Deaf());
  std::atomic<bool> backward{false};
  cuda_.Launch(Stream(1), backward);
  MustStep(1);
  cuda_.faulted = true;
  session_->Disconnect();
  EXPECT_EQ(daemon_->header().ready.word.load(), 0U);
}

TEST_F(Streams, ForkedChildIsRefusedAndTheParentGoesOn) {
  Connect(GpuScript());
  MustStep(1);
  const pid_t child = ::fork();
  if (child == 0) ::_exit(Step(2).status().code() == Code::kForkedChild ? 0 : 1);
  int how = 0;
  ASSERT_EQ(::waitpid(child, &how, 0), child);
  EXPECT_EQ(WEXITSTATUS(how), 0);
  EXPECT_EQ(MustStep(2), 2U);
  EXPECT_TRUE(Synchronized());
}

}  // namespace
}  // namespace bitpager::client
