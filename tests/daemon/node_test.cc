// A node of two devices: which is opened when, whom a command finds, how it ends. The devices are the
// processor, each under a name of its own; the test plays the listener.
#include "daemon/node.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <future>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "daemon/listener.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/support/commands.h"
#include "tests/support/in_process_daemon.h"
#include "tests/support/raw_trainer.h"

namespace bitpager::daemon {
namespace {

using std::chrono::milliseconds;
using testing::EvictOf;
using ::testing::HasSubstr;
using testing::RawClient;
using testing::Reply;
using wire::Code;
using wire::MessageType;
using wire::Status;

constexpr Peer kRoot{0, 0, 1};
constexpr Peer kAlice{1000, 1000, 1};

wire::HelloBody HelloOf(const std::string& job, const std::string& device) {
  wire::HelloBody hello = RawClient::HelloBodyOf(job);
  wire::CopyText(hello.device, device);
  return hello;
}

class Nodes : public ::testing::Test {
 protected:
  // A client, and the daemon's end of its socket.
  struct Line {
    std::unique_ptr<RawClient> client;
    ConnectionRef connection;
  };

  Nodes() {
    EXPECT_TRUE(node_
                    ->Start({[](const ConnectionRef&, wire::UniqueFd) { return Status(); },
                             [](Event) {},
                             [this](std::size_t sessions) { sessions_ = sessions; },
                             {}})
                    .ok());
  }
  ~Nodes() override {
    node_->RequestStop();
    EXPECT_EQ(node_->Wait(), faulty_.empty());
  }

  Line Connect(const Peer& peer = kAlice) {
    int ends[2] = {-1, -1};
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
    Line line{std::make_unique<RawClient>(wire::UniqueFd(ends[1])),
              std::make_shared<Connection>(wire::UniqueFd(ends[0]), peer)};
    line.client->turn = [this, connection = line.connection] { Listen(connection); };
    return line;
  }
  Line Open(const std::string& job, const std::string& device, const Peer& peer = kAlice) {
    Line line = Connect(peer);
    // With a pidfd nobody wants a heartbeat.
    const Reply reply = line.client->Hello(HelloOf(job, device), testing::PidfdOf(::getpid()).get());
    EXPECT_TRUE(reply.ok()) << reply.text();
    return line;
  }
  void Lose(Line& line) {
    line.client->HangUp();
    node_->OnLost(line.connection);
  }
  void Listen(const ConnectionRef& connection) {
    auto packet = std::make_shared<wire::Packet>();
    const Status got = wire::ReceivePacket(connection->socket.get(), *packet);
    if (!got.ok() || packet->closed) return;
    {
      const std::lock_guard lock(connection->watch);
      ++connection->waiting;
    }
    node_->OnMessage(connection, std::move(packet));
  }

  wire::Result<Shard::Parts> OpenOne(const kernels::DeviceListing& listing) {
    if (hold_) hold_->get_future().wait();
    {
      const std::lock_guard lock(mutex_);
      opened_.push_back(listing.uuid);
      if (broken_.contains(listing.uuid)) return Status(Code::kDeviceFault, listing.uuid + " is broken");
    }
    auto inner = kernels::cpu::OpenCpuDevice(1);
    if (!inner.ok()) return inner.status();
    auto device = std::make_unique<testing::ScriptedDevice>(std::move(*inner));
    device->uuid = listing.uuid;
    const bool faulty = faulty_ == listing.uuid;
    if (faulty) device->fault_at_step = 0;
    if (busy_) device->on_step = busy_;
    Shard::Parts parts;
    Settings settings = testing::RoomyTestSettings();
    settings.owner_uid = ::getuid();
    parts.device = std::move(device);
    auto made = Dispatcher::Make(settings, *parts.device, clock_);
    if (!made.ok()) return made.status();
    parts.dispatcher = std::move(*made);
    if (faulty) Keep({parts.device.get(), parts.dispatcher.get()});
    return parts;
  }
  // What a node cannot let go of stays for ever, which leak checkers are to see.
  static void Keep(std::initializer_list<const void*> parts) {
    static auto* const kept = new std::vector<const void*>;
    kept->insert(kept->end(), parts);
  }
  std::vector<std::string> opened() {
    const std::lock_guard lock(mutex_);
    return opened_;
  }
  void Break(const std::string& uuid, bool broken) {
    const std::lock_guard lock(mutex_);
    broken ? static_cast<void>(broken_.insert(uuid)) : static_cast<void>(broken_.erase(uuid));
  }
  bool Ends(milliseconds limit) {
    if (!ended_.valid()) ended_ = std::async(std::launch::async, [this] { return node_->Wait(); });
    return ended_.wait_for(limit) == std::future_status::ready;
  }

