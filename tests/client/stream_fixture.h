// What tests of requests on a GPU's stream share: a session with an arena, between a scripted daemon and a
// fake driver.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "client/arena.h"
#include "tests/client/fake_cuda.h"
#include "tests/client/session_fixture.h"

namespace bitpager::client {

using testing::FakeCuda;
using wire::Result;
using wire::Status;

inline constexpr DeviceAddress kParams = 0x7f00'0000'0000;
inline constexpr DeviceAddress kGrads = 0x7f10'0000'0000;
inline constexpr std::uint64_t kElements = 1000;

inline void* At(DeviceAddress address) {
  return reinterpret_cast<void*>(address);
}
inline StreamHandle Stream(std::uintptr_t number) {
  return reinterpret_cast<StreamHandle>(number);
}

// What the daemon's device does with a ticket: it waits for `ready`, works, and stores `done`.
inline void Apply(FakeDaemon& daemon, const wire::RequestRecord& record) {
  const Clock::time_point end = Clock::now() + 5s;
  while (daemon.header().ready.word.load() < record.ready && Clock::now() < end) {
    std::this_thread::sleep_for(20us);
  }
  daemon.header().done.word.store(record.ticket);
}

// see: is shown each request before it is applied.
inline Script GpuScript(std::function<void(FakeDaemon&, const wire::RequestRecord&)> see = {}) {
  Script script;
  script.device = "cuda ";
  script.device += testing::kFakeUuid;
  script.synchronous = false;
  script.on_request = [see = std::move(see)](FakeDaemon& daemon, const wire::RequestRecord& record,
                                             wire::CompletionRecord&) {
    if (see) see(daemon, record);
    Apply(daemon, record);
    return Then::kComplete;
  };
  return script;
}

inline wire::StepBody StepOf(const wire::RequestRecord& record) {
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
    ConnectOptions options = To(*daemon_);
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

}  // namespace bitpager::client
