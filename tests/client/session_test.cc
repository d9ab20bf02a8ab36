// Sessions against a scripted daemon: attach, wait, hints, and every way a daemon can go wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "client/wire/text.h"
#include "tests/client/session_fixture.h"

namespace bitpager::client {
namespace {

using ::testing::HasSubstr;

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
  EXPECT_LT(Seconds(start), 0.9) << "a lost wake-up costs a second";
  EXPECT_GT(daemon.doorbells() + 1, before);
  EXPECT_EQ(daemon.requests(), 1001U);
}

TEST(Session, SleepsThroughALongRequestAndIsWokenByTheBell) {
  FakeDaemon daemon(TemporaryPath("sock"), SlowScript(100ms));
  const auto session = MustConnect(daemon);
  const Clock::time_point start = Clock::now();
  ASSERT_TRUE(session->Noop().ok());
  EXPECT_GE(Seconds(start), 0.1);
  EXPECT_LT(Seconds(start), 0.9);
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
    const wire::Word& beats = daemon.header().heartbeat.word;
    const Clock::time_point start = Clock::now();
    if (interval_ms == 0) {
      std::this_thread::sleep_for(100ms);
      EXPECT_EQ(beats.load(), 0U);
    } else {
      while (beats.load() < 3 && Seconds(start) < 20) std::this_thread::sleep_for(1ms);
      EXPECT_GE(beats.load(), 3U);
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
  EXPECT_LT(Seconds(start), 0.9);
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
    EXPECT_LT(Seconds(start), 0.9);
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

}  // namespace
}  // namespace bitpager::client
