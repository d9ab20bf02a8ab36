// Facts out of fixture trees (files as real machines show them), and budgets out of facts. One thread.
#include "daemon/machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace bitpager::daemon {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using wire::Code;

constexpr std::uint64_t kMiB = 1ULL << 20;
constexpr std::uint64_t kGiB = 1ULL << 30;

class Tree : public ::testing::Test {
 protected:
  Tree() {
    char name[] = "/tmp/bitpager-tree-XXXXXX";
    root_ = ::mkdtemp(name);
    Write("/proc/meminfo",
          "MemTotal:       65843204 kB\nMemFree:         1234 kB\nMemAvailable:   33554432 kB\n"
          "SwapTotal:       2097152 kB\nSwapFree:        1048576 kB\n");
    Write(
        "/proc/cpuinfo",
        "processor\t: 0\nmodel name\t: Test CPU @ 2.0GHz\nflags\t\t: fpu sse2 avx2 fma\n\nprocessor\t: 1\n");
    Write("/proc/sys/kernel/osrelease", "6.1.0-18-amd64\n");
    Write("/proc/self/status", "Name:\tx\nCapEff:\t0000000000000000\n");
  }
  ~Tree() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  MachineFacts Read() {
    MachineFacts facts;
    ReadMachineFiles(root_, facts);
    return facts;
  }
  // A systemd machine with the unified hierarchy; this process is in a service within a slice.
  void V2(const std::string& path = "/system.slice/bitpagerd.service") {
    Write("/proc/self/cgroup", "0::" + path + "\n");
    Write("/proc/self/mountinfo",
          "22 28 0:20 / /proc rw,nosuid shared:12 - proc proc rw\n"
          "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 "
          "rw,nsdelegate,memory_recursiveprot\n");
  }
  // Docker on a v1 machine without a cgroup namespace: paths of the host, the container's subtree mounted.
  void V1Docker() {
    Write("/proc/self/cgroup",
          "11:cpu,cpuacct:/docker/abc\n9:memory:/docker/abc\n1:name=systemd:/docker/abc\n0::/docker/abc\n");
    Write("/proc/self/mountinfo",
          "640 630 0:30 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro,nosuid master:13 - cgroup cgroup "
          "rw,cpu,cpuacct\n"
          "644 630 0:34 /docker/abc /sys/fs/cgroup/memory ro,nosuid,nodev master:17 - cgroup cgroup "
          "rw,memory\n");
  }

  std::string root_;
};

TEST_F(Tree, ReadsMemoryProcessorAndKernel) {
  const MachineFacts facts = Read();
  EXPECT_EQ(facts.mem_total_bytes, 65843204ULL << 10);
  EXPECT_EQ(facts.mem_available_bytes, 32 * kGiB);
  EXPECT_EQ(facts.swap_total_bytes, 2 * kGiB);
  EXPECT_EQ(facts.swap_free_bytes, kGiB);
  EXPECT_EQ(facts.cpu_model, "Test CPU @ 2.0GHz");
  EXPECT_THAT(facts.cpu_flags, Contains("avx2"));
  EXPECT_EQ(facts.kernel_release, "6.1.0-18-amd64");
  EXPECT_FALSE(facts.wsl2);
  EXPECT_FALSE(facts.may_exceed_memlock);
  EXPECT_THAT(facts.unread, IsEmpty());
  EXPECT_EQ(facts.cgroup.version, 0);
  EXPECT_EQ(facts.RoomBytes(), 32 * kGiB);
  EXPECT_EQ(facts.RoomSource(), "MemAvailable");
}

TEST_F(Tree, ReportsWhatCannotBeRead) {
  std::filesystem::remove(root_ + "/proc/meminfo");
  EXPECT_THAT(Read().unread, Contains(HasSubstr("no MemAvailable")));
}

