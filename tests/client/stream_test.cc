// Requests on a GPU's stream against a scripted daemon and a fake driver: order, streams that change, room,
// failures told later, and every way in which the daemon can go away while a stream waits for it.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <functional>
#include <future>
#include <thread>

#include "client/arena.h"
#include "client/session.h"
#include "client/weight.h"
#include "client/wire/text.h"
#include "tests/client/fake_cuda.h"
#include "tests/client/fake_daemon.h"

namespace bitpager::client {
namespace {

using namespace std::chrono_literals;
using testing::FakeCuda;
using testing::FakeDaemon;
using ::testing::HasSubstr;
using testing::TemporaryPath;
using wire::Code;
using wire::Result;
using wire::Status;
using Clock = std::chrono::steady_clock;
using Script = FakeDaemon::Script;
using Then = FakeDaemon::Then;

constexpr DeviceAddress kParams = 0x7f00'0000'0000;
constexpr DeviceAddress kGrads = 0x7f10'0000'0000;
constexpr std::uint64_t kElements = 1000;

void* At(DeviceAddress address) {
  return reinterpret_cast<void*>(address);
}
StreamHandle Stream(std::uintptr_t number) {
  return reinterpret_cast<StreamHandle>(number);
}

// What the daemon's device does with a ticket: it waits for `ready`, works, and stores `done`.
void Apply(FakeDaemon& daemon, const wire::RequestRecord& record) {
  const Clock::time_point end = Clock::now() + 5s;
  while (daemon.header().ready.word.load() < record.ready && Clock::now() < end) {
    std::this_thread::sleep_for(20us);
  }
  daemon.header().done.word.store(record.ticket);
}

// see: is shown each request before it is applied.
Script GpuScript(std::function<void(FakeDaemon&, const wire::RequestRecord&)> see = {}) {
  Script script;
  script.device = std::string("cuda ") + testing::kFakeUuid;
  script.synchronous = false;
  script.on_request = [see = std::move(see)](FakeDaemon& daemon, const wire::RequestRecord& record,
                                             wire::CompletionRecord&) {
    if (see) see(daemon, record);
    Apply(daemon, record);
    return Then::kComplete;
  };
  return script;
}

wire::StepBody StepOf(const wire::RequestRecord& record) {
  wire::StepBody body;
  std::memcpy(&body, record.body, sizeof(body));
  return body;
}

// A session with one arena of two tensors, in the fake GPU's memory.
class Streams : public ::testing::Test {
 protected:
  void Connect(Script script) {
    daemon_ = std::make_unique<FakeDaemon>(TemporaryPath("sock"), std::move(script));
    cuda_.Allocate(kParams, 1U << 21);
    cuda_.Allocate(kGrads, 1U << 21);
    ConnectOptions options;
    options.socket = daemon_->path();
    options.job = "test";
    options.threads = 1;
    options.device = testing::kFakeUuid;
    options.driver = &cuda_;
    Result<std::shared_ptr<Session>> session = Session::Connect(options);
    ASSERT_TRUE(session.ok()) << session.status().message();
    session_ = *session;
    const std::uint64_t elements[2] = {kElements, kElements};
    ArenaOptions arena;
    arena.optimizer = "adam";
    arena.elements = elements;
    Result<std::unique_ptr<Arena>> made = Arena::Create(*session_, arena);
    ASSERT_TRUE(made.ok()) << made.status().message();
    arena_ = std::move(*made);
  }
  void TearDown() override {
    if (session_ != nullptr) session_->Disconnect();
  }
  // All that was asked for is done, and what the script did is seen: the rings order through two mappings of
  // one memory, which the thread sanitizer takes for two.
  bool Synchronized() {
    const bool ok = session_->Synchronize().ok();
    return daemon_->requests() > 0 && ok;
  }
  Result<std::uint64_t> Step(std::uint64_t step, StreamHandle stream = Stream(1), bool follows = false) {
    StepTensor tensors[2];
    for (std::uint32_t i = 0; i < 2; ++i) {
      tensors[i].tensor = i;
      tensors[i].step = step;
      tensors[i].param = At(kParams + i * 4096);
      tensors[i].grad = At(kGrads + i * 8192);
    }
    const wire::GroupRecord group{1e-3, 0.9, 0.999, 1e-8, 0.01};
    StreamStepOptions options;
    options.step = step;
    options.follows = follows;
    return arena_->StepOnStream(tensors, {&group, 1}, options, stream);
  }
  std::uint64_t MustStep(std::uint64_t step, StreamHandle stream = Stream(1), bool follows = false) {
    const Result<std::uint64_t> ticket = Step(step, stream, follows);
    EXPECT_TRUE(ticket.ok()) << ticket.status().message();
    return ticket.ok() ? *ticket : 0;
  }
  // Waits until `condition` holds.
  template <typename Condition>
  static bool Becomes(Condition&& condition, std::chrono::milliseconds limit = 5000ms) {
    for (const Clock::time_point end = Clock::now() + limit; Clock::now() < end;) {
      if (condition()) return true;
      std::this_thread::sleep_for(200us);
    }
    return false;
  }