  static kernels::DeviceListing ListingOf(const std::string& uuid) {
    kernels::DeviceListing listing;
    listing.kind = "cuda";
    listing.uuid = uuid;
    return listing;
  }

  const Clock clock_;
  std::mutex mutex_;
  std::vector<std::string> opened_;         // guarded by mutex_
  std::set<std::string> broken_;            // guarded by mutex_
  std::string faulty_;                      // set before it is opened
  std::function<void()> busy_;              // likewise: runs while a step is launched
  std::optional<std::promise<void>> hold_;  // likewise: until when opening takes
  std::atomic<std::size_t> sessions_{0};
  std::unique_ptr<Node> node_ =
      Node::Of({ListingOf("left"), ListingOf("right")}, false,
               [this](const kernels::DeviceListing& listing) { return OpenOne(listing); });
  std::future<bool> ended_;
};

TEST_F(Nodes, OpenADeviceForItsFirstClient) {
  EXPECT_THAT(opened(), ::testing::IsEmpty());
  Line right = Open("job", "right");
  EXPECT_THAT(opened(), ::testing::ElementsAre("right"));
  const auto seen = node_->Observe();
  ASSERT_TRUE(seen.ok()) << seen.status().message();
  ASSERT_EQ(seen->devices.size(), 2U);
  std::map<std::string, bool> open;
  for (const DeviceSnapshot& device : seen->devices) open[device.uuid] = device.open;
  EXPECT_EQ(open, (std::map<std::string, bool>{{"left", false}, {"right", true}}));
  ASSERT_EQ(seen->jobs.size(), 1U);
  EXPECT_EQ(seen->jobs[0].device, "right");
  Line first = Open("job", "");
  EXPECT_THAT(opened(), ::testing::ElementsAre("right", "left")) << "no name: the first";
  for (const auto end = std::chrono::steady_clock::now() + milliseconds(5'000);
       sessions_ < 2 && std::chrono::steady_clock::now() < end;) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_EQ(sessions_, 2U) << "of both";
}

TEST_F(Nodes, RefuseADeviceThatTheyDoNotServe) {
  Line line = Connect();
  const Reply reply = line.client->Hello(HelloOf("job", "middle"));
  EXPECT_EQ(reply.code(), Code::kNotFound);
  EXPECT_THAT(reply.text(), HasSubstr("serves left, right, not middle"));
  EXPECT_THAT(opened(), ::testing::IsEmpty());
  EXPECT_TRUE(line.client->Hello(HelloOf("job", "left")).ok()) << "on the same connection";
}

TEST_F(Nodes, OpenNothingForNonsense) {
  Line shortened = Connect();
  ASSERT_TRUE(wire::SendPacket(shortened.client->socket(), std::array<std::byte, 3>{}).ok());
  EXPECT_TRUE(shortened.client->Receive().closed) << "without a header there is nothing to answer";

  Line stranger = Connect();
  const Reply reply = stranger.client->AskBare(MessageType::kUsage);
  EXPECT_EQ(reply.code(), Code::kProtocol);
  EXPECT_THAT(reply.text(), HasSubstr("say hello first"));
  EXPECT_TRUE(stranger.client->AskBare(MessageType::kUsage).closed);

  Line wrong = Connect();
  wrong.client->Send(MessageType::kHello, wire::EvictBody{});
  EXPECT_EQ(wrong.client->Receive().code(), Code::kProtocol);

  Line future = Connect();
  wire::MessageHeader header;
  header.version = wire::kWireVersion + 1;
  header.body_bytes = sizeof(wire::HelloBody);
  std::array<std::byte, sizeof(header) + sizeof(wire::HelloBody)> bytes{};
  std::memcpy(bytes.data(), &header, sizeof(header));
  ASSERT_TRUE(wire::SendPacket(future.client->socket(), bytes).ok());
  EXPECT_EQ(future.client->Receive().code(), Code::kUnknownVersion);
  EXPECT_THAT(opened(), ::testing::IsEmpty());
}

TEST_F(Nodes, FindTheDeviceOfAJob) {
  Line line = Connect();
  Reply reply = line.client->Ask(MessageType::kEvict, EvictOf("one"));
  EXPECT_EQ(reply.code(), Code::kNotFound);
  EXPECT_THAT(opened(), ::testing::IsEmpty());
  Line one = Open("one", "right");
  Line left = Open("both", "left");
  Line right = Open("both", "right");
  EXPECT_TRUE(line.client->Ask(MessageType::kEvict, EvictOf("one")).ok());
  reply = line.client->Ask(MessageType::kEvict, EvictOf("both"));
  EXPECT_EQ(reply.code(), Code::kInvalidArgument);
  EXPECT_THAT(reply.text(), HasSubstr("left, right"));
  wire::EvictBody named = EvictOf("both");
  wire::CopyText(named.device, "right");
  EXPECT_TRUE(line.client->Ask(MessageType::kEvict, named).ok());
  wire::CopyText(named.device, "middle");
  EXPECT_EQ(line.client->Ask(MessageType::kEvict, named).code(), Code::kNotFound);
  EXPECT_EQ(line.client->Ask(MessageType::kEvict, EvictOf("nobody")).code(), Code::kNotFound);
}

TEST_F(Nodes, DrainWithoutOpeningADevice) {
  Line stranger = Connect({::getuid() + 1, 1, 1});
  EXPECT_EQ(stranger.client->AskBare(MessageType::kDrain).code(), Code::kPermissionDenied);
  EXPECT_FALSE(Ends(milliseconds(50)));
  Line root = Connect(kRoot);
  EXPECT_TRUE(root.client->AskBare(MessageType::kDrain).ok());
  EXPECT_TRUE(Ends(milliseconds(5'000)));
  EXPECT_THAT(opened(), ::testing::IsEmpty());
}

TEST_F(Nodes, DrainWhenTheSessionsOfEveryDeviceAreGone) {
  Line left = Open("a", "left");
  Line right = Open("b", "right");
  Line root = Connect(kRoot);
  EXPECT_TRUE(root.client->AskBare(MessageType::kDrain).ok());
  Line late = Connect();
  EXPECT_EQ(late.client->Hello(HelloOf("late", "right")).code(), Code::kDraining);
  Lose(left);
  EXPECT_FALSE(Ends(milliseconds(200))) << "the other device still has a session";
  EXPECT_EQ(RawClient::CodeOf(right.client->Run(wire::Op::kNoop, wire::PhaseBody{})), Code::kOk);
  Lose(right);
  EXPECT_TRUE(Ends(milliseconds(5'000)));
}

TEST_F(Nodes, TryADeviceAgainThatCouldNotBeOpened) {
  Break("right", true);
  Line line = Connect();
  const Reply reply = line.client->Hello(HelloOf("job", "right"));
  EXPECT_EQ(reply.code(), Code::kDeviceFault);
  EXPECT_THAT(reply.text(), HasSubstr("right is broken"));
  Break("right", false);
  EXPECT_TRUE(line.client->Hello(HelloOf("job", "right")).ok());
  EXPECT_THAT(opened(), ::testing::ElementsAre("right", "right"));
}

TEST_F(Nodes, OpenNothingForWhatFollowsARefusedHello) {
  Break("left", true);
  Line line = Connect();
  EXPECT_EQ(line.client->Hello(HelloOf("job", "left")).code(), Code::kDeviceFault);
  EXPECT_EQ(line.client->Ask(MessageType::kEvict, EvictOf("job")).code(), Code::kNotFound);
  EXPECT_TRUE(line.client->Hello(HelloOf("job", "right")).ok()) << "another device, on the same connection";
  EXPECT_THAT(opened(), ::testing::ElementsAre("left", "right"));
}

// A device that came to it late would take the session of another device for one of its own, which is
// another's.
TEST_F(Nodes, AnswerWhatComesBeforeAHelloWithoutADevice) {
  std::promise<void> begun;
  std::promise<void> go;
  busy_ = [&] {
    begun.set_value();
    go.get_future().wait();
  };
  Line victim = Open("victim", "left");
  testing::RawTrainer trainer(*victim.client, {6144});
  ASSERT_TRUE(trainer.Create().ok());
  victim.client->Push(trainer.Prepare(1));  // keeps the device's thread
  begun.get_future().wait();

  Line attacker = Connect({2000, 2000, 1});
  static_cast<void>(wire::SendBare(attacker.client->socket(), MessageType::kDetach, 1).ok());
  EXPECT_EQ(attacker.client->Receive(2'000).code(), Code::kProtocol) << "while the device is busy";

  Line other = Connect({2000, 2000, 1});
  other.client->Send(MessageType::kEvict, EvictOf("victim"));
  Listen(other.connection);
  EXPECT_TRUE(other.client->Receive(100).closed) << "commands ask every device";
  other.client->Send(MessageType::kHello, HelloOf("own", "right"));
  Listen(other.connection);
  EXPECT_TRUE(other.client->Receive().ok()) << "the hello's";
  go.set_value();
  EXPECT_EQ(other.client->Receive().code(), Code::kNotFound) << "the command's";

  const auto stepped = victim.client->Wait();
  ASSERT_TRUE(stepped);
  EXPECT_EQ(RawClient::CodeOf(*stepped), Code::kOk);
  EXPECT_EQ(RawClient::CodeOf(victim.client->Run(wire::Op::kNoop, wire::PhaseBody{})), Code::kOk);
}

TEST_F(Nodes, DrainThoughADeviceCouldNotBeOpened) {
  Break("left", true);
  Line line = Connect();
  EXPECT_EQ(line.client->Hello(HelloOf("job", "left")).code(), Code::kDeviceFault);
  Line root = Connect(kRoot);
  EXPECT_TRUE(root.client->AskBare(MessageType::kDrain).ok());
  EXPECT_TRUE(Ends(milliseconds(5'000)));
}

TEST_F(Nodes, TakeNobodyWhileTheyDrain) {
  Line left = Open("a", "left");
  Line root = Connect(kRoot);
  EXPECT_TRUE(root.client->AskBare(MessageType::kDrain).ok());
  Line late = Connect();
  EXPECT_EQ(late.client->Hello(HelloOf("late", "right")).code(), Code::kDraining);
  EXPECT_THAT(opened(), ::testing::ElementsAre("left"));
  Lose(left);
  EXPECT_TRUE(Ends(milliseconds(5'000)));
}

TEST_F(Nodes, DrainThoughADeviceThatOpensMeanwhileCannotBeOpened) {
  Break("left", true);
  hold_.emplace();
  Line line = Connect();
  line.client->Send(MessageType::kHello, HelloOf("job", "left"));
  Listen(line.connection);
  Line root = Connect(kRoot);
  EXPECT_TRUE(root.client->AskBare(MessageType::kDrain).ok()) << "whatever becomes of the device";
  EXPECT_FALSE(Ends(milliseconds(50))) << "it may still open";
  hold_->set_value();
  EXPECT_EQ(line.client->Receive().code(), Code::kDeviceFault);
  EXPECT_TRUE(Ends(milliseconds(5'000)));
}

TEST_F(Nodes, EndWhenADeviceFailsThoughTheyDrain) {
  faulty_ = "left";
  Line left = Open("a", "left");
  Line right = Open("b", "right");
  testing::RawTrainer trainer(*left.client, {6144});
  ASSERT_TRUE(trainer.Create().ok());
  node_->Drain();
  EXPECT_EQ(RawClient::CodeOf(trainer.Step(1)), Code::kDaemonLost);
  EXPECT_TRUE(Ends(milliseconds(10'000)));
  EXPECT_EQ(right.client->failed(), Code::kDraining);
}

TEST_F(Nodes, EndWhenADeviceFails) {
  faulty_ = "left";
  Line left = Open("a", "left");
  Line right = Open("b", "right");
  testing::RawTrainer trainer(*left.client, {6144});
  ASSERT_TRUE(trainer.Create().ok());
  EXPECT_EQ(RawClient::CodeOf(trainer.Step(1)), Code::kDaemonLost);
  EXPECT_EQ(left.client->failed(), Code::kDeviceFault);
  EXPECT_TRUE(Ends(milliseconds(10'000)));
  EXPECT_EQ(right.client->failed(), Code::kDraining);
}

}  // namespace
}  // namespace bitpager::daemon
