// What every device must do, as a parameterised suite. A device joins by one instantiation:
//   INSTANTIATE_TEST_SUITE_P(Cpu, DeviceConformance, ::testing::Values(DeviceOptions{"cpu", 0, 2}));
// Memory used by ops here comes from the device's own segments, scratch, host region and imports.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/device.h"
#include "quant/block.h"
#include "quant/codebook.h"

namespace bitpager::kernels {

// Why a test of such a device cannot run on this machine; empty where it can.
inline std::string WhyNotHere(const DeviceOptions& options) {
  if (options.kind != "cuda") return "";
  std::string why;
  for (const DeviceListing& listed : ListDevices(&why)) {
    if (listed.kind == "cuda" && listed.index == options.index && options.managed && why.empty()) {
      return listed.managed_problem;
    }
  }
  return why;
}

class DeviceConformance : public ::testing::TestWithParam<DeviceOptions> {
 protected:
  static constexpr std::uint64_t kPage = 64 * 1024;
  void SetUp() override {
    if (const std::string why = WhyNotHere(GetParam()); !why.empty()) GTEST_SKIP() << why;
    auto opened = OpenDevice(GetParam());
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    device_ = std::move(*opened);
    auto segment = device_->AllocateSegment(16, kPage, 0);
    ASSERT_TRUE(segment.ok());
    pages_ = segment->base;
  }
  void TearDown() override {
    if (device_ == nullptr) return;
    EXPECT_TRUE(device_->TakeFault().ok());
    for (const Queue queue : {Queue::kLoad, Queue::kStore, Queue::kCompute}) {
      device_->Synchronize(device_->Fill(queue, pages_, 0, 1));
    }
    for (std::byte* at : scratches_) device_->FreeScratch(at);
  }
  std::byte* Page(std::size_t i) { return pages_ + i * kPage; }
  template <typename T>
  T* Scratch(std::size_t count) {
    scratches_.push_back(device_->AllocateScratch(count * sizeof(T)));
    return reinterpret_cast<T*>(scratches_.back());
  }
  static int MemoryFile(std::uint64_t bytes, int seals) {
    const int fd = memfd_create("client", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    EXPECT_EQ(ftruncate(fd, static_cast<off_t>(bytes)), 0);
    if (seals != 0) {
      EXPECT_EQ(fcntl(fd, F_ADD_SEALS, seals), 0);
    }
    return fd;
  }

  std::unique_ptr<Device> device_;
  std::byte* pages_ = nullptr;
  std::vector<std::byte*> scratches_;
};

TEST_P(DeviceConformance, CopiesAndFillsInOrder) {
  auto* host = Scratch<unsigned char>(kPage);
  device_->Fill(Queue::kStore, Page(0), 0x11, kPage);
  device_->Fill(Queue::kStore, Page(0), 0x22, kPage);
  const Event last = device_->Copy(Queue::kStore, host, Page(0), kPage);
  device_->Synchronize(last);
  EXPECT_TRUE(device_->Done(last));
  for (std::uint64_t i = 0; i < kPage; ++i) ASSERT_EQ(host[i], 0x22);
}

TEST_P(DeviceConformance, WaitsAcrossQueues) {
  auto* host = Scratch<unsigned char>(kPage);
  for (int round = 0; round < 200; ++round) {
    const Event load = device_->Fill(Queue::kLoad, Page(1), round, kPage);
    device_->Wait(Queue::kCompute, load);
    const Event compute = device_->Copy(Queue::kCompute, Page(2), Page(1), kPage);
    device_->Wait(Queue::kStore, compute);
    const Event store = device_->Copy(Queue::kStore, host, Page(2), kPage);
    device_->Wait(Queue::kLoad, store);
    device_->Synchronize(store);
    ASSERT_EQ(host[0], static_cast<unsigned char>(round));
    ASSERT_EQ(host[kPage - 1], static_cast<unsigned char>(round));
  }
}

TEST_P(DeviceConformance, CompletesAsynchronouslyAndTellsTheProgressFd) {
  constexpr std::uint32_t kFrames = 1024;
  EXPECT_TRUE(device_->Done(Event{}));
  const auto segment = device_->AllocateSegment(kFrames, kPage, 0);
  const auto region = device_->ReserveHost(kFrames * kPage);
  ASSERT_TRUE(segment.ok() && region.ok());
  // The first touch may prepare the memory: not what is measured here.
  device_->Synchronize(device_->Copy(Queue::kLoad, segment->base, region->base, kFrames * kPage));
  Event last;
  bool enqueued = false;  // 64 MiB were only that; again, as this thread may lose its processor in between
  for (int tries = 0; tries < 50 && !enqueued; ++tries) {
    last = device_->Copy(Queue::kLoad, segment->base, region->base, kFrames * kPage);
    enqueued = !device_->Done(last);
  }
  EXPECT_TRUE(enqueued);
  const bool rings = device_->Info().rings_progress;
  pollfd ready{device_->progress_fd(), POLLIN, 0};
  while (!device_->Done(last)) {
    if (rings) {
      ASSERT_EQ(poll(&ready, 1, 5000), 1);
    }
  }
  std::uint64_t count = 0;
  EXPECT_EQ(read(device_->progress_fd(), &count, 8), rings ? 8 : -1);
  device_->FreeSegment(segment->id);
}

TEST_P(DeviceConformance, SignalsBehindTheQueue) {
  // A session's segment: two mappings, ours and the client's.
  const int fd = MemoryFile(4096, F_SEAL_SHRINK | F_SEAL_GROW);
  void* const ours = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  void* const theirs = mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd, 0);
  ASSERT_TRUE(ours != MAP_FAILED && theirs != MAP_FAILED);
  auto* const word = static_cast<std::atomic<std::uint64_t>*>(ours) + 9;
  auto* const seen = static_cast<std::atomic<std::uint64_t>*>(theirs) + 9;
  ASSERT_TRUE(device_->ShareWords(ours, 4096).ok());
  auto* host = Scratch<unsigned char>(kPage);
  for (const std::uint64_t value : {std::uint64_t{9}, (std::uint64_t{7} << 40) + 3}) {
    device_->Fill(Queue::kCompute, Page(0), static_cast<int>(value % 251), kPage);
    device_->Copy(Queue::kCompute, host, Page(0), kPage);
    device_->Signal(Queue::kCompute, word, value);
    while (seen->load(std::memory_order_acquire) != value) usleep(10);
    // The thread sanitizer takes the two mappings for two memories, so ask ours as well.
    EXPECT_EQ(word->load(std::memory_order_acquire), value);
    EXPECT_EQ(host[kPage - 1], value % 251);
  }
  device_->UnshareWords(ours);
  munmap(ours, 4096);
  munmap(theirs, 4096);
  close(fd);
}

TEST_P(DeviceConformance, HostRegionForgetsWhatIsDecommitted) {
  const auto region = device_->ReserveHost(1 << 20);
  ASSERT_TRUE(region.ok());
  device_->Synchronize(device_->Fill(Queue::kStore, region->base, 5, 1 << 20));
  EXPECT_EQ(std::to_integer<int>(region->base[4096]), 5);
  device_->Synchronize(device_->DecommitHost(region->base + 4096, 4096));
  device_->Synchronize(device_->Fill(Queue::kStore, region->base + 4096, 6, 16));
  EXPECT_EQ(std::to_integer<int>(region->base[4096]), 6);
  EXPECT_EQ(std::to_integer<int>(region->base[0]), 5);
}

TEST_P(DeviceConformance, RefusesImpossibleSegments) {
  EXPECT_EQ(device_->AllocateSegment(0, kPage, 0).status().code(), wire::Code::kInvalidArgument);
  EXPECT_EQ(device_->AllocateSegment(1U << 31, std::uint64_t{1} << 30, 0).status().code(),
            wire::Code::kOutOfMemory);
}

TEST_P(DeviceConformance, GivesSegmentsBackAndTakesThemAgain) {
  const std::uint64_t page = std::uint64_t{2} << 20;
  for (int round = 0; round < 3; ++round) {
    std::vector<DeviceSegment> segments;
    for (int i = 0; i < 4; ++i) {
      const auto made = device_->AllocateSegment(4, page, i % 2 == 0 ? 0U : 5U);
      ASSERT_TRUE(made.ok()) << made.status().message();
      segments.push_back(*made);
      EXPECT_EQ(made->fd >= 0, i % 2 == 1 && device_->Info().exports);
    }
    auto* host = Scratch<unsigned char>(8);
    for (std::size_t i = 0; i < segments.size(); ++i) {
      device_->Fill(Queue::kStore, segments[i].base, static_cast<int>(i + 1), 4 * page);
    }
    for (std::size_t i = 0; i < segments.size(); ++i) {
      device_->Copy(Queue::kStore, host + i, segments[i].base + 4 * page - 1, 1);
    }
    device_->Synchronize(device_->Fill(Queue::kStore, Page(0), 0, 1));
    for (std::size_t i = 0; i < segments.size(); ++i) EXPECT_EQ(host[i], i + 1);
    for (const DeviceSegment& segment : segments) device_->FreeSegment(segment.id);
  }
}

TEST_P(DeviceConformance, ScratchIsZeroedAndApart) {
  std::vector<std::pair<unsigned char*, std::size_t>> blocks;
  for (int round = 0; round < 2; ++round) {
    for (const std::size_t bytes : {1UL, 16UL, 257UL, 4096UL, 100000UL, 3UL << 20, 16UL, 1UL << 20}) {
      auto* at = reinterpret_cast<unsigned char*>(device_->AllocateScratch(bytes));
      ASSERT_NE(at, nullptr);
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(at) % 16, 0U);
      for (std::size_t i = 0; i < bytes; ++i) ASSERT_EQ(at[i], 0) << bytes;
      std::memset(at, static_cast<int>(blocks.size() + 1), bytes);
      blocks.emplace_back(at, bytes);
    }
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      for (std::size_t i = 0; i < blocks[b].second; ++i) ASSERT_EQ(blocks[b].first[i], b + 1);
      device_->FreeScratch(reinterpret_cast<std::byte*>(blocks[b].first));
    }
    blocks.clear();
  }
  EXPECT_EQ(device_->AllocateScratch(~std::uint64_t{0} / 4), nullptr);
}

