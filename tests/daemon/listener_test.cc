#include "daemon/listener.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <mutex>
#include <thread>

#include "tests/support/raw_client.h"

namespace bitpager::testing {
namespace {

using daemon::ConnectionRef;
using daemon::Listener;
using daemon::ListenerOptions;
using ::testing::HasSubstr;
using wire::Code;

template <typename Condition>
bool Eventually(Condition condition, int limit_ms = 5'000) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(limit_ms);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

// A listener in a folder of its own, and what it reported. Messages are handled when the test says so.
class ListenerTest : public ::testing::Test {
 protected:
  ListenerTest() {
    char name[] = "/tmp/bitpager-listener-XXXXXX";
    EXPECT_NE(::mkdtemp(name), nullptr);
    folder_ = name;
    options_.path = folder_ + "/s";
  }
  ~ListenerTest() override {
    listener_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  void Start() {
    Bind();
    if (listener_) listener_->Serve();
  }
  void Bind() {
    auto bound = BindAnother();
    ASSERT_TRUE(bound.ok()) << bound.status().message();
    listener_ = std::move(*bound);
  }
  [[nodiscard]] wire::Result<std::unique_ptr<Listener>> BindAnother() {
    daemon::ListenerEvents events;
    events.message = [this](const ConnectionRef& connection, const std::shared_ptr<wire::Packet>&) {
      const std::lock_guard<std::mutex> lock(mutex_);
      waiting_.push_back(connection);
      ++messages_;
    };
    events.lost = [this](const ConnectionRef&) { ++lost_; };
    return Listener::Bind(options_, std::move(events));
  }
  [[nodiscard]] wire::UniqueFd Connect() const {
    const auto address = wire::UnixAddress(options_.path);
    wire::UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof(sockaddr_un)) != 0) {
      socket.Reset();
    }
    return socket;
  }
  static bool HungUp(int socket) {
    pollfd watched{socket, POLLIN, 0};
    return ::poll(&watched, 1, 0) > 0 && (watched.revents & (POLLHUP | POLLRDHUP)) != 0;
  }
  // Handles everything that waits.
  void Handle() {
    std::vector<ConnectionRef> waiting;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      waiting.swap(waiting_);
    }
    for (const ConnectionRef& connection : waiting) Listener::Handled(connection);
  }
  static void Say(int socket) { ASSERT_TRUE(wire::SendBare(socket, wire::MessageType::kUsage, 1).ok()); }

