#include "kernels/cuda/imports.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "kernels/client_file.h"
#include "kernels/cuda/status.h"

namespace bitpager::kernels::cuda {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

// Registering a sparse file fills its holes. So what an import may add is at most half of what is available.
constexpr std::uint64_t kShareOfAvailable = 2;

// MemAvailable in bytes; 0 when unreadable.
std::uint64_t AvailableBytes() {
  unsigned long long kib = 0;
  if (std::FILE* file = std::fopen("/proc/meminfo", "re"); file != nullptr) {
    char line[128];
    while (std::fgets(line, sizeof(line), file) != nullptr) {
      if (std::sscanf(line, "MemAvailable: %llu kB", &kib) == 1) break;
    }
    std::fclose(file);
  }
  return kib * 1024;
}

std::string Bytes(std::uint64_t bytes) {
  return std::to_string(bytes) + " bytes";
}

// An error of the client's handle is the client's fault; lack of memory stays what it is.
Status Foreign(CUresult result, const std::string& doing) {
  Status s = StatusOf(result, doing);
  if (s.ok() || s.code() == Code::kOutOfMemory || s.code() == Code::kUnsupported || IsSticky(result))
    return s;
  return {Code::kInvalidArgument, s.message()};
}

}  // namespace

Imports::Imports(const Driver& driver, int ordinal) : driver_(driver), ordinal_(ordinal) {
  int can = 0;
  const CUresult asked =
      driver_.DeviceGetAttribute(&can, CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED, ordinal_);
  pins_read_only_ = asked == CUDA_SUCCESS && can != 0;
}

Imports::~Imports() {
  for (auto& [id, opened] : opened_) Close(opened);
}

Result<Import> Imports::Open(const ImportSource& source) {
  Opened opened;
  opened.kind = source.kind;
  Status s;
  switch (source.kind) {
    case MemoryKind::kFile:
      s = OpenFile(source, &opened);
      break;
    case MemoryKind::kDeviceIpc:
      s = OpenIpc(source, &opened);
      break;
    case MemoryKind::kDeviceVmm:
      s = OpenVmm(source, &opened);
      break;
    default:
      s = Status(Code::kInvalidArgument,
                 "import: memory of kind " + std::to_string(static_cast<int>(source.kind)) + " is unknown");
  }
  if (!s.ok()) {
    Close(opened);
    return s;
  }
  const std::uint64_t id = next_++;
  const Import out{reinterpret_cast<std::byte*>(opened.at), source.bytes, id};
  opened_.emplace(id, std::move(opened));
  return out;
}

// A device that pins no memory which may only be read gets the file mapped for both, where its descriptor
// allows that; nothing writes to it.
Result<void*> Imports::MapFile(const ImportSource& source, std::uint64_t bytes) const {
  const bool read_only = !source.writable && pins_read_only_;
  void* const raw =
      mmap(nullptr, bytes, read_only ? PROT_READ : PROT_READ | PROT_WRITE, MAP_SHARED, source.fd, 0);
  if (raw != MAP_FAILED) return raw;
  const bool denied = errno == EACCES || errno == EPERM;
  if (denied && !source.writable && !read_only) {
    return Status(Code::kUnsupported, "import: the file is open for reading alone, and " + NameOf(ordinal_) +
                                          " pins no such memory. Hint: open it for reading and writing");
  }
  return Status(denied ? Code::kPermissionDenied : Code::kOutOfMemory,
                "import: cannot map " + Bytes(source.bytes) + ": " + std::strerror(errno));
}

