// The conformance suite on a GPU, and what only the CUDA device promises, through the device interface.
// Skipped where no GPU is usable.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <set>

#include "kernels/ipc_probe.h"
#include "tests/kernels/cuda_helper.h"
#include "tests/kernels/device_conformance.h"

namespace bitpager::kernels {
namespace {

INSTANTIATE_TEST_SUITE_P(Cuda, DeviceConformance, ::testing::Values(DeviceOptions{"cuda"}));
const DeviceOptions kManaged{"cuda", 0, 0, "", true};
INSTANTIATE_TEST_SUITE_P(CudaManaged, DeviceConformance, ::testing::Values(kManaged));

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

double Seconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

class CudaDevice : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = WhyNotHere({"cuda"}); !why.empty()) GTEST_SKIP() << why;
    auto opened = OpenDevice({"cuda"});
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    device_ = std::move(*opened);
  }
  // One byte of device memory.
  int ByteAt(const std::byte* at) {
    auto* host = device_->AllocateScratch(1);
    device_->Synchronize(device_->Copy(Queue::kStore, host, at, 1));
    const int out = std::to_integer<int>(*host);
    device_->FreeScratch(host);
    return out;
  }
  [[nodiscard]] std::uint64_t FreeBytes() const { return device_->Info().free_bytes; }

  std::unique_ptr<Device> device_;
};

TEST_F(CudaDevice, IsListedAndFoundByUuid) {
  std::string why;
  const auto listed = ListDevices(&why);
  EXPECT_EQ(why, "");
  const auto found =
      std::find_if(listed.begin(), listed.end(), [](const auto& d) { return d.kind == "cuda"; });
  ASSERT_NE(found, listed.end());
  std::printf("%s %s %s driver %s, %.1f GiB\n", found->name.c_str(), found->uuid.c_str(),
              found->architecture.c_str(), found->driver.c_str(),
              static_cast<double>(found->total_bytes) / (1 << 30));
  EXPECT_EQ(found->uuid.rfind("GPU-", 0), 0U);
  EXPECT_EQ(found->uuid.size(), 40U);
  EXPECT_EQ(device_->Info().uuid, found->uuid);
  EXPECT_FALSE(device_->Info().rings_progress);
  EXPECT_TRUE(OpenDevice({"cuda", 99, 0, found->uuid}).ok());
  const auto missing = OpenDevice({"cuda", 0, 0, "GPU-00000000-0000-0000-0000-000000000000"});
  EXPECT_EQ(missing.status().code(), wire::Code::kNotFound);
  EXPECT_NE(missing.status().message().find(found->uuid), std::string::npos);
  EXPECT_EQ(OpenDevice({"cuda", 99}).status().code(), wire::Code::kNotFound);
}

TEST_F(CudaDevice, GrowsAndShrinksToWhereItWas) {
  const std::uint64_t before = FreeBytes();
  std::set<const std::byte*> addresses;
  for (int round = 0; round < 3; ++round) {
    std::vector<std::uint32_t> ids;
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < 32; ++i) {
      const auto made = device_->AllocateSegment(32, 2 * kMiB, 0);
      ASSERT_TRUE(made.ok()) << made.status().message();
      ids.push_back(made->id);
      addresses.insert(made->base);
    }
    const double grown = Seconds(start);
    EXPECT_LE(FreeBytes(), before - 32 * 64 * kMiB);
    const auto shrinking = std::chrono::steady_clock::now();
    for (const std::uint32_t id : ids) device_->FreeSegment(id);
    std::printf("segment of 64 MiB: %.0f us to allocate, %.0f us to free\n", grown / 32 * 1e6,
                Seconds(shrinking) / 32 * 1e6);
    EXPECT_GE(FreeBytes() + 4 * kMiB, before);
  }
  EXPECT_EQ(addresses.size(), 32U);  // address ranges serve again
}

TEST_F(CudaDevice, RefusesWhatDoesNotFitWithTheBytes) {
  const std::uint64_t free = FreeBytes();
  const auto refused = device_->AllocateSegment(static_cast<std::uint32_t>(free / kMiB + 1024), kMiB, 0);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), wire::Code::kOutOfMemory);
  EXPECT_NE(refused.status().message().find("are free"), std::string::npos) << refused.status().message();
  EXPECT_GE(FreeBytes() + 4 * kMiB, free);
  EXPECT_TRUE(device_->TakeFault().ok());
  const auto after = device_->AllocateSegment(1, kMiB, 0);
  ASSERT_TRUE(after.ok());
  device_->Synchronize(device_->Fill(Queue::kCompute, after->base, 3, kMiB));
  EXPECT_EQ(ByteAt(after->base + kMiB - 1), 3);
}