TEST_P(DeviceConformance, ImportsAndReleasesClientMemory) {
  const int fd = MemoryFile(8192, F_SEAL_SHRINK);
  auto import = device_->ImportMemory({fd, 8192, true, true});
  ASSERT_TRUE(import.ok()) << import.status().message();
  device_->Synchronize(device_->Fill(Queue::kCompute, import->base, 3, 8192));
  unsigned char byte = 0;
  EXPECT_EQ(pread(fd, &byte, 1, 8191), 1);
  EXPECT_EQ(byte, 3);
  EXPECT_FALSE(device_->ImportFailed(import->id));
  device_->ReleaseImport(import->id);
  close(fd);
}

TEST_P(DeviceConformance, RefusesBadImports) {
  const int plain = MemoryFile(4096, 0);
  EXPECT_EQ(device_->ImportMemory({plain, 8192, false, true}).status().code(), wire::Code::kOutOfRange);
  EXPECT_EQ(device_->ImportMemory({plain, 4096, true, true}).status().code(), wire::Code::kInvalidArgument);
  EXPECT_EQ(device_->ImportMemory({plain, 0, false, true}).status().code(), wire::Code::kInvalidArgument);
  EXPECT_EQ(device_->ImportMemory({-1, 4096, false, true}).status().code(), wire::Code::kInvalidArgument);
  int pipes[2];
  ASSERT_EQ(pipe(pipes), 0);
  EXPECT_EQ(device_->ImportMemory({pipes[0], 4096, false, true}).status().code(),
            wire::Code::kInvalidArgument);
  const int disk = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  EXPECT_EQ(device_->ImportMemory({disk, 4096, false, false}).status().code(), wire::Code::kInvalidArgument);
  for (const int fd : {plain, pipes[0], pipes[1], disk}) close(fd);
}

