#include "kernels/ipc_probe.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "client/wire/fd_socket.h"
#ifdef BITPAGER_WITH_CUDA
#include "kernels/cuda/ipc_exporter.h"
#endif

namespace bitpager::kernels {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

constexpr std::uint64_t kBytes = std::uint64_t{2} << 20;
constexpr int kPattern = 0x5A;  // as the exporter writes it
constexpr int kSocket = 3;      // of the exporter
constexpr std::chrono::seconds kPatience{10};

Status Failed(const std::string& what) {
  return {Code::kInternal, "the test of inter-process memory: " + what};
}

// Starts `command` with `socket` as its fd 3, with no signal blocked.
Result<pid_t> Spawn(std::vector<std::string> command, int socket) {
  std::vector<char*> arguments;
  for (std::string& word : command) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  posix_spawn_file_actions_adddup2(&actions, socket, kSocket);
  pid_t child = -1;
  const int error = posix_spawn(&child, command[0].c_str(), &actions, &attributes, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) return Failed("cannot start " + command[0] + ": " + std::strerror(error));
  return child;
}

}  // namespace

Result<std::unique_ptr<IpcProbe>> IpcProbe::Start(Device& device, const std::vector<std::string>& command) {
  if (command.empty())
    return Status(Code::kInvalidArgument, "no command for the test of inter-process memory");
  std::unique_ptr<IpcProbe> probe(new IpcProbe(device));
  int pair[2] = {-1, -1};
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return Failed(std::strerror(errno));
  probe->socket_.Reset(pair[0]);
  wire::UniqueFd theirs(pair[1]);
  if (theirs.get() == kSocket) {  // dup2 onto itself would leave it close-on-exec
    theirs.Reset(fcntl(kSocket, F_DUPFD_CLOEXEC, kSocket + 1));
  }
  if (!theirs || fcntl(pair[0], F_SETFL, O_NONBLOCK) != 0) return Failed(std::strerror(errno));
  Result<pid_t> child = Spawn(command, theirs.get());
  if (!child.ok()) return child.status();
  probe->child_ = *child;
  probe->deadline_ = std::chrono::steady_clock::now() + kPatience;
  return probe;
}

IpcProbe::~IpcProbe() {
  if (read_.sequence != 0) device_.Synchronize(read_);
  if (child_ > 0) {
    kill(child_, SIGKILL);
    waitpid(child_, nullptr, 0);
  }
  if (import_) device_.ReleaseImport(import_->id);
  if (seen_ != nullptr) device_.FreeScratch(seen_);
}

Status IpcProbe::Import() {
  wire::Packet packet;
  Status s = wire::ReceivePacket(socket_.get(), packet);
  if (!s.ok()) return s;
  if (packet.closed || packet.bytes != wire::kIpcHandleBytes) return Failed("the other process ended early");
  ImportSource source;
  source.kind = MemoryKind::kDeviceIpc;
  source.bytes = kBytes;
  std::memcpy(source.handle.data(), packet.data.data(), wire::kIpcHandleBytes);
  Result<kernels::Import> import = device_.ImportMemory(source);
  if (!import.ok()) return import.status();
  import_ = *import;
  seen_ = device_.AllocateScratch(2);
  return seen_ != nullptr ? Status() : Failed("no scratch");
}

std::optional<Result<bool>> IpcProbe::Poll() {
  if (std::chrono::steady_clock::now() > deadline_) return Result<bool>(Failed("no answer within 10 s"));
  if (!import_) {
    Status s = Import();
    if (s.code() == Code::kPending) return std::nullopt;
    if (!s.ok()) return Result<bool>(s);
    kill(child_, SIGKILL);
  }
  if (child_ > 0) {
    // Gone, not only told to go: the memory must have lost its owner before it is touched.
    if (waitpid(child_, nullptr, WNOHANG) == 0) return std::nullopt;
    child_ = -1;
    // Reads what its dead owner wrote, then writes and reads anew.
    device_.Copy(Queue::kCompute, seen_, import_->base + kBytes - 1, 1);
    device_.Fill(Queue::kCompute, import_->base, kPattern + 1, kBytes);
    read_ = device_.Copy(Queue::kCompute, seen_ + 1, import_->base + kBytes - 1, 1);
  }
  if (!device_.Done(read_)) return std::nullopt;
  return Result<bool>(std::to_integer<int>(seen_[0]) == kPattern &&
                      std::to_integer<int>(seen_[1]) == kPattern + 1);
}

int RunIpcExporter([[maybe_unused]] const std::string& uuid, [[maybe_unused]] int socket) {
#ifdef BITPAGER_WITH_CUDA
  return cuda::ExportForProbe(uuid, socket, kBytes, kPattern);
#else
  return 1;
#endif
}

}  // namespace bitpager::kernels
