// The parts of the CUDA device, each alone: queues in every way of telling and waiting, launch tables, host
// frames in small pieces and with failing pins, scratch. Skipped where no GPU is usable.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/host_frames.h"
#include "kernels/cuda/list.h"
#include "kernels/cuda/queues.h"
#include "kernels/cuda/scratch.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/table_ring.h"

namespace bitpager::kernels::cuda {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::uint64_t kPiece = 4 * kMiB;

bool NoGpu(std::string* why) {
  static_cast<void>(ListDevices(why));
  return !why->empty();
}

double Micros(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - since).count();
}

class CudaParts : public ::testing::TestWithParam<QueueOptions> {
 protected:
  void SetUp() override {
    std::string why;
    if (NoGpu(&why)) GTEST_SKIP() << why;
    ASSERT_EQ(cudaFree(nullptr), cudaSuccess);
    driver_ = *LoadDriver();
    auto made = Queues::Make(*driver_, GetParam());
    ASSERT_TRUE(made.ok()) << made.status().message();
    queues_ = std::move(*made);
    ASSERT_EQ(cudaMalloc(&memory_, 64 * kMiB), cudaSuccess);
  }
  void TearDown() override {
    if (memory_ != nullptr) static_cast<void>(cudaFree(memory_));
  }
  [[nodiscard]] std::byte* At(std::uint64_t offset) const {
    return static_cast<std::byte*>(memory_) + offset;
  }

  const Driver* driver_ = nullptr;
  std::unique_ptr<Queues> queues_;
  void* memory_ = nullptr;
};

TEST_P(CudaParts, EventsCompleteInOrderBehindTheirWork) {
  ScratchPool scratch;
  auto* const host = reinterpret_cast<unsigned char*>(scratch.Allocate(kMiB));
  std::vector<Event> events;
  for (int i = 1; i <= 100; ++i) {
    ASSERT_EQ(cudaMemsetAsync(At(0), i, kMiB, queues_->stream(Queue::kStore)), cudaSuccess);
    ASSERT_EQ(cudaMemcpyAsync(host, At(0), kMiB, cudaMemcpyDefault, queues_->stream(Queue::kStore)),
              cudaSuccess);
    events.push_back(queues_->Publish(Queue::kStore));
  }
  for (std::size_t i = 0; i < events.size(); ++i) {
    queues_->Synchronize(events[i]);
    for (std::size_t j = 0; j <= i; ++j) ASSERT_TRUE(queues_->Done(events[j]));
    ASSERT_GE(host[kMiB - 1], static_cast<unsigned char>(i + 1));
  }
  EXPECT_EQ(host[0], 100);
  EXPECT_TRUE(queues_->TakeFault().ok());
}

TEST_P(CudaParts, WaitsHoldWorkBack) {
  ScratchPool scratch;
  auto* const host = reinterpret_cast<unsigned char*>(scratch.Allocate(1));
  double total = 0;
  for (int round = 0; round < 100; ++round) {
    const auto start = std::chrono::steady_clock::now();
    // 64 MiB take longer than all enqueueing here, so a wait that does not wait copies an older byte.
    ASSERT_EQ(cudaMemsetAsync(At(0), round, 64 * kMiB, queues_->stream(Queue::kLoad)), cudaSuccess);
    queues_->Wait(Queue::kCompute, queues_->Publish(Queue::kLoad));
    ASSERT_EQ(
        cudaMemcpyAsync(At(0), At(64 * kMiB - 1), 1, cudaMemcpyDefault, queues_->stream(Queue::kCompute)),
        cudaSuccess);
    queues_->Wait(Queue::kStore, queues_->Publish(Queue::kCompute));
    ASSERT_EQ(cudaMemcpyAsync(host, At(0), 1, cudaMemcpyDefault, queues_->stream(Queue::kStore)),
              cudaSuccess);
    const Event stored = queues_->Publish(Queue::kStore);
    queues_->Wait(Queue::kLoad, stored);
    queues_->Synchronize(stored);
    total += Micros(start);
    ASSERT_EQ(*host, static_cast<unsigned char>(round));
  }
  // The same without the large fill: what crossing three queues costs.
  const auto start = std::chrono::steady_clock::now();
  double enqueue = 0;
  for (int round = 0; round < 200; ++round) {
    const auto begun = std::chrono::steady_clock::now();
    ASSERT_EQ(cudaMemsetAsync(At(0), round, 256, queues_->stream(Queue::kLoad)), cudaSuccess);
    queues_->Wait(Queue::kCompute, queues_->Publish(Queue::kLoad));
    ASSERT_EQ(cudaMemsetAsync(At(0), round, 256, queues_->stream(Queue::kCompute)), cudaSuccess);
    queues_->Wait(Queue::kStore, queues_->Publish(Queue::kCompute));
    ASSERT_EQ(cudaMemsetAsync(At(0), round, 256, queues_->stream(Queue::kStore)), cudaSuccess);
    const Event stored = queues_->Publish(Queue::kStore);
    enqueue += Micros(begun);
    queues_->Synchronize(stored);
  }
  std::printf("three queues in turn (writes by %s, waits by %s): %.1f us, %.1f of them to enqueue\n",
              GetParam().stream_writes ? "stream" : "host function",
              GetParam().stream_waits ? "stream" : "event", Micros(start) / 200, enqueue / 200);
}