TEST_F(Tree, V2TakesTheTightestLevelWithoutReclaimableCache) {
  V2();
  const std::string service = "/sys/fs/cgroup/system.slice/bitpagerd.service";
  Write(service + "/memory.max", "max\n");
  Write(service + "/memory.high", "max\n");
  Write("/sys/fs/cgroup/system.slice/memory.max", std::to_string(8 * kGiB) + "\n");
  Write("/sys/fs/cgroup/system.slice/memory.current", std::to_string(3 * kGiB) + "\n");
  Write("/sys/fs/cgroup/system.slice/memory.stat",
        "anon 1073741824\nfile 2147483648\ninactive_file 1073741824\nactive_file 5\n");
  const MachineFacts facts = Read();
  EXPECT_EQ(facts.cgroup.version, 2);
  EXPECT_EQ(facts.cgroup.path, "/system.slice/bitpagerd.service");
  EXPECT_EQ(facts.cgroup.limit_bytes, 8 * kGiB);
  EXPECT_EQ(facts.cgroup.usage_bytes, 2 * kGiB);
  EXPECT_EQ(facts.cgroup.limited_at, "/system.slice");
  EXPECT_EQ(facts.RoomBytes(), 6 * kGiB);
  EXPECT_THAT(facts.RoomSource(), HasSubstr("/system.slice"));
}

TEST_F(Tree, V2MemoryHighCountsAsALimit) {
  V2();
  const std::string service = "/sys/fs/cgroup/system.slice/bitpagerd.service";
  Write(service + "/memory.max", std::to_string(8 * kGiB) + "\n");
  Write(service + "/memory.high", std::to_string(2 * kGiB) + "\n");
  Write(service + "/memory.current", std::to_string(3 * kGiB) + "\n");
  EXPECT_EQ(Read().cgroup.limit_bytes, 2 * kGiB);
  EXPECT_EQ(Read().RoomBytes(), 0U) << "used above the limit is no room, not a wrap";
}

TEST_F(Tree, V2WithoutLimits) {
  V2();
  Write("/sys/fs/cgroup/system.slice/memory.max", "max\n");
  EXPECT_EQ(Read().cgroup.version, 2);
  EXPECT_FALSE(Read().cgroup.limit_bytes.has_value());
}

TEST_F(Tree, V2InANamespaceSeesItsOwnRoot) {
  V2("/");
  Write("/sys/fs/cgroup/memory.max", "536870912\n");
  Write("/sys/fs/cgroup/memory.current", "104857600\n");
  EXPECT_EQ(Read().RoomBytes(), 412 * kMiB);
  V2("/../../other.slice");
  EXPECT_EQ(Read().RoomBytes(), 412 * kMiB) << "a path outside the namespace";
}

TEST_F(Tree, V1DockerWithoutANamespace) {
  V1Docker();
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648\n");
  Write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "1073741824\n");
  Write("/sys/fs/cgroup/memory/memory.stat", "cache 7\ninactive_file 1\ntotal_inactive_file 536870912\n");
  const MachineFacts facts = Read();
  EXPECT_EQ(facts.cgroup.version, 1);
  EXPECT_EQ(facts.cgroup.limit_bytes, 2 * kGiB);
  EXPECT_EQ(facts.cgroup.usage_bytes, 512 * kMiB);
  EXPECT_EQ(facts.RoomBytes(), 1536 * kMiB);
}

TEST_F(Tree, V1UnlimitedIsNoLimit) {
  V1Docker();
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  Write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "1073741824\n");
  EXPECT_FALSE(Read().cgroup.limit_bytes.has_value());
  EXPECT_EQ(Read().RoomBytes(), 32 * kGiB);
}

TEST_F(Tree, HybridUsesTheV1MemoryController) {
  Write("/proc/self/cgroup", "4:memory:/api/x\n1:name=systemd:/\n0::/\n");
  Write("/proc/self/mountinfo",
        "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n");
  Write("/sys/fs/cgroup/memory/api/memory.limit_in_bytes", "1073741824\n");
  Write("/sys/fs/cgroup/memory/api/memory.usage_in_bytes", "0\n");
  EXPECT_EQ(Read().cgroup.version, 1);
  EXPECT_EQ(Read().cgroup.limited_at, "/api");
  EXPECT_EQ(Read().RoomBytes(), kGiB);
}