TEST_P(DeviceConformance, SurvivesAClientThatShrinksItsMemory) {
  const int fd = MemoryFile(64 * 4096, 0);
  auto good = device_->ImportMemory({fd, 64 * 4096, false, true});
  ASSERT_TRUE(good.ok());
  ASSERT_EQ(ftruncate(fd, 4096), 0);
  device_->Synchronize(device_->Copy(Queue::kCompute, Page(0), good->base, kPage));
  EXPECT_TRUE(device_->ImportFailed(good->id));
  device_->Synchronize(device_->Fill(Queue::kCompute, good->base, 1, 64 * 4096));  // zeros now, writable
  device_->ReleaseImport(good->id);
  close(fd);
}

// ---- ops ----

// Steps `n` parameters twice in pages [first, ...), cut at `cut` units; returns parameters and states'
// planes.
inline std::vector<std::vector<float>> Train(Device& device, std::byte* pages, std::uint64_t page_bytes,
                                             wire::Rule rule, wire::StateBits bits, std::uint64_t n,
                                             std::uint32_t cut, StepReport* report, float* param,
                                             float* grad) {
  const auto layout = optim8bit::MakeStateLayout(rule, bits, page_bytes).value();
  std::vector<StepSpan> spans;
  for (std::uint64_t at = 0, unit = 0; at < n;) {
    const std::uint64_t in_page = unit % layout.units_per_page;
    StepSpan span;
    span.page = pages + unit / layout.units_per_page * page_bytes;
    span.first_unit = static_cast<std::uint32_t>(in_page);
    span.units = static_cast<std::uint32_t>(
        std::min<std::uint64_t>({cut, layout.units_per_page - in_page, optim8bit::UnitsOf(n - at)}));
    span.elements = std::min<std::uint64_t>(n - at, std::uint64_t{span.units} * 256);
    span.param = param + at;
    span.grad = grad + at;
    span.tensor = static_cast<std::uint32_t>(at / 1000);
    spans.push_back(span);
    at += span.elements;
    unit += span.units;
  }
  for (std::uint64_t t = 1; t <= 2; ++t) {
    StepArgs args;
    args.layout = layout;
    args.spans = spans;
    for (StepSpan& span : args.spans) span.zero_page = t == 1;
    args.hypers = {optim8bit::DeriveHyper(rule, {1e-2, 0.9, 0.99, 1e-8, 0.1}, t)};
    args.report = report;
    device.Synchronize(device.Step(std::move(args)));
  }
  const bool coded = bits == wire::StateBits::k8;
  StatePlanesArgs planes;
  planes.layout = layout;
  planes.spans = spans;
  planes.into_pages = false;
  const std::uint64_t plane_bytes = n * (coded ? 1 : 4);
  for (std::uint32_t k = 0; k < layout.states; ++k) {
    planes.planes[k] = device.AllocateScratch(plane_bytes);
    planes.absmax[k] = reinterpret_cast<float*>(device.AllocateScratch(4 * optim8bit::UnitsOf(n)));
  }
  device.Synchronize(device.MoveStates(planes));
  std::vector<std::vector<float>> out{{param, param + n}};
  for (std::uint32_t k = 0; k < layout.states; ++k) {
    std::vector<float> values(n);
    for (std::uint64_t i = 0; i < n; ++i) {
      if (coded) {
        const auto& map = k == 0 ? quant::kSignedDynamicMap : quant::kUnsignedDynamicMap;
        values[i] = map[std::to_integer<std::size_t>(planes.planes[k][i])] * planes.absmax[k][i / 256];
      } else {
        std::memcpy(&values[i], planes.planes[k] + 4 * i, 4);
      }
    }
    out.push_back(values);
    device.FreeScratch(planes.planes[k]);
    device.FreeScratch(reinterpret_cast<std::byte*>(planes.absmax[k]));
  }
  return out;
}