  std::string folder_;
  ListenerOptions options_;
  std::unique_ptr<Listener> listener_;
  std::mutex mutex_;
  std::vector<ConnectionRef> waiting_;  // guarded by mutex_
  std::atomic<int> messages_{0};
  std::atomic<int> lost_{0};
};

TEST_F(ListenerTest, HangsUpOnWhoeverOpensNoSession) {
  options_.attach_limit_ms = 2'000;
  Start();
  const wire::UniqueFd silent = Connect();
  const wire::UniqueFd attached = Connect();
  Say(attached.get());
  ASSERT_TRUE(Eventually([&] { return messages_ == 1; }));
  waiting_.front()->attached.store(true);
  Handle();
  EXPECT_FALSE(HungUp(silent.get()));
  EXPECT_TRUE(Eventually([&] { return HungUp(silent.get()); }));
  std::this_thread::sleep_for(std::chrono::milliseconds(2'300));
  EXPECT_FALSE(HungUp(attached.get()));
  EXPECT_EQ(lost_, 1);
}

TEST_F(ListenerTest, CountsFromTheEndOfASessionToo) {
  options_.attach_limit_ms = 300;
  Start();
  const wire::UniqueFd socket = Connect();
  Say(socket.get());
  ASSERT_TRUE(Eventually([&] { return messages_ == 1; }));
  const ConnectionRef connection = waiting_.front();
  connection->attached.store(true);
  Handle();
  std::this_thread::sleep_for(std::chrono::milliseconds(800));
  EXPECT_FALSE(HungUp(socket.get()));
  Say(socket.get());  // goodbye
  ASSERT_TRUE(Eventually([&] { return messages_ == 2; }));
  connection->attached.store(false);
  std::this_thread::sleep_for(std::chrono::milliseconds(800));
  EXPECT_FALSE(HungUp(socket.get())) << "its message is not answered yet";
  Handle();
  EXPECT_TRUE(Eventually([&] { return HungUp(socket.get()); }));
}

TEST_F(ListenerTest, StopsReadingWhoeverIsNotAnsweredYet) {
  Start();
  const wire::UniqueFd flood = Connect();
  for (int i = 0; i < 20; ++i) Say(flood.get());
  ASSERT_TRUE(Eventually([&] { return messages_ >= 4; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_EQ(messages_, 4);
  const wire::UniqueFd other = Connect();
  Say(other.get());
  EXPECT_TRUE(Eventually([&] { return messages_ == 5; })) << "others are read on";
  EXPECT_TRUE(Eventually([&] {
    Handle();
    return messages_ == 21;
  })) << "and it is read again when its messages were handled";
}

TEST_F(ListenerTest, TakesOneMessageWithDescriptorsAtATime) {
  Start();
  const wire::UniqueFd sender = Connect();
  const wire::UniqueFd memory = MakeMemory(4096);
  const int fd = memory.get();
  for (std::uint32_t i = 0; i < 3; ++i) {
    ASSERT_TRUE(wire::SendBare(sender.get(), wire::MessageType::kUsage, i, {&fd, 1}).ok());
  }
  ASSERT_TRUE(Eventually([&] { return messages_ == 1; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(messages_, 1);
  Handle();
  EXPECT_TRUE(Eventually([&] { return messages_ == 2; }));
}

TEST_F(ListenerTest, NoticesTheEndOfAConnectionThatIsNotRead) {
  Start();
  wire::UniqueFd socket = Connect();
  for (int i = 0; i < 4; ++i) Say(socket.get());
  ASSERT_TRUE(Eventually([&] { return messages_ == 4; }));
  socket.Reset();
  Handle();
  EXPECT_TRUE(Eventually([&] { return lost_ == 1; }));
}

TEST_F(ListenerTest, TurnsTheNextConnectionAwayAndSaysWhy) {
  options_.max_connections = 3;
  Start();
  std::vector<wire::UniqueFd> taken;
  for (int i = 0; i < 3; ++i) {
    taken.push_back(Connect());
    Say(taken.back().get());
  }
  ASSERT_TRUE(Eventually([&] { return messages_ == 3; }));
  RawClient more(Connect());
  const Reply reply = more.Ask(wire::MessageType::kHello, RawClient::HelloBodyOf("job"));
  EXPECT_EQ(reply.code(), Code::kBudgetExceeded);
  EXPECT_THAT(reply.text(), HasSubstr("as many connections"));
  taken.pop_back();
  EXPECT_TRUE(Eventually([&] { return lost_ == 1; }));
  const wire::UniqueFd fits = Connect();
  Say(fits.get());
  EXPECT_TRUE(Eventually([&] { return messages_ == 4; }));
}

TEST_F(ListenerTest, OneUserCannotTakeAllConnections) {
  if (::getuid() != 0) GTEST_SKIP() << "needs root, to become another user";
  options_.mode = 0666;
  options_.max_connections_of_user = 2;
  ASSERT_EQ(::chmod(folder_.c_str(), 0755), 0);
  Start();
  const pid_t child = ::fork();
  if (child == 0) {
    if (::setgid(65501) != 0 || ::setuid(65501) != 0) ::_exit(9);
    const wire::UniqueFd one = Connect();
    const wire::UniqueFd two = Connect();
    RawClient three(Connect());
    const Reply reply = three.Ask(wire::MessageType::kHello, RawClient::HelloBodyOf("job"));
    if (reply.code() != Code::kBudgetExceeded || HungUp(one.get()) || HungUp(two.get())) ::_exit(1);
    ::_exit(reply.text().find("65501") == std::string::npos ? 2 : 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << WEXITSTATUS(status);
  std::vector<wire::UniqueFd> own;
  for (int i = 0; i < 5; ++i) own.push_back(Connect());
  Say(own.back().get());
  EXPECT_TRUE(Eventually([&] { return messages_ == 1; })) << "the daemon's own user is not counted";
}

TEST_F(ListenerTest, ManyOnOneStaleSocketLeaveOneServing) {
  for (int round = 0; round < 6; ++round) {
    {
      const auto address = wire::UnixAddress(options_.path);
      const wire::UniqueFd stale(::socket(AF_UNIX, SOCK_SEQPACKET, 0));
      ASSERT_EQ(::bind(stale.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof(sockaddr_un)), 0);
    }
    std::atomic<int> ready{0};
    std::vector<wire::Result<std::unique_ptr<Listener>>> outcomes;
    for (int i = 0; i < 4; ++i) outcomes.emplace_back(wire::Status(Code::kInternal, ""));
    std::vector<std::thread> racers;
    for (int i = 0; i < 4; ++i) {
      racers.emplace_back([&, i] {
        ++ready;
        while (ready < 4) std::this_thread::yield();
        outcomes[static_cast<std::size_t>(i)] = BindAnother();
      });
    }
    for (std::thread& racer : racers) racer.join();
    int serving = 0;
    for (const auto& outcome : outcomes) {
      serving += outcome.ok() ? 1 : 0;
      EXPECT_TRUE(outcome.ok() || outcome.status().code() == Code::kAlreadyExists)
          << outcome.status().message();
    }
    EXPECT_EQ(serving, 1);
    EXPECT_TRUE(Connect()) << "who won is reached";
  }
}

TEST_F(ListenerTest, DoesNotTakeThePlaceOfOneThatIsAboutToServe) {
  const wire::UniqueFd lock(::open((options_.path + ".lock").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
  ASSERT_EQ(::flock(lock.get(), LOCK_EX), 0);
  const auto refused = BindAnother();
  EXPECT_EQ(refused.status().code(), Code::kAlreadyExists);
}

TEST_F(ListenerTest, AnswersWhoCameBeforeItServed) {
  Bind();
  const wire::UniqueFd early = Connect();
  ASSERT_TRUE(early);
  Say(early.get());
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_EQ(messages_, 0);
  EXPECT_FALSE(HungUp(early.get()));
  listener_->Serve();
  EXPECT_TRUE(Eventually([&] { return messages_ == 1; }));
}

TEST_F(ListenerTest, HangsUpOnWhoWaitedWhereItNeverServes) {
  Bind();
  const wire::UniqueFd early = Connect();
  ASSERT_TRUE(early);
  listener_.reset();
  EXPECT_TRUE(HungUp(early.get()));
  EXPECT_NE(::access(options_.path.c_str(), F_OK), 0);
}

// Whoever serves beside it ends between Stop and its end.
TEST_F(ListenerTest, ASuccessorWaitsForThePlaceUntilItIsGone) {
  Start();
  listener_->Stop();
  EXPECT_NE(::access(options_.path.c_str(), F_OK), 0);
  EXPECT_EQ(BindAnother().status().code(), Code::kAlreadyExists);
  std::atomic<bool> gone{false};
  std::thread ends([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    gone = true;
    listener_.reset();
  });
  const auto successor = BindAnother();
  EXPECT_TRUE(gone);
  ends.join();
  ASSERT_TRUE(successor.ok()) << successor.status().message();
  EXPECT_TRUE(Connect()) << "its socket is left alone";
}

}  // namespace
}  // namespace bitpager::testing
