// Requests on a GPU's stream against a scripted daemon and a fake driver: order, streams that change, room,
// and what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstring>
#include <thread>
#include <vector>

#include "client/wire/text.h"
#include "tests/client/stream_fixture.h"

namespace bitpager::client {
namespace {

using ::testing::HasSubstr;

TEST_F(Streams, SessionSaysWhatItsDeviceIs) {
  wire::HelloBody hello;
  Script script = GpuScript();
  script.on_message = [&](FakeDaemon&, const wire::Packet& packet) {
    if (wire::HelloBody body; wire::ReadBody(packet, body)) hello = body;
    return false;
  };
  Connect(std::move(script));
  EXPECT_EQ(session_->info().device_kind, "cuda");
  EXPECT_EQ(session_->info().device_uuid, testing::kFakeUuid);
  EXPECT_FALSE(session_->info().synchronous);
  EXPECT_EQ(wire::TextOf(hello.device), testing::kFakeUuid);
}

TEST_F(Streams, StepReturnsBeforeItsInputsAreReadyAndTheStreamWaitsForIt) {
  wire::RequestRecord seen;
  Connect(GpuScript([&](FakeDaemon&, const wire::RequestRecord& record) { seen = record; }));
  std::atomic<bool> gradients{false};
  cuda_.Launch(Stream(1), gradients);
  const std::uint64_t ticket = MustStep(1);
  EXPECT_EQ(ticket, 1U);
  EXPECT_FALSE(cuda_.Drained(Stream(1), 50));
  EXPECT_EQ(daemon_->header().ready.word.load(), 0U);
  gradients = true;
  EXPECT_TRUE(cuda_.Drained(Stream(1), 5000));
  EXPECT_EQ(daemon_->header().done.word.load(), 1U);
  EXPECT_TRUE(Synchronized());
  EXPECT_EQ(seen.ready, 1U);
  const wire::StepBody body = StepOf(seen);
  EXPECT_EQ(body.entries, 2U);
  EXPECT_EQ(body.step, 1U);
}

// The parts of one step: each later one goes as soon as the first one's inputs are there.
TEST_F(Streams, AStepThatFollowsNeedsNoMarkOfItsOwn) {
  std::vector<std::uint64_t> ready;
  Connect(GpuScript([&](FakeDaemon&, const wire::RequestRecord& record) { ready.push_back(record.ready); }));
  std::atomic<bool> gradients{false};
  cuda_.Launch(Stream(1), gradients);
  MustStep(1, Stream(1), true);  // nothing to follow: marked
  MustStep(1, Stream(1), true);
  MustStep(1, Stream(1), true);
  MustStep(2, Stream(1));
  EXPECT_EQ(daemon_->header().ready.word.load(), 0U);
  EXPECT_FALSE(cuda_.Drained(Stream(1), 50));
  gradients = true;
  EXPECT_TRUE(cuda_.Drained(Stream(1), 5000)) << "every part is waited for";
  EXPECT_EQ(daemon_->header().done.word.load(), 4U);
  EXPECT_TRUE(Synchronized());
  EXPECT_THAT(ready, ::testing::ElementsAre(1U, 1U, 1U, 4U));
}

TEST_F(Streams, AStepIsExpectedWhenItsStreamIsIdle) {
  std::atomic<int> hints{0};
  Connect(GpuScript([&](FakeDaemon&, const wire::RequestRecord& record) {
    hints += record.op == wire::Op::kExpect ? 1 : 0;
  }));
  std::atomic<bool> backward{false};
  cuda_.Launch(Stream(1), backward);
  EXPECT_TRUE(session_->ExpectStep(Stream(1)).ok());
  backward = true;
  ASSERT_TRUE(cuda_.Drained(Stream(1), 5000));
  EXPECT_EQ(hints, 0) << "while the gradients were still computed";
  EXPECT_TRUE(session_->ExpectStep(Stream(1)).ok());
  cuda_.capturing = true;
  EXPECT_TRUE(session_->ExpectStep(Stream(1)).ok()) << "a hint: the step itself is refused";
  cuda_.capturing = false;
  MustStep(1);
  EXPECT_TRUE(Synchronized());
  EXPECT_EQ(hints, 1);
}

// A GPU that has turned to the daemon need not turn back for the mark.
TEST_F(Streams, TheMarkOfAnIdleStreamIsMadeAtOnce) {
  Connect(GpuScript());
  MustStep(1);
  ASSERT_TRUE(Synchronized());
  ASSERT_TRUE(cuda_.Drained(Stream(1), 5000));
  const int before = cuda_.enqueued;
  MustStep(2);
  EXPECT_EQ(daemon_->header().ready.word.load(), 2U);
  EXPECT_EQ(cuda_.enqueued, before + 1) << "the wait for the step alone";
  EXPECT_TRUE(Synchronized());
}

TEST_F(Streams, AStepFollowsNoOtherStream) {
  std::vector<std::uint64_t> ready;
  Connect(GpuScript([&](FakeDaemon&, const wire::RequestRecord& record) { ready.push_back(record.ready); }));
  std::atomic<bool> first{false};
  std::atomic<bool> second{false};
  cuda_.Launch(Stream(1), first);
  cuda_.Launch(Stream(2), second);
  MustStep(1, Stream(1));
  MustStep(1, Stream(1), true);
  MustStep(1, Stream(2), true);
  second = true;
  EXPECT_FALSE(cuda_.Drained(Stream(2), 50)) << "it is behind what was asked for on the other stream";
  EXPECT_EQ(daemon_->header().ready.word.load(), 0U);
  first = true;
  EXPECT_TRUE(cuda_.Drained(Stream(1), 5000));
  EXPECT_TRUE(cuda_.Drained(Stream(2), 5000));
  EXPECT_TRUE(Synchronized());
  EXPECT_THAT(ready, ::testing::ElementsAre(1U, 1U, 3U));
}

TEST_F(Streams, StepNamesRegisteredMemory) {
  std::vector<wire::StepEntry> entries(2);
  Connect(GpuScript([&](FakeDaemon& daemon, const wire::RequestRecord& record) {
    const wire::StepBody body = StepOf(record);
    std::memcpy(entries.data(), daemon.At(body.table) + sizeof(wire::GroupRecord),
                2 * sizeof(wire::StepEntry));
  }));
  MustStep(7);
  ASSERT_TRUE(Synchronized());
  EXPECT_EQ(daemon_->registered().size(), 2U);
  for (unsigned i = 0; i < 2; ++i) {
    EXPECT_EQ(entries[i].tensor, i);
    EXPECT_EQ(entries[i].step, 7U);
    EXPECT_EQ(entries[i].param.offset, i * 4096);
    EXPECT_EQ(entries[i].grad.offset, i * 8192);
    EXPECT_EQ(daemon_->registered().count(entries[i].param.buffer), 1U);
    EXPECT_NE(entries[i].param.buffer, entries[i].grad.buffer);
  }
}

TEST_F(Streams, AnotherStreamMarksReadyOnlyBehindTheLastTicket) {
  Connect(GpuScript());
  std::atomic<bool> first{false};
  cuda_.Launch(Stream(1), first);
  MustStep(1, Stream(1));
  MustStep(2, Stream(2));
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(daemon_->header().ready.word.load(), 0U)
      << "the second stream had nothing to wait for of its own";
  first = true;
  EXPECT_TRUE(cuda_.Drained(Stream(2), 5000));
  EXPECT_EQ(daemon_->header().ready.word.load(), 2U);
}

TEST_F(Streams, WhatTheProcessorAsksForNeedsNoMarkAndComesBehind) {
  std::vector<wire::RequestRecord> seen;
  Connect(GpuScript([&](FakeDaemon&, const wire::RequestRecord& record) { seen.push_back(record); }));
  MustStep(1);
  ASSERT_TRUE(session_->Noop().ok());
  MustStep(2);
  ASSERT_TRUE(Synchronized());
  ASSERT_EQ(seen.size(), 3U);
  EXPECT_EQ(seen[0].ready, 1U);
  EXPECT_EQ(seen[1].ready, 0U);
  EXPECT_EQ(seen[2].ready, 3U);
  EXPECT_EQ(daemon_->header().ready.word.load(), 3U);
}

TEST_F(Streams, ManyStepsAheadKeepTheirTables) {
  std::atomic<bool> go{false};
  std::vector<std::uint64_t> steps;
  Connect(GpuScript([&](FakeDaemon& daemon, const wire::RequestRecord& record) {
    while (!go) std::this_thread::sleep_for(100us);
    const wire::StepBody body = StepOf(record);
    wire::StepEntry entry;
    std::memcpy(&entry, daemon.At(body.table) + sizeof(wire::GroupRecord) + sizeof(entry), sizeof(entry));
    steps.push_back(entry.step);
  }));
  MustStep(1);
  ASSERT_TRUE(Becomes([&] { return daemon_->header().ready.word.load() == 1; }));
  for (std::uint64_t step = 2; step <= kOpenStreamTickets; ++step) MustStep(step);
  // The next one waits for room, so the daemon must go on meanwhile.
  const Clock::time_point start = Clock::now();
  std::thread later([&] {
    std::this_thread::sleep_for(50ms);
    go = true;
  });
  MustStep(kOpenStreamTickets + 1);
  EXPECT_GE(Clock::now() - start, 40ms);
  later.join();
  for (std::uint64_t step = kOpenStreamTickets + 2; step <= 1000; ++step) MustStep(step);
  ASSERT_TRUE(Synchronized());
  ASSERT_EQ(steps.size(), 1000U);
  for (std::size_t i = 0; i < steps.size(); ++i) EXPECT_EQ(steps[i], i + 1);
  EXPECT_EQ(daemon_->buffers(), 2U) << "the slab and one ring of tables";
}

TEST_F(Streams, InterruptedWaitForRoomSubmitsNothing) {
  struct sigaction action {};
  struct sigaction before {};
  action.sa_handler = [](int) {};
  ASSERT_EQ(::sigaction(SIGUSR1, &action, &before), 0);
  std::atomic<bool> go{false};
  Connect(GpuScript([&](FakeDaemon&, const wire::RequestRecord&) {
    while (!go) std::this_thread::sleep_for(100us);
  }));
  for (std::uint64_t step = 1; step <= kOpenStreamTickets; ++step) MustStep(step);
  std::atomic<bool> returned{false};
  std::thread signals([&returned, thread = ::pthread_self()] {
    while (!returned) {  // one that comes before the wait begins ends nothing
      std::this_thread::sleep_for(50ms);
      ::pthread_kill(thread, SIGUSR1);
    }
  });
  const int enqueued = cuda_.enqueued;
  EXPECT_EQ(Step(kOpenStreamTickets + 1).status().code(), Code::kInterrupted);
  returned = true;
  signals.join();
  EXPECT_EQ(cuda_.enqueued, enqueued);
  go = true;
  EXPECT_EQ(MustStep(kOpenStreamTickets + 1), kOpenStreamTickets + 1);
  EXPECT_TRUE(Synchronized());
  ::sigaction(SIGUSR1, &before, nullptr);
}

TEST_F(Streams, RefusesUnderCaptureBeforeAnythingIsWritten) {
  Connect(GpuScript());
  cuda_.capturing = true;
  const Status refused = Step(1).status();
  EXPECT_EQ(refused.code(), Code::kUnsupported);
  EXPECT_THAT(refused.message(), HasSubstr("cannot be captured in a CUDA graph"));
  EXPECT_EQ(cuda_.enqueued, 0);
  EXPECT_TRUE(daemon_->registered().empty());
  cuda_.capturing = false;
  EXPECT_EQ(MustStep(1), 1U);
}

TEST_F(Streams, RefusesWhenAnotherDeviceIsCurrent) {
  Connect(GpuScript());
  cuda_.current = 1;
  const Status refused = Step(1).status();
  EXPECT_EQ(refused.code(), Code::kInvalidArgument);
  EXPECT_THAT(refused.message(), HasSubstr(testing::kFakeUuid));
  EXPECT_EQ(cuda_.enqueued, 0);
}

TEST_F(Streams, RefusedMemoryLeavesNothingBehind) {
  Connect(GpuScript());
  cuda_.Free(kGrads);
  const Status refused = Step(1).status();
  EXPECT_EQ(refused.code(), Code::kInvalidArgument);
  EXPECT_THAT(refused.message(), HasSubstr("step tensor 0"));
  EXPECT_EQ(cuda_.enqueued, 0);
  cuda_.Allocate(kGrads, 1U << 21);
  EXPECT_EQ(MustStep(1), 1U);
}

TEST_F(Streams, StreamThatCannotWaitEndsTheSession) {
  Connect(GpuScript());
  cuda_.refuse_waits = true;
  EXPECT_EQ(Step(1).status().code(), Code::kDeviceFault);
  EXPECT_EQ(Step(2).status().code(), Code::kDeviceFault);
}

TEST_F(Streams, WaitsOnTheProcessorWhereStreamsCannot) {
  cuda_.stream_words = false;
  Script script = GpuScript();
  script.on_request = [](FakeDaemon& daemon, const wire::RequestRecord& record,
                         wire::CompletionRecord& done) {
    Apply(daemon, record);
    done.values[0] = record.ticket;
    return Then::kComplete;
  };
  Connect(std::move(script));
  EXPECT_TRUE(session_->info().synchronous);
  std::atomic<bool> gradients{false};
  cuda_.Launch(Stream(1), gradients);
  std::thread later([&] {
    std::this_thread::sleep_for(30ms);
    gradients = true;
  });
  MustStep(1);
  later.join();
  EXPECT_EQ(cuda_.synchronized, 1);
  EXPECT_EQ(cuda_.enqueued, 0);
  EXPECT_EQ(daemon_->header().done.word.load(), 1U);
  const Result<Finished> finished = session_->TakeFinished();
  ASSERT_TRUE(finished.ok());
  EXPECT_EQ(finished->note.step, 1U);
}

TEST_F(Streams, ThreadWithoutAContextWaitsWhereStreamsCannot) {
  cuda_.stream_words = false;
  Connect(GpuScript());
  cuda_.ForgetContexts();
  std::thread([&] { MustStep(1); }).join();
  EXPECT_EQ(cuda_.synchronized, 1);
}

TEST_F(Streams, UnknownDeviceIsRefusedWithThoseThatThereAre) {
  Script script = GpuScript();
  script.device = "cuda GPU-99999999-9999-9999-9999-999999999999";
  FakeDaemon daemon(TemporaryPath("sock"), std::move(script));
  ConnectOptions options;
  options.socket = daemon.path();
  options.job = "test";
  options.driver = &cuda_;
  const Status refused = Session::Connect(options).status();
  EXPECT_EQ(refused.code(), Code::kNotFound);
  EXPECT_THAT(refused.message(), HasSubstr(testing::kFakeUuid));
}

TEST(StreamsOfTheCpu, AreRefused) {
  FakeDaemon daemon(TemporaryPath("sock"));
  ConnectOptions options;
  options.socket = daemon.path();
  options.job = "test";
  const Result<std::shared_ptr<Session>> session = Session::Connect(options);
  ASSERT_TRUE(session.ok());
  const std::uint64_t elements[1] = {8};
  ArenaOptions arena;
  arena.optimizer = "adam";
  arena.elements = elements;
  const Result<std::unique_ptr<Arena>> made = Arena::Create(**session, arena);
  ASSERT_TRUE(made.ok());
  StepTensor tensor;
  tensor.step = 1;
  const wire::GroupRecord group;
  StreamStepOptions step;
  step.step = 1;
  EXPECT_EQ((*made)->StepOnStream({&tensor, 1}, {&group, 1}, step, nullptr).status().code(),
            Code::kUnsupported);
}

}  // namespace
}  // namespace bitpager::client