TEST_P(CudaParts, AWaitForAnOlderPointIsNotHeldUpByLaterWork) {
  if (!GetParam().stream_waits) GTEST_SKIP() << "only streams that compare words wait so exactly";
  ScratchPool scratch;
  auto* const host = reinterpret_cast<unsigned char*>(scratch.Allocate(1));
  const cudaStream_t load = queues_->stream(Queue::kLoad);
  // First the point, far behind enough work that it is still open when the wait is enqueued.
  for (int i = 0; i < 400; ++i) ASSERT_EQ(cudaMemsetAsync(At(0), 7, 64 * kMiB, load), cudaSuccess);
  const Event early = queues_->Publish(Queue::kLoad);
  for (int i = 0; i < 400; ++i) ASSERT_EQ(cudaMemsetAsync(At(kMiB), i, 63 * kMiB, load), cudaSuccess);
  const Event late = queues_->Publish(Queue::kLoad);
  ASSERT_FALSE(queues_->Done(early));
  queues_->Wait(Queue::kStore, early);
  ASSERT_EQ(cudaMemcpyAsync(host, At(0), 1, cudaMemcpyDefault, queues_->stream(Queue::kStore)), cudaSuccess);
  const Event stored = queues_->Publish(Queue::kStore);
  EXPECT_FALSE(queues_->Done(stored));
  queues_->Synchronize(stored);
  EXPECT_TRUE(queues_->Done(early));
  EXPECT_FALSE(queues_->Done(late));
  EXPECT_EQ(*host, 7);
  queues_->Synchronize(late);
}

TEST_P(CudaParts, WordsHave64Bits) {
  void* raw = nullptr;
  ASSERT_EQ(cudaHostAlloc(&raw, 128, cudaHostAllocMapped), cudaSuccess);
  auto* const word = new (raw) std::atomic<std::uint64_t>(0);
  const std::uint64_t goal = (std::uint64_t{5} << 32) + 1;
  ASSERT_EQ(cudaMemsetAsync(At(0), 1, 1, queues_->stream(Queue::kCompute)), cudaSuccess);
  queues_->Synchronize(queues_->Publish(Queue::kCompute));
  ASSERT_EQ(driver_->StreamWaitValue64(queues_->stream(Queue::kCompute), reinterpret_cast<CUdeviceptr>(word),
                                       goal, CU_STREAM_WAIT_VALUE_GEQ),
            CUDA_SUCCESS);
  const Event after = queues_->Publish(Queue::kCompute);
  // Its low half is larger, the whole is not.
  queues_->Store(Queue::kStore, word, (std::uint64_t{4} << 32) + 7);
  queues_->Synchronize(queues_->Publish(Queue::kStore));
  EXPECT_EQ(word->load(), (std::uint64_t{4} << 32) + 7);
  usleep(20'000);
  EXPECT_FALSE(queues_->Done(after));
  queues_->Store(Queue::kStore, word, goal);
  queues_->Synchronize(after);
  EXPECT_TRUE(queues_->Done(after));
  EXPECT_EQ(word->load(), goal);
  static_cast<void>(cudaFreeHost(raw));
}

TEST_P(CudaParts, LaunchTablesArriveWholeAndAreNotOverwritten) {
  TableRing tables(*queues_);
  ASSERT_TRUE(tables.Prepare().ok());
  ScratchPool scratch;
  std::mt19937 random(7);
  struct Check {
    std::byte* host;
    std::vector<std::uint32_t> want;
  };
  std::vector<Check> checks;
  std::uint64_t put = 0;
  for (int launch = 0; launch < 300; ++launch) {
    // A few tables a launch, some of them larger than the ring is.
    const std::size_t count = launch % 97 == 96 ? 70'000 * 20 : 1 + random() % 40'000;
    LaunchContext context(queues_->stream(Queue::kCompute), 1, 90, tables);
    for (int table = 0; table < 2; ++table) {
      Check check;
      check.want.resize(count);
      std::iota(check.want.begin(), check.want.end(), static_cast<std::uint32_t>(random()));
      const auto at = context.Upload(check.want.data(), count * 4, std::size_t{16} << (table * 4));
      ASSERT_TRUE(at.ok()) << at.status().message();
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(*at) % (std::uintptr_t{16} << (table * 4)), 0U);
      put += count * 4;
      check.host = scratch.Allocate(count * 4);
      ASSERT_NE(check.host, nullptr);
      ASSERT_EQ(cudaMemcpyAsync(check.host, *at, count * 4, cudaMemcpyDefault, context.stream()),
                cudaSuccess);
      checks.push_back(std::move(check));
    }
    tables.Seal(queues_->Publish(Queue::kCompute));
  }
  queues_->Synchronize(queues_->Publish(Queue::kCompute));
  for (const Check& check : checks) {
    ASSERT_EQ(std::memcmp(check.host, check.want.data(), check.want.size() * 4), 0);
  }
  std::printf("launch tables: %.0f MiB through a ring of %.0f MiB\n", static_cast<double>(put) / (1 << 20),
              static_cast<double>(tables.bytes()) / (1 << 20));
  EXPECT_LE(tables.bytes(), 64 * kMiB);
}