TEST_F(Tree, CpuQuotaIsTheLeastOnTheWay) {
  V2();
  Write("/sys/fs/cgroup/system.slice/bitpagerd.service/cpu.max", "max 100000\n");
  EXPECT_FALSE(Read().cpu_quota.has_value());
  Write("/sys/fs/cgroup/system.slice/cpu.max", "150000 100000\n");
  EXPECT_DOUBLE_EQ(Read().cpu_quota.value(), 1.5);
  V1Docker();
  Write("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  Write("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  EXPECT_FALSE(Read().cpu_quota.has_value());
  Write("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "400000\n");
  EXPECT_DOUBLE_EQ(Read().cpu_quota.value(), 4);
}

TEST_F(Tree, SeesContainersWslAndGpus) {
  EXPECT_EQ(Read().container, "");
  Write("/proc/1/cgroup", "0::/kubepods/besteffort/pod1/abc\n");
  EXPECT_EQ(Read().container, "kubernetes");
  Write("/run/systemd/container", "lxc\n");
  EXPECT_EQ(Read().container, "lxc");
  Write("/.dockerenv", "");
  EXPECT_EQ(Read().container, "docker");
  Write("/proc/sys/kernel/osrelease", "5.15.153.1-microsoft-standard-WSL2\n");
  EXPECT_TRUE(Read().wsl2);
  Write("/proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:16:06 UTC 2025\n");
  Write("/dev/nvidia0", "");
  Write("/dev/nvidia1", "");
  Write("/dev/nvidiactl", "");
  Write("/dev/nvidia-uvm", "");
  EXPECT_EQ(Read().nvidia_driver, "580.65.06");
  EXPECT_EQ(Read().nvidia_devices, 2);
  Write("/proc/self/status", "Name:\tx\nCapEff:\t0000000000004000\n");
  EXPECT_TRUE(Read().may_exceed_memlock);
}

TEST(ReadMachine, OfThisMachine) {
  const MachineFacts facts = ReadMachine();
  EXPECT_THAT(facts.unread, IsEmpty());
  EXPECT_GT(facts.mem_available_bytes, 0U);
  EXPECT_LE(facts.mem_available_bytes, facts.mem_total_bytes);
  EXPECT_GE(facts.affinity_processors, 1);
  EXPECT_GE(facts.allowed_processors, 1);
  EXPECT_LE(facts.allowed_processors, facts.affinity_processors);
  EXPECT_TRUE(facts.has_memfd);
  EXPECT_TRUE(facts.has_seqpacket);
  EXPECT_GT(facts.open_files_limit, 0U);
}

MachineFacts With(std::uint64_t available) {
  MachineFacts facts;
  facts.mem_total_bytes = 64 * kGiB;
  facts.mem_available_bytes = available;
  return facts;
}

SizeSetting Bytes(std::uint64_t bytes) {
  return {SizeSetting::Kind::kBytes, bytes, 0};
}

TEST(ResolveBudgets, DefaultsAreSharesOfTheRoomInWholePages) {
  const auto budgets = ResolveBudgets({}, With(4 * kGiB + 12345), {});
  ASSERT_TRUE(budgets.ok());
  EXPECT_EQ(budgets->device_bytes, kGiB);
  EXPECT_EQ(budgets->host_bytes, 2 * kGiB);
  EXPECT_EQ(budgets->job_device_quota_bytes, 0U);
  EXPECT_EQ(budgets->room_source, "MemAvailable");
}

TEST(ResolveBudgets, CgroupRoomBoundsThem) {
  MachineFacts facts = With(32 * kGiB);
  facts.cgroup.version = 2;
  facts.cgroup.limit_bytes = 2 * kGiB;
  facts.cgroup.usage_bytes = kGiB;
  facts.cgroup.limited_at = "/a";
  EXPECT_EQ(ResolveBudgets({}, facts, {})->device_bytes, 256 * kMiB);
  Config config;
  config.device_budget = Bytes(3 * kGiB);
  const auto refused = ResolveBudgets(config, facts, {});
  EXPECT_EQ(refused.status().code(), Code::kBudgetExceeded);
  EXPECT_THAT(refused.status().message(),
              AllOf(HasSubstr("3221225472 bytes"), HasSubstr("2147483648 bytes"), HasSubstr("cgroup /a"),
                    HasSubstr("1073741824 bytes"), HasSubstr("Hint: ")));
}

TEST(ResolveBudgets, DeviceAndHostShareOneMemory) {
  Config config;
  config.device_budget = Bytes(3 * kGiB);
  const auto rest = ResolveBudgets(config, With(4 * kGiB), {});
  EXPECT_EQ(rest->host_bytes, kGiB) << "the default takes what is left";
  config.host_budget = Bytes(2 * kGiB);
  const auto refused = ResolveBudgets(config, With(4 * kGiB), {});
  EXPECT_EQ(refused.status().code(), Code::kBudgetExceeded);
  EXPECT_THAT(refused.status().message(),
              AllOf(HasSubstr("beside a device budget of 3 GiB"), HasSubstr("1 GiB")));
  config.host_budget = {SizeSetting::Kind::kPercent, 0, 10};
  EXPECT_EQ(ResolveBudgets(config, With(4 * kGiB), {})->host_bytes, 4 * kGiB / 10 / (kMiB / 2) * (kMiB / 2));
}

TEST(ResolveBudgets, UnderOneWindowIsRefusedWithTheBytes) {
  Config config;
  config.device_budget = Bytes(15 * kMiB);  // a window has 32 pages of 512 KiB
  const auto refused = ResolveBudgets(config, With(4 * kGiB), {});
  EXPECT_EQ(refused.status().code(), Code::kBudgetExceeded);
  EXPECT_THAT(refused.status().message(),
              AllOf(HasSubstr("16 MiB"), HasSubstr("15 MiB"), HasSubstr("Hint: ")));
  config.device_budget = Bytes(16 * kMiB);
  EXPECT_TRUE(ResolveBudgets(config, With(4 * kGiB), {}).ok());
  config.host_budget = Bytes(kMiB / 4);
  EXPECT_FALSE(ResolveBudgets(config, With(4 * kGiB), {}).ok()) << "no page";
}

TEST(ResolveBudgets, MemlockCountsOnlyWhereHostMemoryIsPinned) {
  MachineFacts facts = With(4 * kGiB);
  facts.memlock_limit_bytes = 64 * kMiB;
  EXPECT_EQ(ResolveBudgets({}, facts, {})->host_bytes, 2 * kGiB);
  DeviceMemory gpu{false, true, 10 * kGiB, 20 * kGiB};
  const auto pinned = ResolveBudgets({}, facts, gpu);
  EXPECT_EQ(pinned->host_bytes, 64 * kMiB);
  EXPECT_EQ(pinned->device_bytes, 9 * kGiB);
  Config config;
  config.host_budget = Bytes(kGiB);
  EXPECT_THAT(ResolveBudgets(config, facts, gpu).status().message(),
              AllOf(HasSubstr("RLIMIT_MEMLOCK"), HasSubstr("LimitMEMLOCK=infinity")));
  facts.may_exceed_memlock = true;
  EXPECT_TRUE(ResolveBudgets(config, facts, gpu).ok());
}

TEST(ResolveBudgets, QuotasFollowTheBudgets) {
  Config config;
  config.job_device_quota = {SizeSetting::Kind::kPercent, 0, 50};
  EXPECT_EQ(ResolveBudgets(config, With(4 * kGiB), {})->job_device_quota_bytes, 512 * kMiB);
  config.job_device_quota = Bytes(kMiB);
  EXPECT_FALSE(ResolveBudgets(config, With(4 * kGiB), {}).ok()) << "under one window";
}

TEST(ResolveBudgets, UnknownMemoryIsAnErrorNotAGuess) {
  EXPECT_EQ(ResolveBudgets({}, MachineFacts{}, {}).status().code(), Code::kUnsupported);
}

TEST(DeviceOptionsOf, ThreadsFollowTheQuotaUnlessGiven) {
  MachineFacts facts;
  facts.allowed_processors = 3;
  Config config;
  EXPECT_EQ(DeviceOptionsOf(config, facts).threads, 3);
  config.device_threads = 7;
  EXPECT_EQ(DeviceOptionsOf(config, facts).threads, 7);
}

}  // namespace
}  // namespace bitpager::daemon
