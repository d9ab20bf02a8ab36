#include "tests/kernels/cuda_helper.h"

#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <span>
#include <string>

#include "kernels/cuda/driver.h"
#include "kernels/cuda/status.h"
#include "kernels/device.h"
#include "kernels/ipc_probe.h"

namespace bitpager::testing {
namespace {

constexpr int kSocket = 3;  // of the helper

void SendTo(int socket, const void* data, std::size_t bytes, const std::vector<int>& fds) {
  const auto* begin = static_cast<const std::byte*>(data);
  EXPECT_TRUE(wire::SendPacket(socket, std::span(begin, bytes), fds).ok());
}

// Until the other process hangs up or kills this one.
void AwaitTheEnd() {
  pollfd end{kSocket, 0, 0};
  poll(&end, 1, 60'000);
}

const kernels::cuda::Driver& TheDriver() {
  EXPECT_EQ(cudaFree(nullptr), cudaSuccess);
  return **kernels::cuda::LoadDriver();
}

CUdeviceptr MapHandle(const kernels::cuda::Driver& driver, CUmemGenericAllocationHandle handle,
                      std::size_t bytes, int device = 0) {
  CUdeviceptr at = 0;
  EXPECT_EQ(driver.MemAddressReserve(&at, bytes, 0, 0, 0), CUDA_SUCCESS);
  EXPECT_EQ(driver.MemMap(at, bytes, 0, handle, 0), CUDA_SUCCESS);
  CUmemAccessDesc access{};
  access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  access.location.id = device;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  EXPECT_EQ(driver.MemSetAccess(at, bytes, &access, 1), CUDA_SUCCESS);
  return at;
}

// ---- what a helper process runs ----

TEST(CudaHelperProcess, DISABLED_ReadsASegment) {
  const auto& driver = TheDriver();
  wire::Packet packet;
  ASSERT_TRUE(wire::ReceivePacket(kSocket, packet).ok());
  std::uint64_t bytes = 0;
  std::memcpy(&bytes, packet.data.data(), sizeof(bytes));
  CUmemGenericAllocationHandle handle = 0;
  ASSERT_EQ(driver.MemImportFromShareableHandle(
                &handle, reinterpret_cast<void*>(static_cast<std::uintptr_t>(packet.fds[0].get())),
                CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
            CUDA_SUCCESS);
  auto* const at = reinterpret_cast<unsigned char*>(MapHandle(driver, handle, bytes));
  unsigned char byte = 0;
  ASSERT_EQ(cudaMemcpy(&byte, at + bytes - 1, 1, cudaMemcpyDeviceToHost), cudaSuccess);
  ASSERT_EQ(cudaMemset(at, 0x78, bytes), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const int seen = byte;
  SendTo(kSocket, &seen, sizeof(seen), {});
  AwaitTheEnd();
}

void OfferAnAllocation(const kernels::cuda::Driver& driver) {
  IpcOffer offer;
  offer.bytes = 8 << 20;
  void* at = nullptr;
  ASSERT_EQ(cudaMalloc(&at, offer.bytes), cudaSuccess);
  ASSERT_EQ(cudaMemset(at, 0x5A, offer.bytes), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  CUipcMemHandle handle;
  ASSERT_EQ(driver.IpcGetMemHandle(&handle, reinterpret_cast<CUdeviceptr>(at)), CUDA_SUCCESS);
  std::memcpy(offer.handle, &handle, sizeof(handle));
  SendTo(kSocket, &offer, sizeof(offer), {});
  AwaitTheEnd();
}

TEST(CudaHelperProcess, DISABLED_OffersAnAllocation) {
  OfferAnAllocation(TheDriver());
}

TEST(CudaHelperProcess, DISABLED_OffersAnAllocationOfTheSecondDevice) {
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  OfferAnAllocation(TheDriver());
}

void OfferPhysicalHandles(const kernels::cuda::Driver& driver, int device) {
  VmmOffer offer;
  offer.handle_bytes = 20 << 20;
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = device;
  properties.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  std::vector<int> fds;
  for (int i = 0; i < 3; ++i) {
    CUmemGenericAllocationHandle handle = 0;
    ASSERT_EQ(driver.MemCreate(&handle, offer.handle_bytes, &properties, 0), CUDA_SUCCESS);
    auto* const at = reinterpret_cast<void*>(MapHandle(driver, handle, offer.handle_bytes, device));
    ASSERT_EQ(cudaMemset(at, i + 1, offer.handle_bytes), cudaSuccess);
    int fd = -1;
    ASSERT_EQ(driver.MemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
              CUDA_SUCCESS);
    fds.push_back(fd);
  }
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  SendTo(kSocket, &offer, sizeof(offer), fds);
  AwaitTheEnd();
}

TEST(CudaHelperProcess, DISABLED_OffersPhysicalHandles) {
  OfferPhysicalHandles(TheDriver(), 0);
}

TEST(CudaHelperProcess, DISABLED_OffersPhysicalHandlesOfTheSecondDevice) {
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  OfferPhysicalHandles(TheDriver(), 1);
}

TEST(CudaHelperProcess, DISABLED_ExportsForAProbe) {
  ASSERT_EQ(kernels::RunIpcExporter(kernels::ListDevices().back().uuid, kSocket), 0);
}

TEST(CudaHelperProcess, DISABLED_Faults) {
  alarm(60);  // nothing here may hang
  auto opened = kernels::OpenDevice({"cuda"});
  ASSERT_TRUE(opened.ok());
  kernels::Device& device = **opened;
  const auto segment = device.AllocateSegment(1, 2 << 20, 0);
  const auto region = device.ReserveHost(16 << 20);
  ASSERT_TRUE(segment.ok() && region.ok());
  void* const shared = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(shared, MAP_FAILED);
  ASSERT_TRUE(device.ShareWords(shared, 4096).ok());
  device.ExpectHost(region->base, 16 << 20);
  auto* const words = static_cast<std::atomic<std::uint64_t>*>(shared);
  device.Synchronize(device.Fill(kernels::Queue::kCompute, segment->base, 1, 256));
  FaultReport report;
  report.before = static_cast<int>(device.TakeFault().code());
  device.FreeSegment(segment->id);
  // A kernel that reads addresses without memory.
  auto* const absmax = reinterpret_cast<float*>(device.AllocateScratch(4 * 16));
  const auto bad = device.BlockAbsmax({segment->base, wire::DType::kF32, 1024, 64, absmax});
  device.Signal(kernels::Queue::kCompute, &words[0], 1);
  device.DecommitHost(region->base, 16 << 20);
  device.Synchronize(bad);
  const wire::Status fault = device.TakeFault();
  report.after = static_cast<int>(fault.code());
  const auto later = device.Fill(kernels::Queue::kLoad, segment->base, 1, 256);
  report.done = static_cast<int>(device.Done(bad)) + static_cast<int>(device.Done(later));
  report.again = static_cast<int>(device.TakeFault().code());
  for (const auto queue : {kernels::Queue::kLoad, kernels::Queue::kStore, kernels::Queue::kCompute}) {
    device.Signal(queue, &words[1], 1);
  }
  usleep(50'000);
  report.signalled = static_cast<int>(words[0].load() + words[1].load());
  std::strncpy(report.message, fault.message().c_str(), sizeof(report.message) - 1);
  SendTo(kSocket, &report, sizeof(report), {});
  // Neither does what a daemon takes down hang, nor a copy that comes after all.
  device.Copy(kernels::Queue::kStore, region->base, segment->base, 4096);
  device.UnshareWords(shared);
  opened->reset();
  const int ended = 1;
  SendTo(kSocket, &ended, sizeof(ended), {});
}

}  // namespace

CudaHelper::CudaHelper(const char* name) {
  int pair[2] = {-1, -1};
  EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
  socket_.Reset(pair[0]);
  const wire::UniqueFd theirs(pair[1]);
  std::vector<std::string> command = HelperCommand(name);
  std::vector<char*> arguments;
  for (std::string& argument : command) arguments.push_back(argument.data());
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, theirs.get(), kSocket);
  EXPECT_EQ(posix_spawn(&pid_, command[0].c_str(), &actions, nullptr, arguments.data(), environ), 0);
  posix_spawn_file_actions_destroy(&actions);
}

std::vector<std::string> HelperCommand(const char* name) {
  return {"/proc/self/exe", std::string("--gtest_filter=CudaHelperProcess.DISABLED_") + name,
          "--gtest_also_run_disabled_tests", "--gtest_brief=1", "--gtest_output="};
}

CudaHelper::~CudaHelper() {
  Kill();
}

void CudaHelper::Kill() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

void CudaHelper::Send(const void* data, std::size_t bytes, const std::vector<int>& fds) const {
  SendTo(socket_.get(), data, bytes, fds);
}

CopyRates PlainCopyRates(std::uint64_t bytes) {
  void* host[2] = {};
  void* device[2] = {};
  cudaStream_t streams[2] = {};
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(cudaMallocHost(&host[i], bytes), cudaSuccess);
    EXPECT_EQ(cudaMalloc(&device[i], bytes), cudaSuccess);
    EXPECT_EQ(cudaStreamCreateWithFlags(&streams[i], cudaStreamNonBlocking), cudaSuccess);
  }
  const auto rate = [&](bool load, bool store) {
    double best = 1e9;
    for (int round = 0; round < 3; ++round) {
      const auto start = std::chrono::steady_clock::now();
      if (load) {
        EXPECT_EQ(cudaMemcpyAsync(device[0], host[0], bytes, cudaMemcpyDefault, streams[0]), cudaSuccess);
      }
      if (store) {
        EXPECT_EQ(cudaMemcpyAsync(host[1], device[1], bytes, cudaMemcpyDefault, streams[1]), cudaSuccess);
      }
      EXPECT_EQ(cudaStreamSynchronize(streams[0]), cudaSuccess);
      EXPECT_EQ(cudaStreamSynchronize(streams[1]), cudaSuccess);
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return static_cast<double>(bytes) / best / 1e9;
  };
  const CopyRates out{rate(true, false), rate(false, true), rate(true, true)};
  for (int i = 0; i < 2; ++i) {
    static_cast<void>(cudaStreamDestroy(streams[i]));
    static_cast<void>(cudaFree(device[i]));
    static_cast<void>(cudaFreeHost(host[i]));
  }
  return out;
}

CopyRates PrefetchRates(std::uint64_t bytes) {
  const auto& driver = TheDriver();
  void* at = nullptr;
  cudaStream_t stream = nullptr;
  EXPECT_EQ(cudaMallocManaged(&at, bytes), cudaSuccess);
  EXPECT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  const auto rate = [&](CUmemLocationType where) {
    CUmemLocation location{};
    location.type = where;
    const auto start = std::chrono::steady_clock::now();
    EXPECT_EQ(driver.MemPrefetchAsync(reinterpret_cast<CUdeviceptr>(at), bytes, location, 0, stream),
              CUDA_SUCCESS);
    EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    return static_cast<double>(bytes) / 1e9 /
           std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  CopyRates best;
  for (int round = 0; round < 3; ++round) {
    const double load = rate(CU_MEM_LOCATION_TYPE_DEVICE);
    if (round > 0) best.load = std::max(best.load, load);  // the first one moves nothing
    EXPECT_EQ(cudaMemset(at, round, bytes), cudaSuccess);
    best.store = std::max(best.store, rate(CU_MEM_LOCATION_TYPE_HOST));
  }
  static_cast<void>(cudaStreamDestroy(stream));
  static_cast<void>(cudaFree(at));
  return best;
}

}  // namespace bitpager::testing
