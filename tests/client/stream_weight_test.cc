// Weights on a GPU's stream, against a scripted daemon and a fake driver: quantized, read, leased, and let go
// of where room is short.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "client/weight.h"
#include "tests/client/stream_fixture.h"

namespace bitpager::client {
namespace {

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
  ASSERT_TRUE(Becomes([&] { return daemon_->header().completion_tail.word.load() == 1; }));
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
  ASSERT_TRUE(cuda_.Drained(Stream(3), 5000)) << "nothing reads the lease any more";
  std::uint64_t free_bytes = 0;
  const Status made = session_->MakeRoom(1U << 20, 5'000, &free_bytes);
  EXPECT_TRUE(made.ok()) << made.message();
  EXPECT_EQ(free_bytes, 1U << 20);
  EXPECT_EQ(cuda_.shared_maps, 0);
  EXPECT_EQ(asked, 2);
  EXPECT_TRUE(daemon_->registered().empty());
}

TEST_F(Streams, NobodyAsksForALeaseWhereThereAreNone) {
  int leases_asked = 0;
  Script script = GpuScript([&](FakeDaemon&, const wire::RequestRecord& record) {
    leases_asked += record.op == wire::Op::kLease ? 1 : 0;
  });
  script.leases = false;
  Connect(std::move(script));
  EXPECT_FALSE(session_->info().leases);
  WeightOptions options;
  options.elements = 4096;
  const Result<std::unique_ptr<Weight>> weight = Weight::Create(*session_, options);
  ASSERT_TRUE(weight.ok()) << weight.status().message();
  ASSERT_TRUE((*weight)->QuantizeOnStream(wire::DType::kBF16, At(kParams), Stream(3)).ok());
  for (int i = 0; i < 40; ++i) {
    const Status read = (*weight)->ReadOnStream(Stream(3), [](const LeasedPages&) { return Status(); });
    ASSERT_EQ(read.code(), Code::kUnsupported);
  }
  ASSERT_TRUE(Synchronized());
  EXPECT_EQ(leases_asked, 0);
}

// Whoever asks for a lease waits for what was asked for before.
TEST_F(Streams, ARefusedLeaseIsAskedForLessAndLessOften) {
  Script script = GpuScript();
  std::vector<int> asked_at;
  std::atomic<int> reads{0};
  script.on_request = [&](FakeDaemon& daemon, const wire::RequestRecord& record,
                          wire::CompletionRecord& done) {
    Apply(daemon, record);
    if (record.op != wire::Op::kLease) return Then::kComplete;
    asked_at.push_back(reads);
    done.code = static_cast<std::uint32_t>(Code::kFull);
    return Then::kComplete;
  };
  Connect(std::move(script));
  WeightOptions options;
  options.elements = 4096;
  const Result<std::unique_ptr<Weight>> weight = Weight::Create(*session_, options);
  ASSERT_TRUE(weight.ok()) << weight.status().message();
  for (; reads < 600; ++reads) {
    EXPECT_EQ((*weight)->ReadOnStream(Stream(1), [](const auto&) { return Status(); }).code(), Code::kFull);
  }
  EXPECT_TRUE(Synchronized());
  EXPECT_THAT(asked_at, ::testing::ElementsAre(0, 17, 50, 115, 244, 373, 502));
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

}  // namespace
}  // namespace bitpager::client