Status Imports::OpenFile(const ImportSource& source, Opened* out) const {
  Result<ClientFile> file = CheckClientFile(source);
  if (!file.ok()) return file.status();
  const std::uint64_t missing =
      file->map_bytes > file->present_bytes ? file->map_bytes - file->present_bytes : 0;
  if (const std::uint64_t available = AvailableBytes(); missing > available / kShareOfAvailable) {
    return {Code::kOutOfMemory, "import: the file's holes need " + Bytes(missing) + " of memory, " +
                                    Bytes(available) +
                                    " are available: write the file first, or make it smaller"};
  }
  const Result<void*> mapped = MapFile(source, file->map_bytes);
  if (!mapped.ok()) return mapped.status();
  void* const raw = *mapped;
  madvise(raw, file->map_bytes, MADV_DONTFORK);
  out->at = reinterpret_cast<CUdeviceptr>(raw);
  out->bytes = file->map_bytes;
  unsigned flags = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP;
  if (!source.writable && pins_read_only_) flags |= CU_MEMHOSTREGISTER_READ_ONLY;
  Status s = Foreign(driver_.MemHostRegister(raw, file->map_bytes, flags),
                     "pin a client's file of " + Bytes(source.bytes));
  if (!s.ok()) return s;
  out->registered = true;
  if (!source.sealed) out->watched.Reset(fcntl(source.fd, F_DUPFD_CLOEXEC, 3));
  if (!source.sealed && !out->watched) {
    return {Code::kInternal, std::string("import: no file descriptor left: ") + std::strerror(errno)};
  }
  // It may have shrunk before it was pinned.
  struct stat now {};
  if (!source.sealed &&
      (fstat(source.fd, &now) != 0 || static_cast<std::uint64_t>(now.st_size) < source.bytes)) {
    return {Code::kOutOfRange, "import: the file shrank while it was opened"};
  }
  return {};
}

std::string Imports::NameOf(int ordinal) const {
  CUuuid uuid{};
  if (driver_.DeviceGetUuid(&uuid, ordinal) != CUDA_SUCCESS) return "GPU " + std::to_string(ordinal);
  return UuidText(uuid);
}

Status Imports::WrongDevice(int theirs) const {
  return {Code::kUnsupported, "import: memory of " + NameOf(theirs) + ", but this session is for " +
                                  NameOf(ordinal_) + ": connect with the device that holds the tensors"};
}

Status Imports::CheckIpc(const ImportSource& source, CUdeviceptr at, std::uint64_t* bytes) const {
  int theirs = ordinal_;
  Status s = Foreign(driver_.PointerGetAttribute(&theirs, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, at),
                     "find the device of a client's memory");
  if (!s.ok()) return s;
  if (theirs != ordinal_) return WrongDevice(theirs);
  CUdeviceptr base = 0;
  std::size_t size = 0;
  s = Foreign(driver_.MemGetAddressRange(&base, &size, at), "find the size of a client's memory");
  if (!s.ok()) return s;
  *bytes = size - (at - base);
  if (source.bytes > *bytes) {
    return {Code::kOutOfRange,
            "import: the allocation holds " + Bytes(*bytes) + ", " + Bytes(source.bytes) + " were announced"};
  }
  return {};
}

