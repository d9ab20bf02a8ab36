// A shard through its states: nobody came yet, served, stopped, failed.
#include "daemon/shard.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <thread>

#include "kernels/cpu/cpu_device.h"
#include "tests/support/in_process_daemon.h"

namespace bitpager::daemon {
namespace {

using std::chrono::milliseconds;
using wire::Code;
using wire::Result;
using wire::Status;

class ShardTest : public ::testing::Test {
 protected:
  Result<Shard::Parts> Open() {
    ++opened_;
    if (!refusal_.ok()) return refusal_;
    Shard::Parts parts;
    auto device = kernels::cpu::OpenCpuDevice(1);
    if (!device.ok()) return device.status();
    parts.device = std::move(*device);
    auto made = Dispatcher::Make(testing::TestSettings(), *parts.device, clock_);
    if (!made.ok()) return made.status();
    parts.dispatcher = std::move(*made);
    return parts;
  }

  const Clock clock_;
  Status refusal_;
  std::atomic<int> opened_{0};
  std::atomic<int> ended_{0};
  Shard shard_{
      {}, [this] { return Open(); }, [this](Shard::End how) { ended_ += how == Shard::End::kDone ? 1 : 0; }};
};

TEST_F(ShardTest, IsAwaitedWhileNobodyCame) {
  auto joined = std::async(std::launch::async, [this] { return shard_.Join(); });
  EXPECT_EQ(joined.wait_for(milliseconds(50)), std::future_status::timeout);
  shard_.Start();  // the first client comes while the daemon waits
  ASSERT_TRUE(shard_.AwaitOpen().ok());
  EXPECT_EQ(joined.wait_for(milliseconds(50)), std::future_status::timeout);
  shard_.RequestStop();
  EXPECT_TRUE(joined.get());
  EXPECT_EQ(ended_, 1);
}

TEST_F(ShardTest, EndsUnstartedWhenStopped) {
  auto joined = std::async(std::launch::async, [this] { return shard_.Join(); });
  shard_.RequestStop();
  EXPECT_TRUE(joined.get());
  EXPECT_EQ(ended_, 0);
}

TEST_F(ShardTest, IsNotStartedAfterItWasStopped) {
  shard_.RequestStop();
  shard_.Start();
  EXPECT_FALSE(shard_.Serves());
  Status why;
  shard_.Post([](Dispatcher&) { FAIL(); }, [&](const Status& refused) { why = refused; });
  EXPECT_EQ(why.code(), Code::kDraining);
  EXPECT_TRUE(shard_.Join());
  EXPECT_EQ(opened_, 0);
}

TEST_F(ShardTest, IsAwaitedAfterItsDeviceRefusedAndMayBeStartedAgain) {
  refusal_ = Status(Code::kOutOfMemory, "no room");
  shard_.Start();
  EXPECT_EQ(shard_.AwaitOpen().code(), Code::kOutOfMemory);
  auto joined = std::async(std::launch::async, [this] { return shard_.Join(); });
  EXPECT_EQ(joined.wait_for(milliseconds(50)), std::future_status::timeout);
  refusal_ = Status();
  shard_.Start();
  EXPECT_TRUE(shard_.AwaitOpen().ok());
  shard_.RequestStop();
  EXPECT_TRUE(joined.get());
  EXPECT_EQ(opened_, 2);
}

TEST_F(ShardTest, RunsOrRefusesWhateverItIsGivenWhileItEnds) {
  shard_.Start();
  ASSERT_TRUE(shard_.AwaitOpen().ok());
  std::promise<void> go;
  shard_.Post([&](Dispatcher&) { go.get_future().wait(); }, [](const Status&) {});
  shard_.RequestStop();
  std::atomic<int> ran{0};
  std::atomic<int> refused{0};
  std::atomic<bool> ended{false};
  int calls = 0;
  const auto post = [&] {
    shard_.Post([&](Dispatcher&) { ++ran; },
                [&](const Status& why) { refused += why.code() == Code::kDraining ? 1 : 0; });
    ++calls;
  };
  std::thread late([&] {
    while (!ended) post();
  });
  go.set_value();
  EXPECT_TRUE(shard_.Join());
  ended = true;
  late.join();
  post();
  EXPECT_GT(refused, 0);
  EXPECT_EQ(ran + refused, calls);
}

}  // namespace
}  // namespace bitpager::daemon