TEST_F(CudaDevice, ManagedFramesAreRefusedWhereTheyCannotBe) {
  const auto opened = OpenDevice(kManaged);
  if (WhyNotHere(kManaged).empty()) {
    EXPECT_TRUE(opened.ok()) << opened.status().message();
    return;
  }
  EXPECT_EQ(opened.status().code(), wire::Code::kUnsupported);
  EXPECT_NE(opened.status().message().find("--frames explicit"), std::string::npos)
      << opened.status().message();
}

TEST_F(CudaDevice, ABareOneServesAsWell) {
  DeviceOptions options{"cuda"};
  options.bare = true;
  auto bare = OpenDevice(options);
  ASSERT_TRUE(bare.ok()) << bare.status().message();
  EXPECT_EQ((*bare)->Info().pinned_host_bytes, 0U);
  EXPECT_GT(device_->Info().pinned_host_bytes, 0U) << "this shows nothing: nobody pins ahead";
  const auto segment = (*bare)->AllocateSegment(1, 2 * kMiB, 0);
  const auto region = (*bare)->ReserveHost(2 * kMiB);
  ASSERT_TRUE(segment.ok() && region.ok());
  region->base[7] = std::byte{9};
  (*bare)->Synchronize((*bare)->Copy(Queue::kCompute, segment->base, region->base, 4096));
  auto* const seen = (*bare)->AllocateScratch(8);
  (*bare)->Synchronize((*bare)->Copy(Queue::kCompute, seen, segment->base, 8));
  EXPECT_EQ(seen[7], std::byte{9});
  EXPECT_TRUE((*bare)->TakeFault().ok());
}

TEST_F(CudaDevice, ManagedRefusesMoreThanIsFree) {
  device_.reset();
  if (const std::string why = WhyNotHere(kManaged); !why.empty()) GTEST_SKIP() << why;
  auto opened = OpenDevice(kManaged);
  ASSERT_TRUE(opened.ok());
  device_ = std::move(*opened);
  EXPECT_FALSE(device_->Info().exports);
  const std::uint64_t free = FreeBytes();
  EXPECT_EQ(device_->AllocateSegment(static_cast<std::uint32_t>(free / kMiB + 64), kMiB, 0).status().code(),
            wire::Code::kOutOfMemory);
  for (int round = 0; round < 20; ++round) {
    const auto made = device_->AllocateSegment(32, 2 * kMiB, 0);
    ASSERT_TRUE(made.ok()) << made.status().message();
    EXPECT_LE(FreeBytes() + 60 * kMiB, free);  // populated on the device
    device_->FreeSegment(made->id);
  }
  // The driver keeps a segment's worth of managed memory for the next, and no more.
  EXPECT_GE(FreeBytes() + 68 * kMiB, free);
}

TEST_F(CudaDevice, ExportsSegmentsThatAnotherProcessMaps) {
  const auto segment = device_->AllocateSegment(32, 2 * kMiB, 1000);
  ASSERT_TRUE(segment.ok());
  ASSERT_GE(segment->fd, 0);
  EXPECT_EQ(segment->fd_offset, 0U);
  device_->Synchronize(device_->Fill(Queue::kCompute, segment->base, 0x77, 64 * kMiB));
  testing::CudaHelper helper("ReadsASegment");
  const std::uint64_t bytes = 64 * kMiB;
  helper.Send(&bytes, sizeof(bytes), {segment->fd});
  EXPECT_EQ(helper.Receive<int>(), 0x77);
  EXPECT_EQ(ByteAt(segment->base + 64 * kMiB - 1), 0x78);  // what the other process wrote
  helper.Kill();
  EXPECT_EQ(device_->AllocateSegment(1, 2 * kMiB, 0)->fd, -1);
}

ImportSource IpcSource(const testing::IpcOffer& offer) {
  ImportSource source;
  source.kind = MemoryKind::kDeviceIpc;
  source.bytes = offer.bytes;
  std::memcpy(source.handle.data(), offer.handle, sizeof(offer.handle));
  return source;
}