TEST_P(DeviceConformance, StepDoesNotDependOnTheCut) {
  const std::uint64_t n = 60000;  // several pages, a short last block
  auto* param = Scratch<float>(n);
  auto* grad = Scratch<float>(n);
  auto* report = Scratch<StepReport>(1);
  for (const auto rule : {wire::Rule::kAdam, wire::Rule::kLion}) {
    for (const auto bits : {wire::StateBits::k8, wire::StateBits::k32}) {
      std::vector<std::vector<float>> first;
      for (const std::uint32_t cut : {100000U, 1U, 7U}) {
        std::mt19937 random(3);
        std::normal_distribution<float> normal;
        for (std::uint64_t i = 0; i < n; ++i) param[i] = normal(random);
        for (std::uint64_t i = 0; i < n; ++i) grad[i] = normal(random);
        device_->Synchronize(device_->Fill(Queue::kLoad, pages_, 0xA5, 16 * kPage));  // never-written pages
        const auto out = Train(*device_, pages_, kPage, rule, bits, n, cut, report, param, grad);
        if (first.empty()) first = out;
        for (std::size_t v = 0; v < out.size(); ++v) {
          ASSERT_EQ(std::memcmp(out[v].data(), first[v].data(), 4 * n), 0) << "cut " << cut << " plane " << v;
        }
      }
    }
  }
  EXPECT_EQ(report->nonfinite_blocks, 0U);
}

