// The conformance suite on the CPU device, and what only the CPU device promises.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "tests/kernels/device_conformance.h"
#include "tests/support/faulty_device.h"

namespace bitpager::kernels {
namespace {

INSTANTIATE_TEST_SUITE_P(CpuOneThread, DeviceConformance, ::testing::Values(DeviceOptions{"cpu", 0, 1}));
INSTANTIATE_TEST_SUITE_P(CpuFourThreads, DeviceConformance, ::testing::Values(DeviceOptions{"cpu", 0, 4}));

TEST(OpenDevice, RefusesUnknownKindsAndIndices) {
  EXPECT_EQ(OpenDevice({"abacus", 0, 0}).status().code(), wire::Code::kUnsupported);
  EXPECT_EQ(OpenDevice({"cpu", 1, 0}).status().code(), wire::Code::kNotFound);
  EXPECT_EQ(OpenDevice({"cpu", 0, -1}).status().code(), wire::Code::kInvalidArgument);
}

std::unique_ptr<testing::FaultyDevice> Faulty(testing::FaultPlan plan) {
  return std::make_unique<testing::FaultyDevice>(std::move(*OpenDevice({"cpu", 0, 1})), plan);
}

TEST(FaultyDevice, HoldsCompletionsUntilReleased) {
  const auto device = Faulty({});
  std::vector<std::byte> memory(64);
  const Event early = device->Fill(Queue::kLoad, memory.data(), 1, 64);
  device->Synchronize(early);
  device->Hold();
  const Event late = device->Fill(Queue::kLoad, memory.data(), 2, 64);
  device->Synchronize(late);
  EXPECT_TRUE(device->Done(early));
  EXPECT_FALSE(device->Done(late));
  device->Release();
  EXPECT_TRUE(device->Done(late));
}

TEST(FaultyDevice, FailsTheNthCallAndShrinksCapacity) {
  testing::FaultPlan plan;
  plan.fail_segment = 2;
  plan.capacity_bytes = 3 * 65536;
  plan.fault_at_work = 2;
  const auto device = Faulty(plan);
  const auto first = device->AllocateSegment(2, 65536, 0);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(device->AllocateSegment(1, 65536, 0).status().code(), wire::Code::kOutOfMemory);
  EXPECT_EQ(device->AllocateSegment(2, 65536, 0).status().code(), wire::Code::kOutOfMemory);
  EXPECT_TRUE(device->AllocateSegment(1, 65536, 0).ok());
  EXPECT_EQ(device->Info().free_bytes, 0U);
  device->FreeSegment(first->id);
  EXPECT_EQ(device->Info().free_bytes, 2 * 65536U);
  std::byte memory[8];
  device->Fill(Queue::kLoad, memory, 0, 8);
  EXPECT_TRUE(device->TakeFault().ok());
  device->Fill(Queue::kLoad, memory, 0, 8);
  EXPECT_EQ(device->TakeFault().code(), wire::Code::kDeviceFault);
}

TEST(CpuDevice, UsesNoProcessorWhileIdle) {
  const auto device = std::move(*OpenDevice({"cpu", 0, 2}));
  std::vector<std::byte> memory(4096);
  device->Synchronize(device->Fill(Queue::kCompute, memory.data(), 1, memory.size()));
  const auto used = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
  };
  double best_s = 1;  // what a busy machine adds, it does not add each time
  for (int i = 0; i < 10 && best_s >= 0.005; ++i) {
    const double before_s = used();
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    best_s = std::min(best_s, used() - before_s);
  }
  EXPECT_LT(best_s, 0.005);
}

TEST(CpuDevice, ExportedSegmentsShareOneReadOnlySealedFile) {
  const auto device = std::move(*OpenDevice({"cpu", 0, 1}));
  const auto a = *device->AllocateSegment(4, 65536, 7);
  const auto b = *device->AllocateSegment(4, 65536, 7);
  const auto other = *device->AllocateSegment(4, 65536, 8);
  EXPECT_EQ(a.fd, b.fd);
  EXPECT_NE(a.fd, other.fd);
  EXPECT_NE(a.fd_offset, b.fd_offset);
  device->Synchronize(device->Fill(Queue::kCompute, b.base, 9, 65536));
  void* const view = mmap(nullptr, 65536, PROT_READ, MAP_SHARED, b.fd, static_cast<off_t>(b.fd_offset));
  ASSERT_NE(view, MAP_FAILED);
  EXPECT_EQ(static_cast<unsigned char*>(view)[65535], 9);
  EXPECT_EQ(mmap(nullptr, 65536, PROT_WRITE, MAP_SHARED, b.fd, 0), MAP_FAILED);
  EXPECT_EQ(fcntl(b.fd, F_GET_SEALS) & (F_SEAL_SHRINK | F_SEAL_GROW), F_SEAL_SHRINK | F_SEAL_GROW);
  device->FreeSegment(b.id);
  EXPECT_EQ(static_cast<unsigned char*>(view)[65535], 0);  // given back, and still a valid address
  EXPECT_EQ(device->AllocateSegment(4, 65536, 7)->fd_offset, b.fd_offset);
  munmap(view, 65536);
}

}  // namespace
}  // namespace bitpager::kernels