TEST_F(CudaDevice, ImportsMemoryOfAClientThatDies) {
  const std::uint64_t before = FreeBytes();
  testing::CudaHelper helper("OffersAnAllocation");
  const auto offer = helper.Receive<testing::IpcOffer>();
  ImportSource source = IpcSource(offer);
  source.bytes = offer.bytes * 64;
  EXPECT_EQ(device_->ImportMemory(source).status().code(), wire::Code::kOutOfRange);
  source.bytes = offer.bytes;
  const auto start = std::chrono::steady_clock::now();
  const auto import = device_->ImportMemory(source);
  ASSERT_TRUE(import.ok()) << import.status().message();
  std::printf("inter-process handle: %.0f us to open\n", Seconds(start) * 1e6);
  EXPECT_EQ(ByteAt(import->base + offer.bytes - 1), 0x5A);
  helper.Kill();
  for (int i = 0; i < 100; ++i) device_->Fill(Queue::kCompute, import->base, i, offer.bytes);
  device_->Synchronize(device_->Fill(Queue::kCompute, import->base, 0x21, offer.bytes));
  EXPECT_EQ(ByteAt(import->base), 0x21);
  EXPECT_TRUE(device_->TakeFault().ok());
  device_->ReleaseImport(import->id);
  for (int i = 0; i < 100 && FreeBytes() + 4 * kMiB < before; ++i) usleep(20'000);
  EXPECT_GE(FreeBytes() + 4 * kMiB, before);
}

TEST_F(CudaDevice, RefusesHandlesThatAreNone) {
  ImportSource source;
  source.kind = MemoryKind::kDeviceIpc;
  source.bytes = 4096;
  EXPECT_EQ(device_->ImportMemory(source).status().code(), wire::Code::kInvalidArgument);
  std::mt19937 random(11);
  for (int round = 0; round < 20; ++round) {
    for (std::byte& byte : source.handle) byte = static_cast<std::byte>(random());
    EXPECT_FALSE(device_->ImportMemory(source).ok());
  }
  const int file = memfd_create("none", MFD_CLOEXEC);
  ImportSource vmm;
  vmm.kind = MemoryKind::kDeviceVmm;
  const std::vector<int> fds{file};
  vmm.fds = fds;
  vmm.handle_bytes = 2 * kMiB;
  vmm.bytes = 2 * kMiB;
  const auto foreign = device_->ImportMemory(vmm);
  EXPECT_EQ(foreign.status().code(), wire::Code::kInvalidArgument) << foreign.status().message();
  vmm.handle_bytes = 4097;
  EXPECT_EQ(device_->ImportMemory(vmm).status().code(), wire::Code::kInvalidArgument);
  vmm.fds = {};
  EXPECT_EQ(device_->ImportMemory(vmm).status().code(), wire::Code::kInvalidArgument);
  close(file);
  EXPECT_TRUE(device_->TakeFault().ok());
}

TEST_F(CudaDevice, MapsSeveralHandlesAsOneRange) {
  const std::uint64_t before = FreeBytes();
  testing::CudaHelper helper("OffersPhysicalHandles");
  std::vector<int> fds;
  const auto offer = helper.Receive<testing::VmmOffer>(&fds);
  ASSERT_EQ(fds.size(), 3U);
  ImportSource source;
  source.kind = MemoryKind::kDeviceVmm;
  source.fds = fds;
  source.handle_bytes = offer.handle_bytes;
  source.bytes = 3 * offer.handle_bytes + 1;
  EXPECT_EQ(device_->ImportMemory(source).status().code(), wire::Code::kOutOfRange);
  source.bytes = 3 * offer.handle_bytes - 5;
  ImportSource twice = source;
  twice.handle_bytes *= 2;
  EXPECT_FALSE(device_->ImportMemory(twice).ok());  // longer than the handles are
  const auto start = std::chrono::steady_clock::now();
  const auto import = device_->ImportMemory(source);
  ASSERT_TRUE(import.ok()) << import.status().message();
  std::printf("3 physical handles of %llu MiB: %.0f us to map\n",
              static_cast<unsigned long long>(offer.handle_bytes / kMiB), Seconds(start) * 1e6);
  for (const int fd : fds) close(fd);
  helper.Kill();
  for (std::uint64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(ByteAt(import->base + i * offer.handle_bytes), static_cast<int>(i + 1));
  }
  device_->Synchronize(device_->Fill(Queue::kLoad, import->base, 9, source.bytes));  // across the seams
  EXPECT_EQ(ByteAt(import->base + source.bytes - 1), 9);
  device_->ReleaseImport(import->id);
  for (int i = 0; i < 100 && FreeBytes() + 4 * kMiB < before; ++i) usleep(20'000);
  EXPECT_GE(FreeBytes() + 4 * kMiB, before);
}

TEST_F(CudaDevice, CopiesBothWaysAtOnceAtTheRateOfTheLink) {
  constexpr std::uint64_t kBytes = 512 * kMiB;
  const auto segment = device_->AllocateSegment(512, 2 * kMiB, 0);
  const auto region = device_->ReserveHost(2 * kBytes);
  ASSERT_TRUE(segment.ok() && region.ok());
  std::byte* const in = segment->base;
  std::byte* const out = segment->base + kBytes;
  const auto both = [&](bool load, bool store) {
    double best = 1e9;
    for (int round = 0; round < 4; ++round) {  // the first one pins
      const auto start = std::chrono::steady_clock::now();
      Event loaded;
      Event stored;
      for (std::uint64_t at = 0; at < kBytes; at += 16 * kMiB) {
        if (load) loaded = device_->Copy(Queue::kLoad, in + at, region->base + at, 16 * kMiB);
        if (store) stored = device_->Copy(Queue::kStore, region->base + kBytes + at, out + at, 16 * kMiB);
      }
      device_->Synchronize(loaded);
      device_->Synchronize(stored);
      best = std::min(best, Seconds(start));
    }
    return static_cast<double>(kBytes) / best / 1e9;
  };
  const double load = both(true, false);
  const double store = both(false, true);
  const double overlapped = both(true, true);
  const auto base = testing::PlainCopyRates(kBytes);
  std::printf(
      "copies, GB/s: to the device %.1f (cudaMemcpyAsync alone %.1f), back %.1f (%.1f), both at once "
      "%.1f each way (%.1f)\n",
      load, base.load, store, base.store, overlapped, base.both);
  EXPECT_GT(load, 0.9 * base.load);
  EXPECT_GT(store, 0.9 * base.store);
  EXPECT_GT(overlapped, 0.9 * base.both);
  EXPECT_EQ(device_->Info().unpinned_copies, 0U);
  EXPECT_GE(device_->Info().pinned_host_bytes, 2 * kBytes);
}

TEST_F(CudaDevice, ManagedFramesAreFilledAtLeastAsFastAsByPrefetch) {
  constexpr std::uint64_t kBytes = 512 * kMiB;
  device_.reset();
  if (const std::string why = WhyNotHere(kManaged); !why.empty()) GTEST_SKIP() << why;
  auto opened = OpenDevice(kManaged);
  ASSERT_TRUE(opened.ok());
  device_ = std::move(*opened);
  const auto region = device_->ReserveHost(kBytes);
  std::vector<DeviceSegment> segments;
  for (int i = 0; i < 8; ++i) segments.push_back(*device_->AllocateSegment(32, 2 * kMiB, 0));
  const auto rate = [&](bool load) {
    double best = 1e9;
    for (int round = 0; round < 4; ++round) {
      const auto start = std::chrono::steady_clock::now();
      Event last;
      for (std::size_t i = 0; i < segments.size(); ++i) {
        std::byte* const host = region->base + i * 64 * kMiB;
        last = load ? device_->Copy(Queue::kLoad, segments[i].base, host, 64 * kMiB)
                    : device_->Copy(Queue::kStore, host, segments[i].base, 64 * kMiB);
      }
      device_->Synchronize(last);
      best = std::min(best, Seconds(start));
    }
    return static_cast<double>(kBytes) / best / 1e9;
  };
  const double load = rate(true);
  const double store = rate(false);
  const auto base = testing::PrefetchRates(kBytes);
  std::printf("managed frames, GB/s: to the device %.1f (prefetch %.1f), back %.1f (prefetch %.1f)\n", load,
              base.load, store, base.store);
  EXPECT_GT(load, 0.8 * base.load);
  EXPECT_GT(store, 0.8 * base.store);
  for (const DeviceSegment& segment : segments) device_->FreeSegment(segment.id);
}

// Where the machine has two GPUs.
TEST_F(CudaDevice, MemoryOfAnotherDeviceIsReachedOrRefusedNamingBoth) {
  const auto listed = ListDevices();
  if (listed.size() < 3) GTEST_SKIP() << "one GPU";
  const std::string ours = device_->Info().uuid;
  const std::string theirs = listed[2].uuid;
  const auto names_both = [&](const wire::Status& s) {
    EXPECT_EQ(s.code(), wire::Code::kUnsupported) << s.message();
    EXPECT_NE(s.message().find(ours), std::string::npos) << s.message();
    EXPECT_NE(s.message().find(theirs), std::string::npos) << s.message();
  };
  testing::CudaHelper helper("OffersAnAllocationOfTheSecondDevice");
  const auto offer = helper.Receive<testing::IpcOffer>();
  // The driver opens a handle of a peer for us without a word about whose it is.
  if (const auto peer = device_->ImportMemory(IpcSource(offer)); peer.ok()) {
    EXPECT_EQ(ByteAt(peer->base + offer.bytes - 1), 0x5A);
    device_->ReleaseImport(peer->id);
  } else {
    EXPECT_EQ(peer.status().code(), wire::Code::kUnsupported) << peer.status().message();
  }
  testing::CudaHelper second("OffersPhysicalHandlesOfTheSecondDevice");
  std::vector<int> fds;
  ImportSource source;
  source.kind = MemoryKind::kDeviceVmm;
  source.handle_bytes = source.bytes = second.Receive<testing::VmmOffer>(&fds).handle_bytes;
  source.fds = std::span(fds).first(1);
  names_both(device_->ImportMemory(source).status());
  // By its own device both are taken, and one thread drives the two devices in turn.
  auto other = OpenDevice({"cuda", 0, 0, theirs});
  ASSERT_TRUE(other.ok());
  EXPECT_EQ((*other)->Info().uuid, theirs);
  EXPECT_TRUE((*other)->ImportMemory(source).ok());
  const auto here = device_->AllocateSegment(1, 2 * kMiB, 0);
  const auto there = (*other)->AllocateSegment(1, 2 * kMiB, 0);
  ASSERT_TRUE(here.ok() && there.ok());
  for (int i = 0; i < 50; ++i) {
    device_->Fill(Queue::kCompute, here->base, i, 2 * kMiB);
    (*other)->Fill(Queue::kCompute, there->base, i + 100, 2 * kMiB);
  }
  auto* const host = (*other)->AllocateScratch(1);
  (*other)->Synchronize((*other)->Copy(Queue::kCompute, host, there->base, 1));
  device_->Synchronize(device_->Fill(Queue::kCompute, here->base, 49, 1));
  EXPECT_EQ(std::to_integer<int>(*host), 149);
  EXPECT_TRUE(device_->TakeFault().ok());
  EXPECT_TRUE((*other)->TakeFault().ok());
  device_->Synchronize(device_->Copy(Queue::kStore, host, here->base, 1));
  EXPECT_EQ(std::to_integer<int>(*host), 49);
  for (const int fd : fds) close(fd);
}

TEST_F(CudaDevice, UnsharingWaitsForPendingSignals) {
  const auto segment = device_->AllocateSegment(64, 2 * kMiB, 0);
  ASSERT_TRUE(segment.ok());
  const int fd = memfd_create("session", MFD_CLOEXEC);
  ASSERT_EQ(ftruncate(fd, 4096), 0);
  void* const ours = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  for (std::uint64_t round = 1; round <= 20; ++round) {
    ASSERT_TRUE(device_->ShareWords(ours, 4096).ok());
    device_->Fill(Queue::kCompute, segment->base, 1, 128 * kMiB);
    device_->Signal(Queue::kCompute, static_cast<std::atomic<std::uint64_t>*>(ours), round);
    device_->UnshareWords(ours);
    EXPECT_EQ(*static_cast<std::uint64_t*>(ours), round);
  }
  EXPECT_TRUE(device_->TakeFault().ok());
  munmap(ours, 4096);
  close(fd);
}

TEST_F(CudaDevice, HostFramesKeepTheirContentAcrossPieces) {
  const std::uint64_t bytes = 600 * kMiB;  // three pieces
  const auto region = device_->ReserveHost(bytes);
  const auto segment = device_->AllocateSegment(16, 2 * kMiB, 0);
  ASSERT_TRUE(region.ok() && segment.ok());
  std::byte* const seam = region->base + 256 * kMiB - 3 * kMiB;
  auto* const values = reinterpret_cast<std::uint32_t*>(seam);
  for (std::uint32_t i = 0; i < 32 * kMiB / 4; ++i) values[i] = i * 2654435761U;
  device_->Copy(Queue::kLoad, segment->base, seam, 32 * kMiB);
  device_->Synchronize(device_->Fill(Queue::kLoad, seam, 0, 32 * kMiB));
  ASSERT_EQ(values[8 * kMiB - 1], 0U);
  device_->Synchronize(device_->Copy(Queue::kStore, seam, segment->base, 32 * kMiB));
  for (std::uint32_t i = 0; i < 32 * kMiB / 4; ++i) ASSERT_EQ(values[i], i * 2654435761U);
}

TEST_F(CudaDevice, WhatIsEnqueuedCostsLittle) {
  const auto segment = device_->AllocateSegment(1, 2 * kMiB, 0);
  ASSERT_TRUE(segment.ok());
  const auto time = [](int rounds, const auto& body) {
    body();
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < rounds; ++i) body();
    return Seconds(start) / rounds * 1e6;
  };
  const double scratch = time(100'000, [&] { device_->FreeScratch(device_->AllocateScratch(16)); });
  Event last;
  const double fill = time(200, [&] { last = device_->Fill(Queue::kCompute, segment->base, 0, 256); });
  device_->Synchronize(last);
  const double round_trip =
      time(200, [&] { device_->Synchronize(device_->Fill(Queue::kCompute, segment->base, 0, 256)); });
  const double done = time(100'000, [&] { static_cast<void>(device_->Done(last)); });
  const double info = time(20, [&] { static_cast<void>(device_->Info()); });
  std::printf("us: scratch %.3f, enqueue %.2f, enqueue and wait %.2f, done %.4f, info %.1f\n", scratch, fill,
              round_trip, done, info);
  EXPECT_LT(scratch, 1.0);
  EXPECT_LT(round_trip, 100.0);
}

TEST_F(CudaDevice, FindsOutWhetherMemorySurvivesItsExporter) {
  for (int round = 0; round < 2; ++round) {
    const auto start = std::chrono::steady_clock::now();
    auto probe = IpcProbe::Start(*device_, testing::HelperCommand("ExportsForAProbe"));
    ASSERT_TRUE(probe.ok()) << probe.status().message();
    std::optional<wire::Result<bool>> answer;
    while (!(answer = (*probe)->Poll())) {
      usleep(100);
      ASSERT_LT(Seconds(start), 20);
    }
    ASSERT_TRUE(answer->ok()) << answer->status().message();
    std::printf("inter-process memory survives its exporter: %s, after %.0f ms\n", **answer ? "yes" : "no",
                Seconds(start) * 1e3);
  }
  // A helper that ends at once is an answer too.
  auto probe = IpcProbe::Start(*device_, {"/bin/false"});
  ASSERT_TRUE(probe.ok());
  std::optional<wire::Result<bool>> answer;
  while (!(answer = (*probe)->Poll())) usleep(1000);
  EXPECT_FALSE(answer->ok());
  EXPECT_FALSE(IpcProbe::Start(*device_, {"/nowhere/at/all"}).ok());
}

// In another process: a sticky fault ends all work of the one that has it.
TEST_F(CudaDevice, FaultsAreStickyAndNothingCompletesAfterwards) {
  testing::CudaHelper helper("Faults");
  const auto seen = helper.Receive<testing::FaultReport>();
  EXPECT_EQ(seen.before, static_cast<int>(wire::Code::kOk));
  EXPECT_EQ(seen.after, static_cast<int>(wire::Code::kDeviceFault));
  EXPECT_EQ(seen.again, static_cast<int>(wire::Code::kDeviceFault));
  EXPECT_EQ(seen.done, 0);
  EXPECT_EQ(seen.signalled, 0) << "a client was told that work is done which failed";
  std::printf("%s\n", seen.message);
  EXPECT_EQ(helper.Receive<int>(), 1) << "the device's end hangs behind a fault";
  // Ours is untouched.
  const auto segment = device_->AllocateSegment(1, 2 * kMiB, 0);
  ASSERT_TRUE(segment.ok());
  device_->Synchronize(device_->Fill(Queue::kCompute, segment->base, 4, 64));
  EXPECT_EQ(ByteAt(segment->base), 4);
  EXPECT_TRUE(device_->TakeFault().ok());
}

}  // namespace
}  // namespace bitpager::kernels
