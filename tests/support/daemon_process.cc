#include "tests/support/daemon_process.h"

#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>
#include <zmq.hpp>

#include "client/wire/fd_socket.h"

namespace bitpager::testing {
namespace {

using Clock = std::chrono::steady_clock;

std::string ReadAll(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<std::string> Names(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code gone;
  for (std::filesystem::directory_iterator it(folder, gone), end; !gone && it != end; it.increment(gone)) {
    names.push_back(it->path().filename().string());
  }
  return names;
}

// In the child: becomes bitpagerd, or exits with 127.
int ExecDaemon(const std::vector<std::string>& arguments, const std::string& log, std::uint32_t uid) {
  const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0666);
  ::dup2(out, 1);
  ::dup2(out, 2);
  if (uid != ~0U && (::setgroups(0, nullptr) != 0 || ::setgid(uid) != 0 || ::setuid(uid) != 0)) return 126;
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  ::unsetenv("BITPAGER_SOCKET");
  ::execv(argv[0], argv.data());
  return 127;
}

}  // namespace

bool WaitUntil(const std::function<bool()>& condition, Millis limit) {
  const auto end = Clock::now() + limit * kSlowdown;
  while (!condition()) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(Millis(2));
  }
  return true;
}

TempFolder::TempFolder() {
  char name[] = "/tmp/bitpager-test-XXXXXX";
  const char* made = ::mkdtemp(name);
  EXPECT_NE(made, nullptr);
  path_ = name;
}

TempFolder::~TempFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

Child::Child(const std::function<int()>& body) {
  const pid_t parent = ::getpid();
  pid_ = ::fork();
  if (pid_ != 0) return;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(125);
  ::_exit(body());
}

Child::~Child() {
  if (pid_ <= 0 || status_) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

void Child::Signal(int signal) const {
  if (!status_) ::kill(pid_, signal);
}

std::optional<int> Child::Wait(Millis limit) {
  static_cast<void>(WaitUntil(
      [&] {
        int status = 0;
        if (!status_ && ::waitpid(pid_, &status, WNOHANG) == pid_) status_ = status;
        return status_.has_value();
      },
      limit));
  return status_;
}

bool Child::Succeeds(Millis limit) {
  const auto status = Wait(limit);
  return status && WIFEXITED(*status) && WEXITSTATUS(*status) == 0;
}

ProcessUse UseOf(pid_t pid) {
  const std::string folder = "/proc/" + std::to_string(pid);
  ProcessUse use;
  for (const std::string& task : Names(folder + "/task")) {
    std::istringstream schedstat(ReadAll(folder + "/task/" + task + "/schedstat"));
    std::uint64_t ran_ns = 0;
    schedstat >> ran_ns;
    use.cpu_ns += ran_ns;
  }
  std::istringstream statm(ReadAll(folder + "/statm"));
  std::uint64_t pages = 0;
  statm >> pages >> pages;
  use.rss_bytes = pages * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  use.fds = Names(folder + "/fd").size();
  return use;
}

std::string DaemonProcess::Program() {
  return BITPAGERD_PATH;
}

DaemonProcess::DaemonProcess(const Options& options) {
  folder_ = options.folder.empty() ? own_folder_.path() : options.folder;
  socket_ = folder_ + "/s";
  std::vector<std::string> arguments{BITPAGERD_PATH, "--socket", socket_};
  arguments.insert(arguments.end(), options.flags.begin(), options.flags.end());
  const std::string log = own_folder_.path() + "/log";
  std::ofstream(log).close();
  ::chmod(log.c_str(), 0666);
  child_.emplace([&] { return ExecDaemon(arguments, log, options.uid); });
  if (!options.wait) return;
  EXPECT_TRUE(WaitUntil([&] { return Serves() || child_->Wait(Millis(0)); }, Millis(10'000))) << Log();
  EXPECT_TRUE(Serves()) << Log();
}

bool DaemonProcess::Serves() const {
  const int fd = ConnectRaw(socket_);
  if (fd >= 0) ::close(fd);
  return fd >= 0;
}

std::string DaemonProcess::Log() const {
  return ReadAll(own_folder_.path() + "/log");
}

std::optional<daemon::Snapshot> DaemonProcess::Status() const {
  std::optional<daemon::Snapshot> told;
  const auto ended = [&] {
    siginfo_t info{};
    return ::waitid(P_PID, static_cast<id_t>(pid()), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == pid();
  };
  // A busy dispatcher may take longer than the daemon waits for it.
  static_cast<void>(WaitUntil([&] { return (told = AskStatus()) || ended(); }, Millis(20'000)));
  return told;
}

std::optional<daemon::Snapshot> DaemonProcess::AskStatus() const {
  zmq::context_t context(1);
  zmq::socket_t socket(context, zmq::socket_type::dealer);
  socket.set(zmq::sockopt::linger, 0);
  socket.set(zmq::sockopt::rcvtimeo, 3'000);
  socket.connect("ipc://" + socket_ + ".status");
  socket.send(zmq::str_buffer(R"({"query":"status"})"), zmq::send_flags::none);
  zmq::message_t answer;
  if (!socket.recv(answer)) return std::nullopt;
  auto snapshot = daemon::SnapshotFromJson(answer.to_string_view());
  if (!snapshot.ok()) return std::nullopt;
  return *snapshot;
}

client::ConnectOptions DaemonProcess::ConnectOptionsOf(const std::string& job) const {
  client::ConnectOptions options;
  options.socket = socket_;
  options.job = job;
  options.client = "process-test";
  options.spawn = false;
  options.threads = 1;
  return options;
}

std::shared_ptr<client::Session> DaemonProcess::Open(const std::string& job) const {
  auto session = client::Session::Connect(ConnectOptionsOf(job));
  EXPECT_TRUE(session.ok()) << session.status().message();
  return session.ok() ? *session : nullptr;
}

int ConnectRaw(const std::string& socket) {
  const auto address = wire::UnixAddress(socket);
  if (!address.ok()) return -1;
  const int fd = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&*address), sizeof(sockaddr_un)) == 0) return fd;
  ::close(fd);
  return -1;
}

}  // namespace bitpager::testing