TEST_P(DeviceConformance, StepLeavesNonFiniteBlocksAndReportsThem) {
  const std::uint64_t n = 4096;
  auto* param = Scratch<float>(n);
  auto* grad = Scratch<float>(n);
  auto* report = Scratch<StepReport>(1);
  *report = StepReport{};
  for (std::uint64_t i = 0; i < n; ++i) {
    param[i] = 1.0F;
    grad[i] = 0.5F;
  }
  grad[3000] = std::nanf("");
  grad[3001] = INFINITY;
  grad[1100] = -INFINITY;
  const auto out =
      Train(*device_, pages_, kPage, wire::Rule::kAdam, wire::StateBits::k8, n, 4, report, param, grad);
  EXPECT_EQ(report->nonfinite_blocks, 4U);  // two blocks, two steps
  EXPECT_EQ(report->first_tensor, 1U);
  for (std::uint64_t i = 0; i < n; ++i) {
    const bool bad = i / 256 == 3000 / 256 || i / 256 == 1100 / 256;
    ASSERT_EQ(out[0][i] == 1.0F, bad) << i;
    ASSERT_EQ(out[1][i] == 0.0F, bad) << i;
  }
}

TEST_P(DeviceConformance, ZeroPageIsInitialisedWhole) {
  const auto layout = optim8bit::MakeStateLayout(wire::Rule::kAdam, wire::StateBits::k8, kPage).value();
  auto* param = Scratch<float>(256);
  auto* grad = Scratch<float>(256);
  device_->Fill(Queue::kCompute, Page(0), 0xFF, kPage);
  StepArgs args;
  args.layout = layout;
  args.hypers = {optim8bit::Hyper{}};
  StepSpan span;
  span.page = Page(0);
  span.first_unit = 3;
  span.units = 1;
  span.elements = 256;
  span.param = param;
  span.grad = grad;
  span.zero_page = true;
  args.spans = {span};
  device_->Synchronize(device_->Step(args));
  auto* host = Scratch<unsigned char>(kPage);
  device_->Synchronize(device_->Copy(Queue::kStore, host, Page(0), kPage));
  for (std::uint32_t i = 0; i < layout.plane_bytes; ++i) ASSERT_EQ(host[i], 127);
  for (std::uint32_t i = 0; i < layout.plane_bytes; ++i) ASSERT_EQ(host[layout.plane_bytes + i], 0);
  for (std::uint32_t k = 0; k < 2; ++k) {
    for (std::uint32_t i = 0; i < 4 * layout.units_per_page; ++i) {
      ASSERT_EQ(host[layout.absmax_offset + k * layout.absmax_stride + i], 0);
    }
  }
}

