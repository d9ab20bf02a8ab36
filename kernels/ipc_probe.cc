#include "kernels/ipc_probe.h"

#include <fcntl.h>
#include <sys/socket.h>

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

}  // namespace

Result<std::unique_ptr<IpcProbe>> IpcProbe::Start(Device& device, const std::vector<std::string>& command) {
  if (command.empty())
    return Status(Code::kInvalidArgument, "no command for the test of inter-process memory");
  std::unique_ptr<IpcProbe> probe(new IpcProbe(device));
  int pair[2] = {-1, -1};
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return Failed(std::strerror(errno));
  probe->socket_.Reset(pair[0]);
  const wire::UniqueFd theirs(pair[1]);
  if (fcntl(pair[0], F_SETFL, O_NONBLOCK) != 0) return Failed(std::strerror(errno));
  if (Status s = probe->child_.Start(command, theirs.get(), kSocket); !s.ok()) return Failed(s.message());
  probe->deadline_ = std::chrono::steady_clock::now() + kPatience;
  return probe;
}

IpcProbe::~IpcProbe() {
  if (read_.sequence != 0) device_.Synchronize(read_);
  child_.End();
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
    child_.Kill();
  }
  if (read_.sequence == 0) {
    // Gone, not only told to go: the memory must have lost its owner before it is touched.
    if (!child_.Ended()) return std::nullopt;
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
