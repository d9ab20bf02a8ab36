#include "daemon/machine.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "daemon/cgroup.h"

namespace bitpager::daemon {
namespace {

constexpr int kCapIpcLock = 14;

// First line that starts with `key`, without key, colon and blanks.
std::optional<std::string> FieldOf(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::size_t key_end = line.find_last_not_of(" \t", colon == 0 ? 0 : colon - 1);
    if (line.compare(0, key_end + 1, key) != 0) continue;
    const std::size_t start = line.find_first_not_of(" \t", colon + 1);
    return start == std::string::npos ? std::string() : line.substr(start);
  }
  return std::nullopt;
}

std::string FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

void ReadMeminfo(const std::string& root, MachineFacts& facts) {
  const std::string path = root + "/proc/meminfo";
  const auto read = [&](const char* key, std::uint64_t& out) {
    const auto text = FieldOf(path, key);  // "123 kB"
    std::uint64_t kib = 0;
    if (text && std::istringstream(*text) >> kib) {
      out = kib << 10;
    } else {
      facts.unread.push_back(path + ": no " + key);
    }
  };
  read("MemTotal", facts.mem_total_bytes);
  read("MemAvailable", facts.mem_available_bytes);
  read("SwapTotal", facts.swap_total_bytes);
  read("SwapFree", facts.swap_free_bytes);
}

void ReadCpu(const std::string& root, MachineFacts& facts) {
  const std::string path = root + "/proc/cpuinfo";
  facts.cpu_model = FieldOf(path, "model name").value_or("");
  std::istringstream flags(FieldOf(path, "flags").value_or(""));
  facts.cpu_flags.clear();
  for (std::string flag; flags >> flag;) facts.cpu_flags.push_back(flag);
  if (facts.cpu_flags.empty()) facts.unread.push_back(path + ": no flags");
}

std::string ReadContainer(const std::string& root) {
  std::error_code ignored;
  if (std::filesystem::exists(root + "/run/.containerenv", ignored)) return "podman";
  if (std::filesystem::exists(root + "/.dockerenv", ignored)) return "docker";
  const std::string named = FirstLine(root + "/run/systemd/container");
  if (!named.empty()) return named;
  std::ifstream file(root + "/proc/1/cgroup");
  const std::string cgroups((std::istreambuf_iterator<char>(file)), {});
  if (cgroups.find("kubepods") != std::string::npos) return "kubernetes";
  for (const char* name : {"docker", "libpod", "lxc", "containerd"}) {
    if (cgroups.find(name) != std::string::npos) return name;
  }
  return {};
}

bool IsWsl2(const std::string& kernel_release) {
  std::string lower = kernel_release;
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return lower.find("microsoft") != std::string::npos && lower.find("wsl2") != std::string::npos;
}

// "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun ...": the first word of digits and dots.
std::string ReadNvidiaDriver(const std::string& root) {
  std::istringstream line(FirstLine(root + "/proc/driver/nvidia/version"));
  for (std::string word; line >> word;) {
    const bool version =
        word.find('.') != std::string::npos && word.find_first_not_of("0123456789.") == std::string::npos;
    if (version) return word;
  }
  return {};
}

int CountNvidiaDevices(const std::string& root) {
  std::error_code error;
  int count = 0;
  std::filesystem::directory_iterator entry(root + "/dev", error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    const bool card = name.size() > 6 && name.rfind("nvidia", 0) == 0 &&
                      name.find_first_not_of("0123456789", 6) == std::string::npos;
    count += card ? 1 : 0;
  }
  return count;
}

bool ReadIpcLock(const std::string& root) {
  const std::string text = FieldOf(root + "/proc/self/status", "CapEff").value_or("0");
  return ((std::strtoull(text.c_str(), nullptr, 16) >> kCapIpcLock) & 1U) != 0;
}

int CountAffinity() {
  for (int processors = 1024; processors <= (1 << 20); processors *= 4) {
    cpu_set_t* set = CPU_ALLOC(processors);
    const std::size_t bytes = CPU_ALLOC_SIZE(processors);
    const int rc = ::sched_getaffinity(0, bytes, set);
    const int count = rc == 0 ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (rc == 0) return count;
    if (errno != EINVAL) break;  // EINVAL: the kernel's mask is longer
  }
  return static_cast<int>(std::max(1L, ::sysconf(_SC_NPROCESSORS_ONLN)));
}

bool ProbeMemfd() {
  const int fd = ::memfd_create("bitpager-probe", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return false;
  const bool sealed = ::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0;
  ::close(fd);
  return sealed;
}

bool ProbePidfd() {
#ifndef SYS_pidfd_open
  constexpr long SYS_pidfd_open = 434;
#endif
  const auto fd = static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), 0));
  if (fd < 0) return false;
  ::close(fd);
  return true;
}