TEST_P(DeviceConformance, QuantizesIntoPagesAndBack) {
  const std::uint64_t n = 300001;  // several pages, a short last block, groups that straddle pages
  auto* in = Scratch<float>(n);
  auto* out = Scratch<float>(n);
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (std::uint64_t i = 0; i < n; ++i) in[i] = normal(random);
  for (const bool nested : {false, true}) {
    WeightFormat format;
    format.layout = quant::MakeWeightLayout(64, nested, kPage).value();
    const std::uint64_t blocks = quant::BlocksOf(n, 64);
    auto* absmax = Scratch<float>(blocks);
    auto* codes = Scratch<std::uint8_t>(blocks);
    auto* absmax2 = Scratch<float>(blocks / 256 + 1);
    auto* offset = Scratch<float>(1);
    device_->BlockAbsmax({in, wire::DType::kF32, n, 64, absmax});
    device_->Synchronize(device_->NestAbsmax({absmax, blocks, codes, absmax2, offset}));
    if (nested) format.offset = *offset;
    QuantizeArgs pack;
    pack.absmax = absmax;
    pack.nested_codes = nested ? codes : nullptr;
    pack.absmax2 = nested ? absmax2 : nullptr;
    DequantizeArgs unpack;
    for (std::uint64_t b = 0; b < blocks; b += format.layout.blocks_per_page) {
      WeightSpan span;
      span.page = Page(b / format.layout.blocks_per_page);
      span.first_global_block = span.page_global_block = b;
      span.blocks =
          static_cast<std::uint32_t>(std::min<std::uint64_t>(format.layout.blocks_per_page, blocks - b));
      span.elements = std::min<std::uint64_t>(n - b * 64, std::uint64_t{span.blocks} * 64);
      pack.spans.push_back(span);
      pack.ins.push_back(in + b * 64);
      unpack.outs.push_back(out + b * 64);
    }
    unpack.spans = pack.spans;
    pack.format = unpack.format = format;
    PackedArgs move;
    move.format = format;
    move.spans = pack.spans;
    device_->Quantize(pack);
    device_->Synchronize(device_->Dequantize(unpack));
    std::vector<std::uint8_t> packed(32);
    float worst = 0;
    for (std::uint64_t b = 0; b < blocks; ++b) {
      const std::uint64_t count = std::min<std::uint64_t>(64, n - b * 64);
      const float scale = nested ? quant::UnnestAbsmax(codes[b], absmax2[b / 256], *offset) : absmax[b];
      float want[64];
      quant::PackBlock4(format.type, wire::DType::kF32, in + b * 64, count, absmax[b], packed.data());
      quant::UnpackBlock4(format.type, wire::DType::kF32, packed.data(), count, scale, want);
      for (std::uint64_t i = 0; i < count; ++i) worst = std::max(worst, std::fabs(want[i] - out[b * 64 + i]));
    }
    EXPECT_EQ(worst, 0.0F) << "nested " << nested;
    // Out to the interchange layout and in again: the same values.
    move.packed = Scratch<std::byte>((n + 1) / 2);
    move.absmax = nested ? nullptr : Scratch<float>(blocks);
    move.nested_codes = nested ? Scratch<std::uint8_t>(blocks) : nullptr;
    move.absmax2 = nested ? Scratch<float>(blocks / 256 + 1) : nullptr;
    move.into_pages = false;
    device_->MovePacked(move);
    device_->Fill(Queue::kCompute, pages_, 0xA5, 16 * kPage);
    move.into_pages = true;
    device_->MovePacked(move);
    const std::vector<float> before(out, out + n);
    device_->Synchronize(device_->Dequantize(unpack));
    EXPECT_EQ(std::memcmp(before.data(), out, 4 * n), 0) << "nested " << nested;
    // In one pass, with absmaxes that the op computes: the same values.
    device_->Fill(Queue::kCompute, pages_, 0xA5, 16 * kPage);
    pack.absmax = nullptr;
    if (nested) {
      auto* const computed = reinterpret_cast<float*>(device_->AllocateKernelScratch(4 * blocks));
      ASSERT_NE(computed, nullptr);
      pack.absmax_out = computed;
      pack.nested_codes = nullptr;
      pack.absmax2 = nullptr;
      device_->Quantize(pack);
      device_->NestAbsmax({computed, blocks, move.nested_codes, move.absmax2, offset});
      move.packed = nullptr;
      device_->MovePacked(move);
      device_->Synchronize(device_->Copy(Queue::kCompute, absmax, computed, 4 * blocks));
      device_->FreeScratch(reinterpret_cast<std::byte*>(computed));
      EXPECT_EQ(*offset, format.offset);
    } else {
      device_->Quantize(pack);
    }
    device_->Synchronize(device_->Dequantize(unpack));
    EXPECT_EQ(std::memcmp(before.data(), out, 4 * n), 0) << "one pass";
  }
}

}  // namespace bitpager::kernels