TEST_P(CudaParts, HostFramesArePinnedAheadAndGivenBackByPieces) {
  HostFrames host(*driver_, *queues_, {0, kPiece, kPiece});
  const auto region = host.Reserve(16 * kPiece);
  ASSERT_TRUE(region.ok());
  host.Settle();
  EXPECT_EQ(host.counts().pinned_bytes, kPiece);
  const auto resident_bytes = [&] {
    std::vector<unsigned char> grains(16 * kPiece / 4096);
    EXPECT_EQ(mincore(region->base, 16 * kPiece, grains.data()), 0);
    const auto is_there = [](unsigned char grain) { return (grain & 1U) != 0; };
    return static_cast<std::uint64_t>(std::count_if(grains.begin(), grains.end(), is_there)) * 4096;
  };
  EXPECT_EQ(host.Prepare(region->base + kPiece - 4096, 8192), 4096U);  // up to the end of its piece
  EXPECT_EQ(host.counts().waits, 0U);
  EXPECT_EQ(host.Prepare(&host, 12345), 12345U);  // none of ours
  host.Settle();
  EXPECT_EQ(host.counts().pinned_bytes, 3 * kPiece);  // as much again as is in use, and one
  EXPECT_EQ(host.Prepare(region->base + 10 * kPiece, 4096), 4096U);
  EXPECT_EQ(host.counts().waits, 1U);
  host.Settle();
  EXPECT_EQ(host.counts().pinned_bytes, 16 * kPiece);
  EXPECT_EQ(resident_bytes(), 16 * kPiece);
  // A piece goes when its last frame does, and not before.
  host.Decommit(region->base + kPiece - 4096, 2048);
  host.Settle();
  EXPECT_EQ(host.counts().pinned_bytes, 16 * kPiece);
  host.Decommit(region->base, kPiece);
  host.Decommit(region->base + 10 * kPiece, 2 * kPiece);
  host.Settle();
  EXPECT_EQ(host.counts().pinned_bytes, 14 * kPiece);
  EXPECT_EQ(resident_bytes(), 14 * kPiece);
  // And comes again.
  EXPECT_EQ(host.Prepare(region->base, 64), 64U);
  region->base[5] = std::byte{7};
  ASSERT_EQ(cudaMemcpyAsync(At(0), region->base, 64, cudaMemcpyDefault, queues_->stream(Queue::kLoad)),
            cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(region->base + 64, At(0), 64, cudaMemcpyDefault, queues_->stream(Queue::kLoad)),
            cudaSuccess);
  queues_->Synchronize(queues_->Publish(Queue::kLoad));
  EXPECT_EQ(region->base[69], std::byte{7});
  EXPECT_EQ(host.counts().pinned_bytes, 15 * kPiece);
  EXPECT_EQ(host.counts().unpinned_copies, 0U);
}

