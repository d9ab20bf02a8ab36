// What tests of sessions share: one with a scripted daemon.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <thread>

#include "client/session.h"
#include "tests/client/fake_daemon.h"

namespace bitpager::client {

using namespace std::chrono_literals;
using testing::FakeDaemon;
using testing::TemporaryPath;
using wire::Code;
using Clock = std::chrono::steady_clock;
using Script = FakeDaemon::Script;
using Then = FakeDaemon::Then;

inline ConnectOptions To(const FakeDaemon& daemon) {
  ConnectOptions options;
  options.socket = daemon.path();
  options.job = "test";
  options.threads = 1;
  return options;
}

inline std::shared_ptr<Session> MustConnect(const FakeDaemon& daemon) {
  wire::Result<std::shared_ptr<Session>> session = Session::Connect(To(daemon));
  if (!session.ok()) ADD_FAILURE() << session.status().message();
  return session.ok() ? *session : nullptr;
}

// Every request takes so long.
inline Script SlowScript(std::chrono::milliseconds each) {
  Script script;
  script.on_request = [each](FakeDaemon&, const wire::RequestRecord&, wire::CompletionRecord&) {
    std::this_thread::sleep_for(each);
    return Then::kComplete;
  };
  return script;
}

inline double Seconds(Clock::time_point since) {
  return std::chrono::duration<double>(Clock::now() - since).count();
}

}  // namespace bitpager::client
