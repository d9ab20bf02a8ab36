// Sessions against a scripted daemon: attach, wait, signals, forks, and every way a daemon can go wrong.
#include "client/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <thread>

#include "client/arena.h"
#include "client/buffer.h"
#include "client/wire/text.h"
#include "tests/client/fake_daemon.h"

namespace bitpager::client {
namespace {

using namespace std::chrono_literals;
using testing::FakeDaemon;
using ::testing::HasSubstr;
using testing::TemporaryPath;
using wire::Code;
using Clock = std::chrono::steady_clock;
using Script = FakeDaemon::Script;
using Then = FakeDaemon::Then;

ConnectOptions To(const FakeDaemon& daemon) {
  ConnectOptions options;
  options.socket = daemon.path();
  options.job = "test";
  options.threads = 1;
  return options;
}

std::shared_ptr<Session> MustConnect(const FakeDaemon& daemon) {
  wire::Result<std::shared_ptr<Session>> session = Session::Connect(To(daemon));
  if (!session.ok()) ADD_FAILURE() << session.status().message();
  return session.ok() ? *session : nullptr;
}

double Seconds(Clock::time_point since) {
  return std::chrono::duration<double>(Clock::now() - since).count();
}

// A handler that does nothing, so that a signal only interrupts.
class Interruptible : public ::testing::Test {
 protected:
  void SetUp() override {
    struct sigaction action {};
    action.sa_handler = [](int) {};
    ASSERT_EQ(::sigaction(SIGUSR1, &action, &before_), 0);
  }
  void TearDown() override { ::sigaction(SIGUSR1, &before_, nullptr); }
  // Sends SIGUSR1 to `thread` after `delay`.
  static std::thread SignalLater(pthread_t thread, std::chrono::milliseconds delay) {
    return std::thread([thread, delay] {
      std::this_thread::sleep_for(delay);
      ::pthread_kill(thread, SIGUSR1);
    });
  }
  struct sigaction before_ {};
};

TEST(Session, AttachesWithWhatItWasTold) {
  wire::HelloBody seen;
  int pidfds = 0;
  Script script;
  script.on_message = [&](FakeDaemon&, const wire::Packet& packet) {
    if (wire::ReadBody(packet, seen)) pidfds = packet.fd_count;
    return false;
  };
  FakeDaemon daemon(TemporaryPath("sock"), std::move(script));
  ConnectOptions options = To(daemon);
  options.rank = 3;
  options.weight = 2.5;
  options.device_quota_bytes = 1 << 20;
  options.linger_ms = 0;
  const auto session = Session::Connect(options);
  ASSERT_TRUE(session.ok()) << session.status().message();
  EXPECT_TRUE(daemon.attached());
  EXPECT_EQ(wire::TextOf(seen.job), "test");
  EXPECT_EQ(wire::TextOf(seen.client), std::string(program_invocation_short_name));
  EXPECT_EQ(seen.rank, 3U);
  EXPECT_EQ(seen.weight, 2.5);
  EXPECT_EQ(seen.device_quota_bytes, 1U << 20);
  EXPECT_EQ(seen.linger_ms, 0);
  EXPECT_EQ(pidfds, 1) << "this kernel has pidfd_open";
  const SessionInfo& info = (*session)->info();
  EXPECT_EQ(info.session, 11U);
  EXPECT_EQ(info.page_bytes, 64U << 10);
  EXPECT_EQ(info.linger_ms, 4000U);
  EXPECT_EQ(info.job_name, "test");
  EXPECT_EQ(info.socket, daemon.path());
}

TEST(Session, NamesItsJobAfterProgramAndProcessByDefault) {
  wire::HelloBody seen;
  Script script;
  script.on_message = [&](FakeDaemon&, const wire::Packet& packet) {
    if (wire::HelloBody hello; wire::ReadBody(packet, hello)) seen = hello;
    return false;
  };
  FakeDaemon daemon(TemporaryPath("sock"), std::move(script));
  ConnectOptions options = To(daemon);
  options.job.clear();
  const auto session = Session::Connect(options);
  ASSERT_TRUE(session.ok());
  EXPECT_TRUE(daemon.attached());
  EXPECT_THAT(std::string(wire::TextOf(seen.job)), HasSubstr("-" + std::to_string(::getpid())));
  EXPECT_TRUE(wire::IsPlainName(wire::TextOf(seen.job)));
}

TEST(Session, RefusesOptionsThatMakeNoSense) {
  const auto refused = [](auto change) {
    ConnectOptions options;
    options.socket = "/nonexistent";
    change(options);
    return Session::Connect(options).status();
  };
  EXPECT_EQ(refused([](auto& o) { o.job = "a b"; }).code(), Code::kInvalidArgument);
  EXPECT_EQ(refused([](auto& o) { o.job = std::string(64, 'a'); }).code(), Code::kInvalidArgument);
  EXPECT_EQ(refused([](auto& o) { o.weight = -1; }).code(), Code::kInvalidArgument);
  EXPECT_EQ(refused([](auto& o) { o.linger_ms = -2; }).code(), Code::kInvalidArgument);
  EXPECT_EQ(refused([](auto& o) { o.threads = -1; }).code(), Code::kInvalidArgument);
  EXPECT_EQ(refused([](auto& o) { o.socket = std::string(200, 'a'); }).code(), Code::kInvalidArgument);
}

TEST(Session, CompletesRequestsAwakeAndAsleep) {
  FakeDaemon daemon(TemporaryPath("sock"));
  const auto session = MustConnect(daemon);
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(session->Noop().ok());
  std::this_thread::sleep_for(20ms);  // the daemon sleeps now: only the doorbell wakes it
  const std::uint64_t before = daemon.doorbells();
  const Clock::time_point start = Clock::now();
  ASSERT_TRUE(session->Noop().ok());
  EXPECT_LT(Seconds(start), 0.5) << "a lost wake-up costs a second";
  EXPECT_GT(daemon.doorbells() + 1, before);
  EXPECT_EQ(daemon.requests(), 1001U);
}

TEST(Session, SleepsThroughALongRequestAndIsWokenByTheBell) {
  Script script;
  script.on_request = [](FakeDaemon&, const wire::RequestRecord&, wire::CompletionRecord&) {
    std::this_thread::sleep_for(100ms);
    return Then::kComplete;
  };
  FakeDaemon daemon(TemporaryPath("sock"), std::move(script));
  const auto session = MustConnect(daemon);
  const Clock::time_point start = Clock::now();
  ASSERT_TRUE(session->Noop().ok());
  EXPECT_GE(Seconds(start), 0.1);
  EXPECT_LT(Seconds(start), 0.6);
}

TEST(Session, PassesOnTheDaemonsErrorsAndTheirText) {
  Script script;
  script.on_request = [](FakeDaemon&, const wire::RequestRecord&, wire::CompletionRecord& done) {
    done.code = static_cast<std::uint32_t>(Code::kDeviceFault);
    wire::CopyText(done.message, "the device failed in a test");
    return Then::kComplete;
  };
  FakeDaemon daemon(TemporaryPath("sock"), std::move(script));
  const auto session = MustConnect(daemon);
  const wire::Status status = session->Noop();
  EXPECT_EQ(status.code(), Code::kDeviceFault);
  EXPECT_EQ(status.message(), "the device failed in a test");
}

TEST(Session, ReadsUsage) {
  FakeDaemon daemon(TemporaryPath("sock"));
  const auto session = MustConnect(daemon);
  const auto usage = session->GetUsage();
  ASSERT_TRUE(usage.ok());
  EXPECT_EQ(usage->resident_bytes, 1000U);
  EXPECT_EQ(usage->buffer_bytes, 1016U);
  EXPECT_EQ(usage->shared_bytes, 1019U);
  EXPECT_EQ(usage->peak_resident_bytes, 1020U);
  EXPECT_EQ(usage->peak_host_bytes, 1021U);
  EXPECT_EQ(usage->job_peak_resident_bytes, 1022U);
  EXPECT_EQ(usage->job_peak_host_bytes, 1023U);
}

TEST(Session, AsksForItsPeaksToBeginAnewInAMessageThatOldDaemonsAnswerToo) {
  Script script;
  std::atomic<int> bare = 0;
  std::atomic<int> resets = 0;
  script.on_message = [&](FakeDaemon&, const wire::Packet& packet) {
    if (packet.header().type != wire::MessageType::kUsage) return false;
    wire::UsageBody body;
    if (packet.header().body_bytes == 0) ++bare;
    if (wire::ReadBody(packet, body) && body.reset_peaks == 1) ++resets;
    return false;
  };
  FakeDaemon daemon(TemporaryPath("sock"), std::move(script));
  const auto session = MustConnect(daemon);
  ASSERT_TRUE(session->GetUsage().ok());
  EXPECT_EQ(bare, 1);
  EXPECT_EQ(resets, 0);
  const auto usage = session->GetUsage(true);
  ASSERT_TRUE(usage.ok());
  EXPECT_EQ(usage->resident_bytes, 1000U);
  EXPECT_EQ(bare, 1);
  EXPECT_EQ(resets, 1);
}

TEST(Session, SaysGoodbyeWhenItEnds) {
  FakeDaemon daemon(TemporaryPath("sock"));
  auto session = MustConnect(daemon);
  session->Disconnect();
  for (int i = 0; i < 1000 && !daemon.hung_up(); ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(daemon.detaches(), 1);
  EXPECT_TRUE(daemon.hung_up());
  EXPECT_EQ(session->Noop().code(), Code::kUnreachable);
}

TEST(Session, BeatsOnlyWhenAsked) {
  for (const std::uint64_t interval_ms : {0U, 5U}) {
    Script script;
    script.heartbeat_ms = interval_ms;
    FakeDaemon daemon(TemporaryPath("sock"), std::move(script));
    const auto session = MustConnect(daemon);
    std::this_thread::sleep_for(100ms);
    const std::uint64_t beats = daemon.header().heartbeat.word.load();
    if (interval_ms == 0) {
      EXPECT_EQ(beats, 0U);
    } else {
      EXPECT_GE(beats, 3U);
    }
  }
}

TEST(Session, CallsFromManyThreadsAreSerialised) {
  FakeDaemon daemon(TemporaryPath("sock"));
  const auto session = MustConnect(daemon);
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 500; ++i) good += session->Noop().ok() ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, 2000);
}

TEST(Session, ADaemonThatDiesWhileAClientWaitsIsReportedWithinASecond) {
  Script script;
  script.on_request = [](FakeDaemon& daemon, const wire::RequestRecord&, wire::CompletionRecord&) {
    std::this_thread::sleep_for(50ms);
    daemon.HangUp();
    return Then::kKeepOpen;
  };
  FakeDaemon daemon(TemporaryPath("sock"), std::move(script));
  const auto session = MustConnect(daemon);
  const Clock::time_point start = Clock::now();
  const wire::Status status = session->Noop();
  EXPECT_EQ(status.code(), Code::kDaemonLost) << status.message();
  EXPECT_LT(Seconds(start), 0.5);
  EXPECT_THAT(status.message(), HasSubstr("Hint:"));
  EXPECT_EQ(session->Noop().code(), Code::kDaemonLost) << "and so on every later call";
  EXPECT_EQ(session->GetUsage().status().code(), Code::kDaemonLost);
}

TEST(Session, ACompletionWrittenJustBeforeTheEndIsTaken) {
  Script script;
  script.on_request = [](FakeDaemon& daemon, const wire::RequestRecord& record,
                         wire::CompletionRecord& done) {
    std::this_thread::sleep_for(5ms);
    done.ticket = record.ticket;
    daemon.Complete(done);
    daemon.header().failed.word.store(static_cast<std::uint64_t>(Code::kDraining));
    daemon.HangUp();
    return Then::kKeepOpen;
  };
  FakeDaemon daemon(TemporaryPath("sock"), std::move(script));
  const auto session = MustConnect(daemon);
  EXPECT_TRUE(session->Noop().ok());
  EXPECT_EQ(session->Noop().code(), Code::kDraining) << "the code that ended the session, not just a hang-up";
}

TEST(Session, TheCodeThatEndedTheSessionIsReported) {
  Script script;
  script.on_request = [](FakeDaemon& daemon, const wire::RequestRecord&, wire::CompletionRecord&) {
    daemon.header().failed.word.store(static_cast<std::uint64_t>(Code::kDeviceFault));
    daemon.Ring();
    return Then::kKeepOpen;
  };
  FakeDaemon daemon(TemporaryPath("sock"), std::move(script));
  const auto session = MustConnect(daemon);
  const wire::Status status = session->Noop();
  EXPECT_EQ(status.code(), Code::kDeviceFault);
  EXPECT_THAT(status.message(), HasSubstr("device_fault"));
}

TEST(Session, ACorruptCompletionRingEndsTheSession) {
  const std::vector<std::function<void(FakeDaemon&, wire::CompletionRecord&)>> faults = {
      [](FakeDaemon& d, wire::CompletionRecord&) { d.header().completion_tail.word.store(1U << 20); },
      [](FakeDaemon& d, wire::CompletionRecord& r) { r.ticket = 999, d.Complete(r); },
      [](FakeDaemon& d, wire::CompletionRecord& r) { r.ticket = 0, d.Complete(r); },
      [](FakeDaemon& d, wire::CompletionRecord& r) { r.op = wire::Op::kStep, d.Complete(r); },
  };
  for (const auto& fault : faults) {
    Script script;
    script.on_request = [&](FakeDaemon& daemon, const wire::RequestRecord&, wire::CompletionRecord& done) {
      fault(daemon, done);
      daemon.Ring();
      return Then::kKeepOpen;
    };
    FakeDaemon daemon(TemporaryPath("sock"), std::move(script));
    const auto session = MustConnect(daemon);
    const Clock::time_point start = Clock::now();
    EXPECT_EQ(session->Noop().code(), Code::kProtocol);
    EXPECT_EQ(session->Noop().code(), Code::kProtocol);
    EXPECT_LT(Seconds(start), 0.5);
  }
}

TEST(Session, AnImpossibleRequestCursorEndsTheSession) {
  FakeDaemon daemon(TemporaryPath("sock"));
  const auto session = MustConnect(daemon);
  ASSERT_TRUE(session->Noop().ok());
  daemon.header().request_head.word.store(1U << 20);
  EXPECT_EQ(session->Noop().code(), Code::kProtocol);
}

TEST(Session, AnUnknownCodeIsNotTakenForSuccess) {
  Script script;
  script.on_request = [](FakeDaemon&, const wire::RequestRecord&, wire::CompletionRecord& done) {
    done.code = 4711;
    std::memset(done.message, 'x', sizeof(done.message));  // and no terminator
    return Then::kComplete;
  };
  FakeDaemon daemon(TemporaryPath("sock"), std::move(script));
  const auto session = MustConnect(daemon);
  const wire::Status status = session->Noop();
  EXPECT_EQ(status.code(), Code::kProtocol);
  EXPECT_EQ(status.message().size(), wire::kCompletionMessageBytes);
}

TEST(Session, HintsNeverWaitAndSayWhenTooManyAreOpen) {
  Script script;
  script.on_request = [](FakeDaemon&, const wire::RequestRecord& record, wire::CompletionRecord&) {
    return record.op == wire::Op::kPhase ? Then::kKeepOpen : Then::kComplete;
  };
  FakeDaemon daemon(TemporaryPath("sock"), std::move(script));
  const auto session = MustConnect(daemon);
  for (std::size_t i = 0; i < kOpenHints; ++i) ASSERT_TRUE(session->HintPhase(wire::Phase::kForward).ok());
  EXPECT_EQ(session->HintPhase(wire::Phase::kForward).code(), Code::kFull);
  EXPECT_TRUE(session->Noop().ok()) << "requests still find room";
  EXPECT_EQ(session->HintPhase(wire::Phase::kForward).code(), Code::kFull);
}

TEST(Session, CompletionsOfHintsMayComeLate) {
  std::uint64_t hint = 0;
  Script script;
  script.on_request = [&](FakeDaemon& daemon, const wire::RequestRecord& record,
                          wire::CompletionRecord& done) {
    if (record.op == wire::Op::kPrefetch) {
      hint = record.ticket;
      return Then::kKeepOpen;
    }
    daemon.Complete(done);
    wire::CompletionRecord late;
    late.ticket = hint;
    late.op = wire::Op::kPrefetch;
    late.code = static_cast<std::uint32_t>(Code::kNotFound);
    if (hint != 0) daemon.Complete(late);
    hint = 0;
    return Then::kKeepOpen;
  };
  FakeDaemon daemon(TemporaryPath("sock"), std::move(script));
  const auto session = MustConnect(daemon);
  for (int i = 0; i < 300; ++i) {
    ASSERT_TRUE(session->Prefetch(5).ok());
    ASSERT_TRUE(session->Noop().ok());
  }
}

using SessionSignal = Interruptible;

TEST_F(SessionSignal, ASignalEndsALongWaitAndTheNextCallWaitsForTheRequestFirst) {
  std::vector<std::uint64_t> order;
  Script script;
  script.on_request = [&](FakeDaemon& daemon, const wire::RequestRecord& record, wire::CompletionRecord&) {
    order.push_back(record.ticket);
    if (record.ticket == 1) {
      std::this_thread::sleep_for(1500ms);  // longer than signal and grace together
      EXPECT_EQ(daemon.header().request_tail.word.load(), 1U) << "the slab's user must be waited for first";
    }
    return Then::kComplete;
  };
  FakeDaemon daemon(TemporaryPath("sock"), std::move(script));
  const auto session = MustConnect(daemon);
  std::thread signaller = SignalLater(::pthread_self(), 50ms);
  const Clock::time_point start = Clock::now();
  const wire::Status status = session->Noop();
  EXPECT_EQ(status.code(), Code::kInterrupted) << status.message();
  EXPECT_GT(Seconds(start), 0.9) << "it waits a second more for the request";
  EXPECT_LT(Seconds(start), 1.3);
  signaller.join();
  EXPECT_TRUE(session->Noop().ok());
  EXPECT_GT(Seconds(start), 1.4);
  EXPECT_EQ(daemon.requests(), 2U);
  EXPECT_EQ(order, (std::vector<std::uint64_t>{1, 2}));
}

TEST_F(SessionSignal, ARequestThatEndsWithinTheGraceIsReportedAsDone) {
  Script script;
  script.on_request = [](FakeDaemon&, const wire::RequestRecord&, wire::CompletionRecord&) {
    std::this_thread::sleep_for(300ms);
    return Then::kComplete;
  };
  FakeDaemon daemon(TemporaryPath("sock"), std::move(script));
  const auto session = MustConnect(daemon);
  std::thread signaller = SignalLater(::pthread_self(), 50ms);
  EXPECT_TRUE(session->Noop().ok());
  signaller.join();
}

TEST_F(SessionSignal, ASecondSignalDoesNotLengthenTheGrace) {
  Script script;
  script.on_request = [](FakeDaemon&, const wire::RequestRecord&, wire::CompletionRecord&) {
    std::this_thread::sleep_for(1800ms);
    return Then::kComplete;
  };
  FakeDaemon daemon(TemporaryPath("sock"), std::move(script));
  const auto session = MustConnect(daemon);
  std::thread first = SignalLater(::pthread_self(), 50ms);
  std::thread second = SignalLater(::pthread_self(), 600ms);
  const Clock::time_point start = Clock::now();
  EXPECT_EQ(session->Noop().code(), Code::kInterrupted);
  EXPECT_LT(Seconds(start), 1.3);
  first.join();
  second.join();
}

// In a forked child: exit status 0 when `check` holds there.
template <typename Check>
void InChild(Check&& check) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) ::_exit(check() ? 0 : 1);
  int how = 0;
  ASSERT_EQ(::waitpid(child, &how, 0), child);
  EXPECT_TRUE(WIFEXITED(how));
  EXPECT_EQ(WEXITSTATUS(how), 0);
}