Status Imports::OpenIpc(const ImportSource& source, Opened* out) const {
  if (source.bytes == 0) return {Code::kInvalidArgument, "import: zero bytes"};
  CUipcMemHandle handle;
  static_assert(sizeof(handle) == wire::kIpcHandleBytes);
  std::memcpy(&handle, source.handle.data(), sizeof(handle));
  CUdeviceptr at = 0;
  const CUresult result = driver_.IpcOpenMemHandle(&at, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
  if (result == CUDA_ERROR_PEER_ACCESS_UNSUPPORTED || result == CUDA_ERROR_INVALID_DEVICE) {
    return {Code::kUnsupported, "import: memory of a GPU that " + NameOf(ordinal_) +
                                    " does not reach: connect with the device that holds the tensors"};
  }
  Status s = Foreign(result, "open a client's memory handle");
  if (s.code() == wire::Code::kInvalidArgument) {
    return {s.code(), s.message() +
                          ". Hint: clients in containers with process ids of their own need "
                          "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"};
  }
  if (!s.ok()) return s;
  out->at = at;
  return CheckIpc(source, at, &out->bytes);
}

Status Imports::MapHandle(int fd, std::uint64_t bytes, Opened* out) const {
  CUmemGenericAllocationHandle handle = 0;
  // The driver takes the descriptor in the place of a pointer.
  void* const carried = reinterpret_cast<void*>(static_cast<std::uintptr_t>(static_cast<unsigned>(fd)));
  Status s = Foreign(
      driver_.MemImportFromShareableHandle(&handle, carried, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
      "open a client's physical memory handle");
  if (!s.ok()) return s;
  out->handles.push_back(handle);
  CUmemAllocationProp properties{};
  s = Foreign(driver_.MemGetAllocationPropertiesFromHandle(&properties, handle),
              "read what a client's memory handle is");
  if (!s.ok()) return s;
  if (properties.location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
    return {Code::kUnsupported,
            "import: a memory handle that is not of a GPU: register such memory as a file"};
  }
  if (properties.location.id != ordinal_) return WrongDevice(properties.location.id);
  s = Foreign(driver_.MemMap(out->at + out->mapped, bytes, 0, handle, 0),
              "map a client's memory of " + Bytes(bytes));
  if (s.ok()) out->mapped += bytes;
  return s;
}

Status Imports::OpenVmm(const ImportSource& source, Opened* out) const {
  CUmemAllocationProp properties{};
  properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  properties.location.id = ordinal_;
  std::size_t piece = 0;
  Status s =
      StatusOf(driver_.MemGetAllocationGranularity(&piece, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
               "ask for the granularity of memory");
  if (!s.ok()) return s;
  std::uint64_t total = 0;
  if (source.bytes == 0 || source.fds.empty() || source.handle_bytes == 0 ||
      source.handle_bytes % piece != 0 ||
      __builtin_mul_overflow(source.handle_bytes, source.fds.size(), &total)) {
    return {Code::kInvalidArgument, "import: " + std::to_string(source.fds.size()) + " memory handles of " +
                                        Bytes(source.handle_bytes) +
                                        ": at least one, each of a multiple of " + Bytes(piece)};
  }
  if (total < source.bytes) {
    return {Code::kOutOfRange,
            "import: the handles hold " + Bytes(total) + ", " + Bytes(source.bytes) + " were announced"};
  }
  s = Foreign(driver_.MemAddressReserve(&out->at, total, 0, 0, 0), "reserve addresses for " + Bytes(total));
  if (!s.ok()) return s;
  out->bytes = total;
  out->handle_bytes = source.handle_bytes;
  for (const int fd : source.fds) {
    if (s = MapHandle(fd, source.handle_bytes, out); !s.ok()) return s;
  }
  CUmemAccessDesc access{};
  access.location = properties.location;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  return Foreign(driver_.MemSetAccess(out->at, total, &access, 1), "open a client's memory to the device");
}

void Imports::Close(Opened& opened) const {
  if (opened.at == 0) return;
  auto* const at = reinterpret_cast<void*>(opened.at);
  switch (opened.kind) {
    case MemoryKind::kFile:
      if (opened.registered) static_cast<void>(driver_.MemHostUnregister(at));
      munmap(at, opened.bytes);
      break;
    case MemoryKind::kDeviceIpc:
      static_cast<void>(driver_.IpcCloseMemHandle(opened.at));
      break;
    case MemoryKind::kDeviceVmm: {
      for (std::uint64_t done = 0; done < opened.mapped; done += opened.handle_bytes) {
        static_cast<void>(driver_.MemUnmap(opened.at + done, opened.handle_bytes));
      }
      for (const auto handle : opened.handles) static_cast<void>(driver_.MemRelease(handle));
      static_cast<void>(driver_.MemAddressFree(opened.at, opened.bytes));
      break;
    }
  }
}

void Imports::Release(std::uint64_t id) {
  const auto found = opened_.find(id);
  if (found == opened_.end()) return;
  Close(found->second);
  opened_.erase(found);
}

bool Imports::Failed(std::uint64_t id) const {
  const auto found = opened_.find(id);
  if (found == opened_.end() || !found->second.watched) return false;
  struct stat now {};
  const Opened& opened = found->second;
  const auto page = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  return fstat(opened.watched.get(), &now) != 0 ||
         (static_cast<std::uint64_t>(now.st_size) + page - 1) / page * page < opened.bytes;
}

}  // namespace bitpager::kernels::cuda