// Announced, and given back before or while it is pinned: nothing stays.
TEST_P(CudaParts, HostFramesExpectedByWhoDiesAtOnceDoNotStayPinned) {
  HostFrames host(*driver_, *queues_, {0, kPiece, 0});
  const auto region = host.Reserve(16 * kPiece);
  ASSERT_TRUE(region.ok());
  for (int round = 0; round < 20; ++round) {
    host.Expect(region->base, 16 * kPiece);
    usleep(static_cast<useconds_t>(100 * round));
    host.Decommit(region->base, 16 * kPiece);
    if (round % 3 == 0) continue;  // expected anew while some still leave
    host.Settle();
    ASSERT_EQ(host.counts().pinned_bytes, 0U) << round;
  }
  host.Expect(region->base, 2 * kPiece);
  host.Settle();
  EXPECT_EQ(host.counts().pinned_bytes, 2 * kPiece);
  EXPECT_TRUE(queues_->TakeFault().ok());
}

TEST_P(CudaParts, HostFramesInUseAreNotGivenBackUnderACopy) {
  HostFrames host(*driver_, *queues_, {0, kPiece, kPiece});
  const auto region = host.Reserve(4 * kPiece);
  ASSERT_TRUE(region.ok());
  for (int round = 0; round < 50; ++round) {
    for (std::uint64_t piece = 0; piece < 4; ++piece) {
      std::byte* const at = region->base + piece * kPiece;
      ASSERT_EQ(host.Prepare(at, kPiece), kPiece);
      ASSERT_EQ(cudaMemsetAsync(At(0), round, kPiece, queues_->stream(Queue::kStore)), cudaSuccess);
      ASSERT_EQ(cudaMemcpyAsync(at, At(0), kPiece, cudaMemcpyDefault, queues_->stream(Queue::kStore)),
                cudaSuccess);
    }
    queues_->Publish(Queue::kStore);
    for (std::uint64_t piece = 0; piece < 4; ++piece) host.Decommit(region->base + piece * kPiece, kPiece);
  }
  queues_->Synchronize(queues_->Publish(Queue::kStore));
  host.Settle();
  EXPECT_TRUE(queues_->TakeFault().ok());
  EXPECT_EQ(host.counts().pinned_bytes, 0U);
}

TEST_P(CudaParts, CopiesGoOnUnpinnedWherePinningFails) {
  Driver failing = *driver_;
  failing.MemHostRegister = [](void*, std::size_t, unsigned) { return CUDA_ERROR_OUT_OF_MEMORY; };
  HostFrames host(failing, *queues_, {0, kPiece, kPiece});
  const auto region = host.Reserve(2 * kPiece);
  ASSERT_TRUE(region.ok());
  std::memset(region->base, 3, 64);
  EXPECT_EQ(host.Prepare(region->base, 64), 64U);
  ASSERT_EQ(cudaMemcpyAsync(At(0), region->base, 64, cudaMemcpyDefault, queues_->stream(Queue::kLoad)),
            cudaSuccess);
  EXPECT_EQ(host.Prepare(region->base + 64, 64), 64U);
  ASSERT_EQ(cudaMemcpyAsync(region->base + 64, At(0), 64, cudaMemcpyDefault, queues_->stream(Queue::kLoad)),
            cudaSuccess);
  queues_->Synchronize(queues_->Publish(Queue::kLoad));
  EXPECT_EQ(std::memcmp(region->base, region->base + 64, 64), 0);
  EXPECT_EQ(host.counts().unpinned_copies, 2U);
  EXPECT_NE(host.counts().problem.find("cannot pin"), std::string::npos) << host.counts().problem;
  EXPECT_EQ(host.counts().pinned_bytes, 0U);
  host.Decommit(region->base, kPiece);
  host.Settle();
  EXPECT_EQ(host.counts().pinned_bytes, 0U);
}

TEST_P(CudaParts, HostFramesWaitForNothingOnceTheDeviceHasFailed) {
  HostFrames host(*driver_, *queues_, {0, kPiece, 0});
  const auto region = host.Reserve(4 * kPiece);
  ASSERT_TRUE(region.ok());
  host.Stop();
  EXPECT_EQ(host.Prepare(region->base + 2 * kPiece, 64), 64U);
  host.Settle();
}