TEST(SessionFork, AChildGetsAnErrorAndTheParentGoesOn) {
  Script script;
  script.heartbeat_ms = 5;
  FakeDaemon daemon(TemporaryPath("sock"), std::move(script));
  auto session = MustConnect(daemon);
  auto buffer = Buffer::Create(*session, 4096);
  ASSERT_TRUE(buffer.ok());
  const std::uint64_t elements[1] = {256};
  ArenaOptions options;
  options.optimizer = "adam";
  options.elements = elements;
  auto arena = Arena::Create(*session, options);
  ASSERT_TRUE(arena.ok());
  InChild([&] {
    const bool forked = session->Noop().code() == Code::kForkedChild &&
                        session->GetUsage().status().code() == Code::kForkedChild &&
                        (*buffer)->Release().code() == Code::kForkedChild &&
                        (*arena)->Drop().code() == Code::kForkedChild;
    // Destruction in the child neither hangs nor touches the parent's session.
    buffer->reset();
    arena->reset();
    session->Disconnect();
    session.reset();
    return forked;
  });
  EXPECT_TRUE(session->Noop().ok());
  EXPECT_EQ(daemon.detaches(), 0);
  EXPECT_TRUE((*buffer)->Release().ok());
}

TEST(SessionFork, AForkWhileAnotherThreadWaitsDoesNotHangTheChild) {
  Script script;
  script.on_request = [](FakeDaemon&, const wire::RequestRecord&, wire::CompletionRecord&) {
    std::this_thread::sleep_for(300ms);
    return Then::kComplete;
  };
  FakeDaemon daemon(TemporaryPath("sock"), std::move(script));
  const auto session = MustConnect(daemon);
  std::thread waiter([&] { EXPECT_TRUE(session->Noop().ok()); });
  std::this_thread::sleep_for(50ms);  // it holds the session's lock now
  InChild([&] { return session->Noop().code() == Code::kForkedChild; });
  waiter.join();
}

TEST(SessionFork, TheDaemonSeesTheParentsEndWhileAChildLives) {
  FakeDaemon daemon(TemporaryPath("sock"));
  int gate[2];
  ASSERT_EQ(::pipe(gate), 0);
  const pid_t parent = ::fork();
  ASSERT_GE(parent, 0);
  if (parent == 0) {
    const auto session = MustConnect(daemon);
    if (::fork() == 0) {
      char byte = 0;
      ::close(gate[1]);
      [[maybe_unused]] const ssize_t got = ::read(gate[0], &byte, 1);  // lives until the test says so
      ::_exit(0);
    }
    ::_exit(session == nullptr ? 1 : 0);
  }
  int how = 0;
  ASSERT_EQ(::waitpid(parent, &how, 0), parent);
  EXPECT_EQ(WEXITSTATUS(how), 0);
  const Clock::time_point start = Clock::now();
  while (!daemon.hung_up() && Seconds(start) < 2) std::this_thread::sleep_for(1ms);
  EXPECT_TRUE(daemon.hung_up());
  ::close(gate[0]);
  ::close(gate[1]);
}

}  // namespace
}  // namespace bitpager::client
