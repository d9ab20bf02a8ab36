// doctor: facts of the machine, one line each, with a hint where something is wrong or could be better.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "daemon/config.h"
#include "daemon/machine.h"
#include "daemon/snapshot.h"
#include "kernels/device.h"
#include "tools/cli/commands.h"

namespace bitpager::cli {
namespace {

using daemon::FormatBytes;
using daemon::MachineFacts;

constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;
constexpr std::uint64_t kSmallShmBytes = kGiB;
constexpr std::uint64_t kFewOpenFiles = 4096;

enum class Level : std::uint8_t { kOk, kNote, kWarning, kFault };

const char* NameOf(Level level) {
  switch (level) {
    case Level::kOk:
      return "ok";
    case Level::kNote:
      return "note";
    case Level::kWarning:
      return "warning";
    case Level::kFault:
      return "fault";
  }
  return "fault";
}

const char* ColorOf(Level level) {
  switch (level) {
    case Level::kOk:
      return "\033[32m";
    case Level::kNote:
      return "";
    case Level::kWarning:
      return "\033[33m";
    case Level::kFault:
      return "\033[31m";
  }
  return "";
}

struct Finding {
  std::string name;
  Level level = Level::kOk;
  std::string found;
  std::string hint;
};
using Findings = std::vector<Finding>;

void CheckKernel(const MachineFacts& facts, Findings& out) {
  out.push_back({"kernel", Level::kOk, facts.kernel_release, ""});
  const auto feature = [&](const char* name, bool present, Level otherwise, const char* hint) {
    out.push_back(
        {name, present ? Level::kOk : otherwise, present ? "available" : "missing", present ? "" : hint});
  };
  feature("memfd", facts.has_memfd, Level::kFault,
          "sealed memfds need Linux 3.17, and a sandbox that allows them");
  feature("seqpacket", facts.has_seqpacket, Level::kFault,
          "Unix SEQPACKET sockets are refused: check the sandbox");
  feature(
      "pidfd", facts.has_pidfd, Level::kWarning,
      "a killed client is noticed by its socket alone, later when it has forked: Linux 5.3 has pidfd_open");
}

void CheckPlace(const MachineFacts& facts, Findings& out) {
  if (facts.wsl2) {
    out.push_back({"WSL2", Level::kNote, "running under WSL2", "memory is what .wslconfig grants"});
  }
  if (!facts.container.empty()) {
    out.push_back({"container", Level::kNote, facts.container,
                   "clients in other containers need this socket's folder mounted, and one user id"});
  }
  for (const std::string& unread : facts.unread) {
    out.push_back({"unread", Level::kWarning, unread, "this fact is not known here; mount /proc and /sys"});
  }
}

void CheckMemory(const MachineFacts& facts, Findings& out) {
  const std::uint64_t room = facts.RoomBytes();
  out.push_back(
      {"memory", room < kGiB ? Level::kWarning : Level::kOk,
       FormatBytes(facts.mem_available_bytes) + " available of " + FormatBytes(facts.mem_total_bytes),
       room < kGiB ? "under 1 GiB is free for pages; end other programs or raise the limit" : ""});
  const daemon::CgroupMemory& cgroup = facts.cgroup;
  if (cgroup.version == 0) {
    out.push_back({"cgroup", Level::kNote, "no memory cgroup is visible", ""});
  } else {
    const std::string limit = cgroup.limit_bytes
                                  ? "limit " + FormatBytes(*cgroup.limit_bytes) + " at " + cgroup.limited_at +
                                        ", " + FormatBytes(cgroup.usage_bytes) + " used"
                                  : "no memory limit";
    out.push_back(
        {"cgroup", Level::kOk, "v" + std::to_string(cgroup.version) + " " + cgroup.path + ": " + limit, ""});
  }
  out.push_back({"swap", Level::kNote,
                 facts.swap_total_bytes == 0
                     ? "none"
                     : FormatBytes(facts.swap_free_bytes) + " free of " +
                           FormatBytes(facts.swap_total_bytes) + "; budgets do not count it",
                 ""});
  const bool small = facts.dev_shm_total_bytes < kSmallShmBytes;
  out.push_back(
      {"/dev/shm", small ? Level::kWarning : Level::kOk,
       FormatBytes(facts.dev_shm_free_bytes) + " free of " + FormatBytes(facts.dev_shm_total_bytes),
       small ? "shared parameters of CPU tensors lie there: docker run --shm-size=8g, or --ipc=host" : ""});
}

void CheckLimits(const MachineFacts& facts, Findings& out) {
  const std::string lock = !facts.memlock_limit_bytes ? "unlimited" : FormatBytes(*facts.memlock_limit_bytes);
  out.push_back({"memlock", Level::kNote,
                 lock + (facts.may_exceed_memlock ? ", and this user may exceed it" : "") +
                     "; the CPU device locks nothing",
                 ""});
  const bool few = facts.open_files_limit < kFewOpenFiles;
  out.push_back({"open files", few ? Level::kNote : Level::kOk, std::to_string(facts.open_files_limit),
                 few ? "each session holds several: LimitNOFILE=65536 in the unit, or ulimit -n" : ""});
}

bool HasAll(const MachineFacts& facts, std::initializer_list<const char*> flags) {
  return std::all_of(flags.begin(), flags.end(), [&](const char* flag) {
    return std::find(facts.cpu_flags.begin(), facts.cpu_flags.end(), flag) != facts.cpu_flags.end();
  });
}

void CheckProcessors(const MachineFacts& facts, Findings& out) {
  std::string quota;
  if (facts.cpu_quota) {
    char text[64];
    std::snprintf(text, sizeof(text), ", cgroup quota %.2f", *facts.cpu_quota);
    quota = text;
  }
  out.push_back({"processors", Level::kOk,
                 std::to_string(facts.allowed_processors) + " to use (affinity " +
                     std::to_string(facts.affinity_processors) + quota + ") " + facts.cpu_model,
                 ""});
  const bool avx512 = HasAll(facts, {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"});
  const bool avx2 = HasAll(facts, {"avx2", "bmi1", "bmi2", "fma", "f16c"});
  out.push_back({"SIMD", avx512 || avx2 ? Level::kOk : Level::kWarning,
                 avx512 ? "AVX-512" : (avx2 ? "AVX2" : "neither AVX2 nor AVX-512"),
                 avx512 || avx2 ? "" : "steps run several times slower on this processor"});
}

// The GPUs that a daemon would serve.
std::vector<kernels::DeviceListing> CheckGpus(const MachineFacts& facts, Findings& out) {
  std::string why;
  const std::vector<kernels::DeviceListing> devices = kernels::ListDevices(&why);
  std::vector<kernels::DeviceListing> usable;
  bool any = false;
  for (const kernels::DeviceListing& one : devices) {
    if (one.kind != "cuda") continue;
    any = true;
    if (one.problem.empty()) usable.push_back(one);
    const std::string what = std::to_string(one.index) + " = " + one.uuid + ", " + one.name + ", " +
                             FormatBytes(one.total_bytes) + ", " + one.architecture + ", driver's CUDA " +
                             one.driver;
    out.push_back({"GPU", one.problem.empty() ? Level::kOk : Level::kWarning,
                   one.problem.empty() ? what : what + ": " + one.problem, ""});
    if (!one.managed_problem.empty()) {
      out.push_back({"managed frames", Level::kNote, "not on " + one.uuid + ": " + one.managed_problem,
                     "memory.frames = \"explicit\", the default, needs none"});
    }
  }
  if (any) return usable;
  const bool hidden = facts.nvidia_devices > 0 || !facts.nvidia_driver.empty();
  out.push_back({"GPU", hidden ? Level::kWarning : Level::kNote, why.empty() ? "none" : why,
                 "pages lie in host memory"});
  return usable;
}

// What a daemon started here without flags would take.
void CheckBudgets(const MachineFacts& facts, const std::vector<kernels::DeviceListing>& gpus, Findings& out) {
  const char* const argv[] = {"bitpagerd"};
  const auto loaded = daemon::LoadConfig(1, argv);
  if (!loaded.ok()) {
    out.push_back({"configuration", Level::kFault, loaded.status().message(), ""});
    return;
  }
  const daemon::Config& config = loaded->config;
  out.push_back({"configuration", Level::kOk,
                 config.config_path.empty() ? "defaults (no " + std::string(daemon::kSystemConfigPath) + ")"
                                            : config.config_path,
                 ""});
  daemon::DeviceMemory device;
  const bool on_gpu = !gpus.empty() && config.device_kind != "cpu";
  if (on_gpu) {
    // What others hold of it is known once it is opened.
    device.in_host_memory = false;
    device.total_bytes = device.free_bytes = gpus.front().total_bytes;
    device.sharers = static_cast<unsigned>(gpus.size());
  }
  const auto budgets = daemon::ResolveBudgets(config, facts, device);
  if (!budgets.ok()) {
    out.push_back({"budgets", Level::kFault, budgets.status().message(), ""});
    return;
  }
  out.push_back({"budgets", Level::kOk,
                 (on_gpu ? "a GPU like the first, were all of it free, " : "device ") +
                     FormatBytes(budgets->device_bytes) + ", host " + FormatBytes(budgets->host_bytes) +
                     " of " + FormatBytes(budgets->room_bytes) + " (" + budgets->room_source + ")",
                 ""});
}

void CheckFiles(const std::string& socket, Findings& out) {
  struct stat file {};
  if (::stat(socket.c_str(), &file) != 0) return;
  char text[96];
  std::snprintf(text, sizeof(text), "mode %04o, owner %u, group %u", file.st_mode & 07777U, file.st_uid,
                file.st_gid);
  const bool may = ::access(socket.c_str(), R_OK | W_OK) == 0;
  out.push_back({"socket", may ? Level::kOk : Level::kFault, socket + ": " + text,
                 may ? "" : "sudo usermod -aG bitpager $USER, then log in again"});
}

// Whether a killed client can take the daemon with it.
void CheckIpc(const daemon::DeviceSnapshot& device, Findings& out) {
  const bool tested = device.ipc_survives != "not tested";
  if (device.ipc_survives.empty() || (!tested && device.ipc_problem.empty())) return;
  Finding finding{"memory by handle", Level::kOk, device.uuid + ": survives the process that lent it", ""};
  if (device.ipc_survives == "no") {
    finding.level = Level::kWarning;
    finding.found = device.uuid + ": ends with the process that lent it";
    finding.hint =
        "a training process killed in the middle of a step can end the daemon: set "
        "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True there, then memory is lent by file";
  } else if (!tested) {
    finding.level = Level::kNote;
    finding.found =
        device.uuid + ": not tested yet whether it survives its process (" + device.ipc_problem + ")";
  } else if (device.ipc_survives != "yes") {
    finding.level = Level::kNote;
    finding.found = device.uuid + ": not known whether it survives its process (" + device.ipc_problem + ")";
  }
  out.push_back(finding);
}

void CheckDaemon(const Target& target, Findings& out) {
  const auto reply = AskStatus(target, "status");
  if (!reply.ok()) {
    for (const std::string& place : SocketPlaces(target.socket)) CheckFiles(place, out);
    const bool named = SocketPlaces(target.socket).size() == 1;
    out.push_back({"daemon", named ? Level::kFault : Level::kNote, reply.status().message(),
                   named ? "" : "the first client of this user starts a private one"});
    return;
  }
  CheckFiles(reply->socket, out);
  const auto snapshot = daemon::SnapshotFromJson(reply->json);
  if (!snapshot.ok()) {
    out.push_back({"daemon", Level::kFault, snapshot.status().message(), ""});
    return;
  }
  const bool same = snapshot->version == daemon::kVersion;
  std::string served;
  for (const daemon::DeviceSnapshot& device : snapshot->devices) {
    served += (served.empty() ? "" : ", ") + device.uuid + " " + device.name;
  }
  out.push_back(
      {"daemon", same ? Level::kOk : Level::kWarning,
       snapshot->version + " at " + reply->socket + ", serving " + served + ", " +
           std::to_string(snapshot->jobs.size()) + " jobs",
       same ? "" : std::string("this command is ") + daemon::kVersion + ": install one release of both"});
  for (const daemon::DeviceSnapshot& device : snapshot->devices) CheckIpc(device, out);
}

Level Worst(const Findings& findings) {
  Level worst = Level::kOk;
  for (const Finding& finding : findings) worst = std::max(worst, finding.level);
  return worst;
}

void PrintJson(const Findings& findings) {
  nlohmann::json checks = nlohmann::json::array();
  for (const Finding& f : findings) {
    checks.push_back({{"name", f.name}, {"level", NameOf(f.level)}, {"found", f.found}, {"hint", f.hint}});
  }
  const nlohmann::json out = {{"schema_version", 1},
                              {"version", daemon::kVersion},
                              {"ok", Worst(findings) < Level::kFault},
                              {"checks", checks}};
  std::printf("%s\n", out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

void PrintText(const Findings& findings) {
  const bool color = WantsColor(STDOUT_FILENO);
  for (const Finding& f : findings) {
    std::printf("%s%-8s%s %-14s %s\n", color ? ColorOf(f.level) : "", NameOf(f.level), color ? "\033[0m" : "",
                f.name.c_str(), f.found.c_str());
    if (!f.hint.empty()) std::printf("%-24shint: %s\n", "", f.hint.c_str());
  }
  const auto count = [&](Level level) {
    return std::count_if(findings.begin(), findings.end(),
                         [&](const Finding& f) { return f.level == level; });
  };
  std::printf("\n%ld faults, %ld warnings\n", static_cast<long>(count(Level::kFault)),
              static_cast<long>(count(Level::kWarning)));
}

}  // namespace

int RunDoctor(const Target& target, const DoctorOptions& options) {
  const MachineFacts facts = daemon::ReadMachine();
  Findings findings;
  CheckKernel(facts, findings);
  CheckPlace(facts, findings);
  CheckMemory(facts, findings);
  CheckLimits(facts, findings);
  CheckProcessors(facts, findings);
  const std::vector<kernels::DeviceListing> gpus = CheckGpus(facts, findings);
  CheckBudgets(facts, gpus, findings);
  CheckDaemon(target, findings);
  options.json ? PrintJson(findings) : PrintText(findings);
  return Worst(findings) == Level::kFault ? kFailureExit : kOkExit;
}

}  // namespace bitpager::cli
