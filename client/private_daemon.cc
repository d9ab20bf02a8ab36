#include "client/private_daemon.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <features.h>
#include <spawn.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

#include "client/wire/text.h"
#include "client/wire/user_folder.h"

namespace bitpager::client {
namespace {

using Clock = std::chrono::steady_clock;
using wire::Code;
using wire::Result;
using wire::Status;

constexpr const char* kCpu = "cpu-0";
constexpr std::chrono::seconds kStartLimit{5};
constexpr std::chrono::seconds kGpuStartLimit{30};  // CUDA starts, host memory is pinned
constexpr std::chrono::seconds kLockLimit{10};
constexpr std::chrono::milliseconds kLookEvery{5};
constexpr std::size_t kLogTailBytes = 1500;

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

bool IsProgram(const std::string& path) {
  struct stat file {};
  return ::stat(path.c_str(), &file) == 0 && S_ISREG(file.st_mode) && ::access(path.c_str(), X_OK) == 0;
}

std::string FolderOfThisLibrary() {
  Dl_info info{};
  if (::dladdr(reinterpret_cast<const void*>(&FindPrivateDaemon), &info) == 0 || info.dli_fname == nullptr) {
    return {};
  }
  char* real = ::realpath(info.dli_fname, nullptr);
  std::string path = real == nullptr ? std::string(info.dli_fname) : std::string(real);
  std::free(real);
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? std::string(".") : path.substr(0, slash);
}

Result<std::string> FindProgram(const std::string& daemon_path) {
  const std::string named = daemon_path.empty() ? Environment("BITPAGERD") : daemon_path;
  if (!named.empty()) {
    if (IsProgram(named)) return named;
    return Status(Code::kNotFound,
                  "cannot start a private bitpagerd: " + named + " is not a program (option or BITPAGERD)");
  }
  const std::string here = FolderOfThisLibrary();
  if (!here.empty()) {
    for (const char* place : {"/bitpagerd", "/../bin/bitpagerd", "/bin/bitpagerd"}) {
      if (IsProgram(here + place)) return here + place;
    }
  }
  std::istringstream folders(Environment("PATH"));
  for (std::string folder; std::getline(folders, folder, ':');) {
    if (!folder.empty() && IsProgram(folder + "/bitpagerd")) return folder + "/bitpagerd";
  }
  return Status(Code::kNotFound, "no daemon answers and bitpagerd is not found beside " +
                                     (here.empty() ? std::string("this library") : here) +
                                     " nor in PATH. Hint: install it, set BITPAGERD to the program, or "
                                     "BITPAGER_SOCKET to a running daemon's socket");
}

// The exclusive lock on `path`, held until the fd is closed.
Result<wire::UniqueFd> Lock(const std::string& path) {
  wire::UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file) {
    return Status(Code::kPermissionDenied, "cannot open " + path + ": " + std::strerror(errno));
  }
  const Clock::time_point end = Clock::now() + kLockLimit;
  while (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) {
      return Status(Code::kUnreachable, "cannot lock " + path + ": " + std::strerror(errno));
    }
    if (Clock::now() > end) {
      return Status(Code::kUnreachable,
                    "another process has been starting a private bitpagerd for 10 s (it "
                    "holds " +
                        path + "). Hint: end that process");
    }
    std::this_thread::sleep_for(kLookEvery);
  }
  return file;
}

std::string LogTail(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream content;
  content << file.rdbuf();
  std::string text = content.str();
  if (text.size() > kLogTailBytes) text = "..." + text.substr(text.size() - kLogTailBytes);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text.empty() ? " (its log " + path + " is empty)" : "; its log " + path + " ends:\n" + text;
}

// posix_spawn's two records, destroyed together.
struct SpawnPlan {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  SpawnPlan() {
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawnattr_init(&attributes);
  }
  ~SpawnPlan() {
    ::posix_spawn_file_actions_destroy(&actions);
    ::posix_spawnattr_destroy(&attributes);
  }
  SpawnPlan(const SpawnPlan&) = delete;
  SpawnPlan& operator=(const SpawnPlan&) = delete;
};