TEST_P(CudaParts, HostFramesTellWhenTheirThreadsDoNotReachTheDevice) {
  HostFrames host(*driver_, *queues_, {9999, kPiece, 0});
  const auto region = host.Reserve(kPiece);
  ASSERT_TRUE(region.ok());
  EXPECT_EQ(host.Prepare(region->base, 64), 64U);
  EXPECT_EQ(host.counts().unpinned_copies, 1U);
  EXPECT_FALSE(host.fault().ok());
}

// What giving a piece back does to copies that run: printed, and never longer than a piece takes.
TEST_P(CudaParts, UnpinningRunsBesideCopies) {
  HostFrames host(*driver_, *queues_, {0, 64 * kMiB, 64 * kMiB});
  const auto region = host.Reserve(128 * kMiB);
  ASSERT_TRUE(region.ok());
  const auto begun = std::chrono::steady_clock::now();
  ASSERT_EQ(host.Prepare(region->base, 64 * kMiB), 64 * kMiB);
  const double pin_us = Micros(begun);
  ASSERT_EQ(host.Prepare(region->base + 64 * kMiB, 64 * kMiB), 64 * kMiB);
  host.Decommit(region->base, 64 * kMiB);
  double worst = 0;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 40; ++i) {
    const auto one = std::chrono::steady_clock::now();
    ASSERT_EQ(cudaMemcpyAsync(At(0), region->base + 64 * kMiB, 16 * kMiB, cudaMemcpyDefault,
                              queues_->stream(Queue::kLoad)),
              cudaSuccess);
    queues_->Publish(Queue::kLoad);
    worst = std::max(worst, Micros(one));
  }
  host.Settle();
  std::printf(
      "64 MiB of host frames: pinned in %.1f ms, given back in %.1f ms beside copies; slowest enqueue "
      "meanwhile %.0f us\n",
      pin_us / 1e3, Micros(start) / 1e3, worst);
  queues_->Synchronize(queues_->Publish(Queue::kLoad));
  EXPECT_TRUE(queues_->TakeFault().ok());
}

INSTANTIATE_TEST_SUITE_P(StreamOperations, CudaParts, ::testing::Values(QueueOptions{true, true}));
INSTANTIATE_TEST_SUITE_P(StreamWrites, CudaParts, ::testing::Values(QueueOptions{true, false}));
INSTANTIATE_TEST_SUITE_P(NoStreamOperations, CudaParts, ::testing::Values(QueueOptions{false, false}));

TEST(CudaStatus, SaysWhatWhyAndTheName) {
  const wire::Status memory = StatusOf(cudaErrorMemoryAllocation, "pin 7 bytes");
  EXPECT_EQ(memory.code(), wire::Code::kOutOfMemory);
  EXPECT_NE(memory.message().find("cannot pin 7 bytes"), std::string::npos);
  EXPECT_EQ(StatusOf(cudaErrorIllegalAddress, "x").code(), wire::Code::kDeviceFault);
  EXPECT_EQ(StatusOf(cudaErrorNotSupported, "x").code(), wire::Code::kUnsupported);
  EXPECT_TRUE(StatusOf(cudaSuccess, "x").ok());
  EXPECT_TRUE(StatusOf(CUDA_SUCCESS, "x").ok());
  EXPECT_EQ(StatusOf(CUDA_ERROR_OUT_OF_MEMORY, "x").code(), wire::Code::kOutOfMemory);
  EXPECT_TRUE(IsSticky(CUDA_ERROR_ILLEGAL_ADDRESS));
  EXPECT_FALSE(IsSticky(CUDA_ERROR_OUT_OF_MEMORY));
}

TEST(CudaDriver, SaysWhyItIsMissing) {
  const wire::Result<const Driver*> driver = LoadDriver();
  std::string why;
  const auto start = std::chrono::steady_clock::now();
  const auto listed = ListDevices(&why);
  std::printf("listing: %.1f ms\n", Micros(start) / 1e3);
  ASSERT_FALSE(listed.empty());
  EXPECT_EQ(listed.front().kind, "cpu");
  if (driver.ok()) {
    EXPECT_GE((*driver)->version, 12000);
    return;
  }
  EXPECT_FALSE(why.empty());
  EXPECT_EQ(why, driver.status().message());
  EXPECT_EQ(OpenDevice({"cuda"}).status().code(), driver.status().code());
  EXPECT_NE(OpenDevice({"cuda"}).status().message().find("cuda device: "), std::string::npos);
}

}  // namespace
}  // namespace bitpager::kernels::cuda
