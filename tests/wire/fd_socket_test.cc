// Messages and fds over the socket: what goes in comes out, nothing leaks, nothing malformed passes.
#include "client/wire/fd_socket.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <filesystem>
#include <random>
#include <vector>

namespace bitpager::wire {
namespace {

class FdSocket : public ::testing::Test {
 protected:
  void SetUp() override {
    int pair[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    left_.Reset(pair[0]);
    right_.Reset(pair[1]);
  }
  static std::size_t OpenFds() {
    std::size_t count = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
    return count;
  }
  // Sends raw fds beside one byte, past the limit that SendPacket keeps.
  void SendRaw(const std::vector<int>& fds) {
    char byte = 'x';
    iovec part{&byte, 1};
    std::vector<char> control(CMSG_SPACE(fds.size() * sizeof(int)));
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(head), fds.data(), fds.size() * sizeof(int));
    ASSERT_EQ(::sendmsg(left_.get(), &message, 0), 1);
  }

  UniqueFd left_;
  UniqueFd right_;
  Packet packet_;
};

TEST_F(FdSocket, CarriesAMessageAndItsFdsInOrder) {
  const UniqueFd a(::eventfd(11, EFD_CLOEXEC));
  const UniqueFd b(::eventfd(22, EFD_CLOEXEC));
  CreateBufferBody body;
  body.bytes = 4096;
  const int fds[2] = {a.get(), b.get()};
  ASSERT_TRUE(SendBody(left_.get(), MessageType::kCreateBuffer, 5, body, fds).ok());
  ASSERT_TRUE(ReceivePacket(right_.get(), packet_).ok());
  ASSERT_TRUE(CheckPacket(packet_).ok());
  EXPECT_EQ(packet_.header().type, MessageType::kCreateBuffer);
  EXPECT_EQ(packet_.header().sequence, 5U);
  CreateBufferBody got;
  ASSERT_TRUE(ReadBody(packet_, got));
  EXPECT_EQ(got.bytes, 4096U);
  ASSERT_EQ(packet_.fd_count, 2);
  std::uint64_t count = 0;
  ASSERT_EQ(::read(packet_.fds[0].get(), &count, sizeof(count)), 8);
  EXPECT_EQ(count, 11U);
  ASSERT_EQ(::read(packet_.fds[1].get(), &count, sizeof(count)), 8);
  EXPECT_EQ(count, 22U);
  EXPECT_NE(::fcntl(packet_.fds[0].get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST_F(FdSocket, SaysPendingWhenNothingCameAndClosedAfterAHangUp) {
  EXPECT_EQ(ReceivePacket(right_.get(), packet_).code(), Code::kPending);
  ASSERT_TRUE(SendBare(left_.get(), MessageType::kUsage, 1).ok());
  left_.Reset();
  ASSERT_TRUE(ReceivePacket(right_.get(), packet_).ok());
  EXPECT_FALSE(packet_.closed);
  EXPECT_TRUE(CheckPacket(packet_).ok());
  ASSERT_TRUE(ReceivePacket(right_.get(), packet_).ok());
  EXPECT_TRUE(packet_.closed);
  EXPECT_EQ(SendBare(right_.get(), MessageType::kUsage, 2).code(), Code::kDaemonLost);
}

TEST_F(FdSocket, RefusesTooManyFdsAndLeaksNone) {
  const UniqueFd a(::eventfd(0, EFD_CLOEXEC));
  const std::size_t before = OpenFds();
  const std::vector<int> too_many(kMaxMessageFds + 1, a.get());
  SendRaw(too_many);
  EXPECT_EQ(ReceivePacket(right_.get(), packet_).code(), Code::kProtocol);
  SendRaw(std::vector<int>(253, a.get()));  // the most that the kernel passes
  EXPECT_EQ(ReceivePacket(right_.get(), packet_).code(), Code::kProtocol);
  packet_ = Packet();
  EXPECT_EQ(OpenFds(), before);
  EXPECT_EQ(SendBare(left_.get(), MessageType::kUsage, 1, too_many).code(), Code::kInvalidArgument);
}

TEST_F(FdSocket, SaysSoWhenThisProcessHasNoDescriptorsLeft) {
  const UniqueFd a(::eventfd(0, EFD_CLOEXEC));
  ASSERT_TRUE(SendBare(left_.get(), MessageType::kUsage, 1, std::vector<int>(4, a.get())).ok());
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  std::vector<UniqueFd> filler;
  for (int fd = 0; fd < 200; ++fd) filler.emplace_back(::eventfd(0, EFD_CLOEXEC));
  rlimit low = before;
  low.rlim_cur = 100;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  const Status got = ReceivePacket(right_.get(), packet_);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(got.code(), Code::kProtocol);
  EXPECT_NE(got.message().find("ulimit -n"), std::string::npos);
}

TEST_F(FdSocket, RefusesWhatIsNoMessage) {
  const auto receive = [&](std::span<const std::byte> bytes) {
    EXPECT_TRUE(SendPacket(left_.get(), bytes).ok());
    const Status got = ReceivePacket(right_.get(), packet_);
    return got.ok() ? CheckPacket(packet_) : got;
  };
  std::array<std::byte, 16> data{};
  EXPECT_EQ(receive(std::span(data).first(7)).code(), Code::kProtocol);
  EXPECT_EQ(receive(data).code(), Code::kProtocol) << "no magic";
  MessageHeader header;
  header.version = kWireVersion + 1;
  std::memcpy(data.data(), &header, sizeof(header));
  EXPECT_EQ(receive(data).code(), Code::kUnknownVersion);
  EXPECT_EQ(packet_.header().version, kWireVersion + 1);
  header.version = kWireVersion;
  header.body_bytes = 1;
  std::memcpy(data.data(), &header, sizeof(header));
  EXPECT_EQ(receive(data).code(), Code::kProtocol) << "says a body that did not come";
  const std::vector<std::byte> endless(4096);
  ASSERT_EQ(::send(left_.get(), endless.data(), endless.size(), 0), 4096);
  EXPECT_EQ(ReceivePacket(right_.get(), packet_).code(), Code::kProtocol) << "longer than any message";
  EXPECT_EQ(SendPacket(left_.get(), endless).code(), Code::kInvalidArgument);
}

TEST_F(FdSocket, ReadsNoBodyOfAnotherSize) {
  ASSERT_TRUE(SendBody(left_.get(), MessageType::kDropExtent, 1, DropExtentBody{}).ok());
  ASSERT_TRUE(ReceivePacket(right_.get(), packet_).ok());
  HelloBody hello;
  EXPECT_FALSE(ReadBody(packet_, hello));
}

TEST_F(FdSocket, SurvivesRandomBytes) {
  std::mt19937_64 random(3);
  std::vector<std::byte> data;
  int passed = 0;
  for (int i = 0; i < 20'000; ++i) {
    data.resize(1 + random() % 1040);
    for (std::byte& byte : data) byte = static_cast<std::byte>(random());
    if (data.size() >= sizeof(MessageHeader) && (random() & 1U) != 0) {
      MessageHeader header;
      header.type = static_cast<MessageType>(random() % 64);
      header.body_bytes = static_cast<std::uint32_t>(data.size() - sizeof(header));
      std::memcpy(data.data(), &header, sizeof(header));
    }
    ASSERT_TRUE(SendPacket(left_.get(), data).ok());
    ASSERT_TRUE(ReceivePacket(right_.get(), packet_).ok());
    passed += CheckPacket(packet_).ok() ? 1 : 0;
  }
  EXPECT_GT(passed, 0);
  EXPECT_LT(passed, 20'000);
}

TEST(UnixAddress, RefusesPathsThatTheKernelCannotTake) {
  EXPECT_TRUE(UnixAddress(std::string(107, 'a')).ok());
  EXPECT_EQ(UnixAddress(std::string(108, 'a')).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(UnixAddress("").status().code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace bitpager::wire