  FakeCuda cuda_;
  std::unique_ptr<FakeDaemon> daemon_;
  std::shared_ptr<Session> session_;
  std::unique_ptr<Arena> arena_;
};

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
  std::thread later([&] {
    std::this_thread::sleep_for(50ms);
    go = true;
  });
  const Clock::time_point start = Clock::now();
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
  std::thread signal([thread = ::pthread_self()] {
    std::this_thread::sleep_for(50ms);
    ::pthread_kill(thread, SIGUSR1);
  });
  const int enqueued = cuda_.enqueued;
  EXPECT_EQ(Step(kOpenStreamTickets + 1).status().code(), Code::kInterrupted);
  signal.join();
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

TEST_F(Streams, DisconnectWaitsForWhatStreamsHold) {
  std::atomic<int> applied{0};
  Script script = GpuScript();
  script.on_request = [&](FakeDaemon& daemon, const wire::RequestRecord& record, wire::CompletionRecord&) {
    std::this_thread::sleep_for(5ms);
    Apply(daemon, record);
    ++applied;
    return Then::kComplete;
  };
  Connect(std::move(script));
  for (std::uint64_t step = 1; step <= 5; ++step) MustStep(step);
  EXPECT_TRUE(cuda_.registered());
  session_->Disconnect();
  EXPECT_EQ(applied, 5);
  EXPECT_FALSE(cuda_.registered());
  EXPECT_EQ(Step(6).status().code(), Code::kUnreachable);
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

TEST_F(Streams, WeightsAreQuantizedAndReadOnStreams) {
  std::vector<wire::RequestRecord> seen;
  Connect(GpuScript([&](FakeDaemon&, const wire::RequestRecord& record) { seen.push_back(record); }));
  WeightOptions options;
  options.elements = 4096;
  options.blocksize = 64;
  const Result<std::unique_ptr<Weight>> weight = Weight::Create(*session_, options);
  ASSERT_TRUE(weight.ok()) << weight.status().message();
  ASSERT_TRUE((*weight)->QuantizeOnStream(wire::DType::kBF16, At(kParams), Stream(3)).ok());
  ASSERT_TRUE((*weight)->DequantizeOnStream(wire::DType::kF32, At(kGrads), 128, 1024, Stream(3)).ok());
  EXPECT_EQ((*weight)->DequantizeOnStream(wire::DType::kF32, At(kGrads), 100, 64, Stream(3)).status().code(),
            Code::kOutOfRange);
  EXPECT_EQ((*weight)->DequantizeOnStream(wire::DType::kF32, At(kGrads), 64, 4096, Stream(3)).status().code(),
            Code::kOutOfRange);
  ASSERT_TRUE(Synchronized());
  ASSERT_EQ(seen.size(), 2U);
  EXPECT_EQ(seen[0].op, wire::Op::kQuantize);
  wire::DequantizeBody body;
  std::memcpy(&body, seen[1].body, sizeof(body));
  EXPECT_EQ(body.first_element, 128U);
  EXPECT_EQ(body.elements, 1024U);
  EXPECT_EQ(body.out.offset, 0U);
}

// The daemon waits for the leases that it revokes; whoever asks for room may hold them.
TEST_F(Streams, GradientsOfAStepThatIsDoneAreLetGoThoughNobodyLookedAtIt) {
  Connect(GpuScript());
  MustStep(1);
  ASSERT_TRUE(Becomes([&] { return daemon_->header().done.word.load() == 1; }));
  ASSERT_EQ(daemon_->registered().size(), 2U);
  ASSERT_TRUE(session_->ReleaseGradients().ok());
  EXPECT_EQ(daemon_->registered().size(), 1U) << "the parameters' alone";
}

TEST_F(Streams, MakingRoomLetsGoOfOnesOwnRevokedLeasesAndGradients) {
  Script script = GpuScript();
  script.on_request = [](FakeDaemon& daemon, const wire::RequestRecord& record,
                         wire::CompletionRecord& done) {
    Apply(daemon, record);
    if (record.op != wire::Op::kLease) return Then::kComplete;
    wire::LeaseBody body;
    std::memcpy(&body, record.body, sizeof(body));
    wire::LeaseSlot& slot = daemon.view().leases()[5];
    slot.extent = body.extent;
    slot.first_frame = 7;
    slot.frames = 1;
    daemon.view().lease_frames()[7] = {3, 0};
    slot.generation.store(1);
    done.values[0] = 5;
    done.values[1] = 1;
    return Then::kComplete;
  };
  std::atomic<int> asked{0};
  script.on_message = [&](FakeDaemon& daemon, const wire::Packet& packet) {
    wire::ReplyBody reply;
    if (packet.header().type == wire::MessageType::kMapDomain) {
      reply.values[0] = 1U << 21;
      const wire::UniqueFd fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
      const int fds[1] = {fd.get()};
      daemon.Reply(packet, reply, fds);
      return true;
    }
    if (packet.header().type != wire::MessageType::kMakeRoom) return false;
    // The first answer: what is leased is on its way out.
    if (++asked == 1) daemon.view().leases()[5].revoke.store(1);
    reply.values[0] = cuda_.shared_maps == 0 ? 1U << 20 : 0;
    daemon.Reply(packet, reply);
    return true;
  };
  Connect(std::move(script));
  WeightOptions options;
  options.elements = 4096;
  const Result<std::unique_ptr<Weight>> weight = Weight::Create(*session_, options);
  ASSERT_TRUE(weight.ok()) << weight.status().message();
  ASSERT_TRUE((*weight)->QuantizeOnStream(wire::DType::kBF16, At(kGrads), Stream(3)).ok());
  const Status read = (*weight)->ReadOnStream(Stream(3), [](const LeasedPages&) { return Status(); });
  ASSERT_TRUE(read.ok()) << read.message();
  ASSERT_EQ(cuda_.shared_maps, 1);
  ASSERT_TRUE(Synchronized());
  ASSERT_EQ(daemon_->registered().size(), 1U) << "what was quantized from";
  std::uint64_t free_bytes = 0;
  const Status made = session_->MakeRoom(1U << 20, 5'000, &free_bytes);
  EXPECT_TRUE(made.ok()) << made.message();
  EXPECT_EQ(free_bytes, 1U << 20);
  EXPECT_EQ(cuda_.shared_maps, 0);
  EXPECT_EQ(asked, 2);
  EXPECT_TRUE(daemon_->registered().empty());
}

// PyTorch's autograd calls from threads of its own, in which nothing has used CUDA yet.
TEST_F(Streams, ThreadWithoutAContextGetsTheDevices) {
  Connect(GpuScript());
  WeightOptions options;
  options.elements = 4096;
  const Result<std::unique_ptr<Weight>> weight = Weight::Create(*session_, options);
  ASSERT_TRUE(weight.ok()) << weight.status().message();
  ASSERT_TRUE((*weight)->QuantizeOnStream(wire::DType::kBF16, At(kParams), Stream(3)).ok());
  cuda_.ForgetContexts();
  std::thread([&] {
    const Result<std::uint64_t> read =
        (*weight)->DequantizeOnStream(wire::DType::kF32, At(kGrads), 0, 4096, Stream(4));
    EXPECT_TRUE(read.ok()) << read.status().message();
  }).join();
  std::thread([&] { MustStep(1, Stream(5)); }).join();
  EXPECT_TRUE(Synchronized());
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