// Its own session, no inherited fds or signal settings, no terminal. What is started here only starts the
// daemon and ends when that serves (or has ended): nobody has to reap the daemon itself.
Result<pid_t> Spawn(const std::string& program, const std::string& socket, const std::string& log,
                    const std::string& gpu) {
  SpawnPlan plan;
  ::posix_spawn_file_actions_addopen(&plan.actions, 0, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_addopen(&plan.actions, 1, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW,
                                     0600);
  ::posix_spawn_file_actions_adddup2(&plan.actions, 1, 2);
#if defined(__GLIBC_PREREQ)
#if __GLIBC_PREREQ(2, 34)
  ::posix_spawn_file_actions_addclosefrom_np(&plan.actions, 3);
#endif
#endif
  sigset_t none;
  sigset_t all;
  ::sigemptyset(&none);
  ::sigfillset(&all);
  ::posix_spawnattr_setsigmask(&plan.attributes, &none);
  ::posix_spawnattr_setsigdefault(&plan.attributes, &all);
  ::posix_spawnattr_setflags(&plan.attributes,
                             POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  std::vector<std::string> words = {program, "--background", "--private", "--socket", socket};
  if (gpu.empty()) words.insert(words.end(), {"--device", "cpu"});
  if (!gpu.empty()) words.insert(words.end(), {"--device", "cuda", "--device-uuid", gpu});
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  pid_t pid = -1;
  const int error =
      ::posix_spawn(&pid, program.c_str(), &plan.actions, &plan.attributes, arguments.data(), environ);
  if (error != 0) {
    return Status(Code::kUnreachable, "cannot start " + program + ": " + std::strerror(error));
  }
  return pid;
}

// Waits until the program that starts the daemon has ended. Ok: it says that the daemon serves.
Status AwaitStarter(pid_t pid, const std::string& program, const std::string& socket, const std::string& log,
                    std::chrono::seconds limit) {
  const Clock::time_point end = Clock::now() + limit;
  for (;;) {
    int how = 0;
    const pid_t ended = ::waitpid(pid, &how, WNOHANG);
    // ECHILD: this program has its children reaped by others; whether the daemon serves will be seen.
    if (ended < 0 && errno == ECHILD && ::kill(pid, 0) != 0) return {};
    if (ended == pid && WIFEXITED(how) && WEXITSTATUS(how) == 0) return {};
    if (ended == pid) {
      const std::string end_text = WIFEXITED(how) ? "exit status " + std::to_string(WEXITSTATUS(how))
                                                  : "signal " + std::to_string(WTERMSIG(how));
      return {Code::kUnreachable, "the private " + program + " ended before it served " + socket + " (" +
                                      end_text + ")" + LogTail(log)};
    }
    if (Clock::now() > end) {
      ::kill(pid, SIGKILL);  // the daemon that does not serve goes with it
      ::waitpid(pid, nullptr, 0);
      return {Code::kUnreachable, "the private " + program + " (started by process " + std::to_string(pid) +
                                      ") does not serve " + socket + " after " +
                                      std::to_string(limit.count()) + " s" + LogTail(log)};
    }
    std::this_thread::sleep_for(kLookEvery);
  }
}

Result<wire::UniqueFd> AwaitServing(pid_t pid, const std::string& program, const std::string& socket,
                                    const std::string& log, std::chrono::seconds limit) {
  if (Status started = AwaitStarter(pid, program, socket, log, limit); !started.ok()) return started;
  Result<wire::UniqueFd> connected = ConnectTo(socket);
  if (connected.ok() || connected.status().code() != Code::kUnreachable) return connected;
  return Status(Code::kUnreachable, "the private " + program + " said that it serves and does not: " +
                                        connected.status().message() + LogTail(log));
}

}  // namespace

Result<std::string> PrivateFolder() {
  const std::string folder = wire::FindUserFolder().path;
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) {
    return Status(Code::kPermissionDenied, "cannot make " + folder + ": " + std::strerror(errno));
  }
  if (Status own = wire::CheckOwnFolder(folder); !own.ok()) return own;
  return folder;
}

Result<Found> FindPrivateDaemon(const std::string& daemon_path, const std::string& device) {
  Result<std::string> folder = PrivateFolder();
  if (!folder.ok()) return folder.status();
  const std::string gpu = device == kCpu ? std::string() : device;
  // The name goes into paths and to another program.
  if (!gpu.empty() && !wire::IsPlainName(gpu)) {
    return Status(Code::kInvalidArgument, "'" + gpu + "' is not the UUID of a device");
  }
  const std::string base = *folder + (gpu.empty() ? "/private" : "/" + gpu);
  const std::string socket = base + ".sock";
  const std::string log = base + ".log";
  Result<wire::UniqueFd> connected = ConnectTo(socket);
  if (connected.ok()) return Found{std::move(*connected), socket, true};
  Result<wire::UniqueFd> lock = Lock(base + ".lock");
  if (!lock.ok()) return lock.status();
  // Whoever held the lock before may have started it.
  connected = ConnectTo(socket);
  if (connected.ok()) return Found{std::move(*connected), socket, true};
  const Result<std::string> program = FindProgram(daemon_path);
  if (!program.ok()) return program.status();
  const Result<pid_t> pid = Spawn(*program, socket, log, gpu);
  if (!pid.ok()) return pid.status();
  connected = AwaitServing(*pid, *program, socket, log, gpu.empty() ? kStartLimit : kGpuStartLimit);
  if (!connected.ok()) return connected.status();
  return Found{std::move(*connected), socket, true};
}

}  // namespace bitpager::client
