// Sessions in processes that get signals and that fork.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <thread>
#include <vector>

#include "client/arena.h"
#include "client/buffer.h"
#include "tests/client/session_fixture.h"

namespace bitpager::client {
namespace {

// A handler that does nothing, so that a signal only interrupts.
class SessionSignal : public ::testing::Test {
 protected:
  void SetUp() override {
    struct sigaction action {};
    action.sa_handler = [](int) {};
    ASSERT_EQ(::sigaction(SIGUSR1, &action, &before_), 0);
  }
  void TearDown() override { ::sigaction(SIGUSR1, &before_, nullptr); }
  // Sends SIGUSR1 to the thread that made it every 50 ms while it lives: a signal that comes before the wait
  // has begun ends nothing.
  class Signals {
   public:
    Signals()
        : thread_([this, to = ::pthread_self()] {
            while (!stop_) {
              std::this_thread::sleep_for(50ms);
              ::pthread_kill(to, SIGUSR1);
            }
          }) {}
    ~Signals() {
      stop_ = true;
      thread_.join();
    }

   private:
    std::atomic<bool> stop_{false};
    std::thread thread_;
  };
  struct sigaction before_ {};
};

TEST_F(SessionSignal, SignalsEndALongWaitAndTheNextCallWaitsForTheRequestFirst) {
  std::vector<std::uint64_t> order;
  Script script;
  script.on_request = [&](FakeDaemon& daemon, const wire::RequestRecord& record, wire::CompletionRecord&) {
    order.push_back(record.ticket);
    if (record.ticket == 1) {
      std::this_thread::sleep_for(6s);  // longer than signals and grace together
      EXPECT_EQ(daemon.header().request_tail.word.load(), 1U) << "the slab's user must be waited for first";
    }
    return Then::kComplete;
  };
  FakeDaemon daemon(TemporaryPath("sock"), std::move(script));
  const auto session = MustConnect(daemon);
  const Clock::time_point start = Clock::now();
  {
    const Signals signals;
    const wire::Status status = session->Noop();
    EXPECT_EQ(status.code(), Code::kInterrupted) << status.message();
  }
  EXPECT_GT(Seconds(start), 0.9) << "it waits a second more for the request";
  EXPECT_LT(Seconds(start), 5) << "further signals do not lengthen that";
  EXPECT_TRUE(session->Noop().ok());
  EXPECT_GT(Seconds(start), 5.9);
  EXPECT_EQ(daemon.requests(), 2U);
  EXPECT_EQ(order, (std::vector<std::uint64_t>{1, 2}));
}

TEST_F(SessionSignal, ARequestThatEndsWithinTheGraceIsReportedAsDone) {
  FakeDaemon daemon(TemporaryPath("sock"), SlowScript(300ms));
  const auto session = MustConnect(daemon);
  const Signals signals;
  EXPECT_TRUE(session->Noop().ok());
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
  FakeDaemon daemon(TemporaryPath("sock"), SlowScript(300ms));
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
  while (!daemon.hung_up() && Seconds(start) < 20) std::this_thread::sleep_for(1ms);
  EXPECT_TRUE(daemon.hung_up());
  ::close(gate[0]);
  ::close(gate[1]);
}

}  // namespace
}  // namespace bitpager::client