bool ProbeSeqpacket() {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return false;
  ::close(pair[0]);
  ::close(pair[1]);
  return true;
}

void ProbeLimits(MachineFacts& facts) {
  rlimit limit{};
  facts.memlock_limit_bytes.reset();
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0) {
    facts.unread.push_back(std::string("RLIMIT_MEMLOCK: ") + std::strerror(errno));
    facts.memlock_limit_bytes = 0;
  } else if (limit.rlim_cur != RLIM_INFINITY) {
    facts.memlock_limit_bytes = limit.rlim_cur;
  }
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) facts.open_files_limit = limit.rlim_cur;
}

}  // namespace

std::uint64_t MachineFacts::RoomBytes() const {
  if (!cgroup.limit_bytes) return mem_available_bytes;
  const std::uint64_t limit = *cgroup.limit_bytes;
  const std::uint64_t room = limit > cgroup.usage_bytes ? limit - cgroup.usage_bytes : 0;
  return std::min(mem_available_bytes, room);
}

std::string MachineFacts::RoomSource() const {
  return RoomBytes() == mem_available_bytes ? "MemAvailable"
                                            : "the memory limit of cgroup " + cgroup.limited_at;
}

void ReadMachineFiles(const std::string& root, MachineFacts& facts) {
  ReadMeminfo(root, facts);
  ReadCpu(root, facts);
  facts.cgroup = ReadCgroupMemory(root);
  facts.cpu_quota = ReadCpuQuota(root);
  facts.kernel_release = FirstLine(root + "/proc/sys/kernel/osrelease");
  facts.container = ReadContainer(root);
  facts.wsl2 = IsWsl2(facts.kernel_release);
  facts.nvidia_driver = ReadNvidiaDriver(root);
  facts.nvidia_devices = CountNvidiaDevices(root);
  facts.may_exceed_memlock = ReadIpcLock(root);
}

void ProbeProcess(MachineFacts& facts) {
  ProbeLimits(facts);
  facts.affinity_processors = CountAffinity();
  const double quota = facts.cpu_quota.value_or(facts.affinity_processors);
  const double granted = std::min(std::ceil(quota), static_cast<double>(facts.affinity_processors));
  facts.allowed_processors = std::max(1, static_cast<int>(granted));
  struct statvfs shm {};
  if (::statvfs("/dev/shm", &shm) == 0) {
    facts.dev_shm_total_bytes = std::uint64_t{shm.f_blocks} * shm.f_frsize;
    facts.dev_shm_free_bytes = std::uint64_t{shm.f_bavail} * shm.f_frsize;
  } else {
    facts.unread.push_back(std::string("/dev/shm: ") + std::strerror(errno));
  }
  facts.has_memfd = ProbeMemfd();
  facts.has_pidfd = ProbePidfd();
  facts.has_seqpacket = ProbeSeqpacket();
}

MachineFacts ReadMachine() {
  MachineFacts facts;
  ReadMachineFiles("", facts);
  ProbeProcess(facts);
  return facts;
}

}  // namespace bitpager::daemon
