#include "kernels/cpu/cpu_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "kernels/client_file.h"

namespace bitpager::kernels::cpu {
namespace {

using wire::Code;
using wire::Status;

constexpr std::uint64_t kHugePageBytes = std::uint64_t{2} << 20;
// Sparse files cost their owners nothing. So imports together get a quarter of the address space and half of
// the mappings that Linux allows by default, and frames, sessions and the heap keep the rest.
constexpr std::uint64_t kMostImportedBytes = std::uint64_t{1} << 45;
constexpr std::size_t kMostImports = std::size_t{1} << 15;

std::uint64_t RoundUp(std::uint64_t bytes, std::uint64_t to) {
  return (bytes + to - 1) / to * to;
}

std::string Errno() {
  return std::strerror(errno);
}

Status OutOfMemory(std::uint64_t bytes, const char* what) {
  return {Code::kOutOfMemory,
          "no memory for " + std::to_string(bytes) + " bytes of " + what + ": " + Errno()};
}

// Anonymous memory, on a huge-page boundary when it is large enough to use huge pages. Null on failure.
std::byte* MapAnonymous(std::uint64_t bytes, int extra_flags) {
  const std::uint64_t slack = bytes >= kHugePageBytes ? kHugePageBytes : 0;
  if (bytes + slack < bytes) {
    errno = ENOMEM;
    return nullptr;
  }
  void* const raw =
      mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | extra_flags, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  auto* const base = static_cast<std::byte*>(raw);
  if (slack == 0) return base;
  const std::uint64_t head = RoundUp(reinterpret_cast<std::uintptr_t>(base), kHugePageBytes) -
                             reinterpret_cast<std::uintptr_t>(base);
  if (head != 0) munmap(base, head);
  const std::uint64_t tail_at = RoundUp(head + bytes, 4096);
  if (tail_at < bytes + slack) munmap(base + tail_at, bytes + slack - tail_at);
  madvise(base + head, bytes, MADV_HUGEPAGE);  // a hint: fewer address translations
  return base + head;
}

}  // namespace

CpuMemory::~CpuMemory() {
  while (!segments_.empty()) FreeSegment(segments_.begin()->first);
  for (auto& [id, domain] : domains_) CloseDomain(domain);
  while (!imports_.empty()) ReleaseImport(imports_.begin()->first);
  for (const Mapping& region : regions_) munmap(region.base, region.bytes);
}

wire::Status CpuMemory::OpenDomain(Domain* domain) {
  // Sparse: room for all the memory that the machine has, used page by page.
  struct sysinfo system {};
  if (sysinfo(&system) != 0) return {Code::kInternal, "sysinfo failed: " + Errno()};
  const std::uint64_t bytes = RoundUp(std::uint64_t{system.totalram} * system.mem_unit, kHugePageBytes);
  domain->file = memfd_create("bitpager-frames", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (domain->file < 0 || ftruncate(domain->file, static_cast<off_t>(bytes)) != 0) {
    return OutOfMemory(bytes, "address space of exported frames");
  }
  void* const raw = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, domain->file, 0);
  if (raw == MAP_FAILED) return OutOfMemory(bytes, "address space of exported frames");
  domain->mapping = {static_cast<std::byte*>(raw), bytes};
  const std::string path = "/proc/self/fd/" + std::to_string(domain->file);
  domain->read_only = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (domain->read_only < 0 || fchmod(domain->file, 0400) != 0 ||
      fcntl(domain->file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return {Code::kInternal, "cannot seal exported frames: " + Errno()};
  }
  return {};
}

std::byte* CpuMemory::TakeRange(Domain& domain, std::uint64_t bytes) {
  std::uint64_t at = 0;
  for (const auto& [offset, used] : domain.used) {
    if (offset - at >= bytes) break;
    at = offset + used;
  }
  if (domain.mapping.bytes - at < bytes) return nullptr;
  domain.used.emplace(at, bytes);
  return domain.mapping.base + at;
}

void CpuMemory::CloseDomain(Domain& domain) {
  if (domain.mapping.base != nullptr) munmap(domain.mapping.base, domain.mapping.bytes);
  if (domain.file >= 0) close(domain.file);
  if (domain.read_only >= 0) close(domain.read_only);
}

wire::Result<DeviceSegment> CpuMemory::AllocateExported(std::uint32_t frames, std::uint64_t bytes,
                                                        std::uint32_t domain_id) {
  auto found = domains_.find(domain_id);
  if (found == domains_.end()) {
    Domain fresh;
    if (Status s = OpenDomain(&fresh); !s.ok()) {
      CloseDomain(fresh);
      return s;
    }
    found = domains_.emplace(domain_id, std::move(fresh)).first;
  }
  Domain& domain = found->second;
  std::byte* const base = TakeRange(domain, bytes);
  if (base == nullptr) {
    return Status(Code::kOutOfMemory, "no room for " + std::to_string(bytes) + " bytes of exported frames");
  }
  const std::uint32_t id = next_segment_++;
  segments_.emplace(id, Segment{{base, bytes}, domain_id});
  segment_bytes_ += bytes;
  return DeviceSegment{id, base, frames, domain.read_only,
                       static_cast<std::uint64_t>(base - domain.mapping.base)};
}

wire::Result<DeviceSegment> CpuMemory::AllocateSegment(std::uint32_t frames, std::uint64_t page_bytes,
                                                       std::uint32_t domain) {
  std::uint64_t bytes = 0;
  if (frames == 0 || page_bytes == 0 || page_bytes % 4096 != 0 ||
      __builtin_mul_overflow(std::uint64_t{frames}, page_bytes, &bytes)) {
    return Status(Code::kInvalidArgument, "a segment of " + std::to_string(frames) + " frames of " +
                                              std::to_string(page_bytes) +
                                              " bytes: frames are multiples of 4096 bytes, at least one");
  }
  if (domain != 0) return AllocateExported(frames, bytes, domain);
  std::byte* const base = MapAnonymous(bytes, 0);
  if (base == nullptr) return OutOfMemory(bytes, "device frames");
  const std::uint32_t id = next_segment_++;
  segments_.emplace(id, Segment{{base, bytes}, 0});
  segment_bytes_ += bytes;
  return DeviceSegment{id, base, frames, -1, 0};
}

void CpuMemory::FreeSegment(std::uint32_t segment_id) {
  const auto found = segments_.find(segment_id);
  if (found == segments_.end()) return;
  const Mapping mapping = found->second.mapping;
  if (found->second.domain == 0) {
    munmap(mapping.base, mapping.bytes);
  } else {
    Domain& domain = domains_.at(found->second.domain);
    const auto offset = static_cast<std::uint64_t>(mapping.base - domain.mapping.base);
    domain.used.erase(offset);
    // The memory goes back to the system; the addresses stay and read as zero.
    (void)fallocate(domain.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                    static_cast<off_t>(mapping.bytes));
  }
  segment_bytes_ -= mapping.bytes;
  segments_.erase(found);
}

wire::Result<HostRegion> CpuMemory::ReserveHost(std::uint64_t bytes) {
  if (bytes == 0) return Status(Code::kInvalidArgument, "a host region of zero bytes");
  std::byte* const base = MapAnonymous(bytes, MAP_NORESERVE);
  if (base == nullptr) return OutOfMemory(bytes, "host frames");
  regions_.push_back({base, bytes});
  return HostRegion{base, bytes};
}

void CpuMemory::DecommitHost(std::byte* at, std::uint64_t bytes) {
  madvise(at, bytes, MADV_DONTNEED);
}

wire::Result<Import> CpuMemory::ImportMemory(const ImportSource& source) {
  Imported imported;
  wire::Result<ClientFile> file = CheckClientFile(source);
  if (!file.ok()) return file.status();
  imported.mapping.bytes = file->map_bytes;
  const std::uint64_t room = kMostImportedBytes - imported_bytes_;
  if (imports_.size() >= kMostImports || imported.mapping.bytes > room) {
    return Status(Code::kOutOfMemory, "import: no room for " + std::to_string(source.bytes) +
                                          " bytes beside " + std::to_string(imports_.size()) +
                                          " imports of " + std::to_string(imported_bytes_) + " bytes");
  }
  const int protection = source.writable ? PROT_READ | PROT_WRITE : PROT_READ;
  void* const raw = mmap(nullptr, imported.mapping.bytes, protection, MAP_SHARED, source.fd, 0);
  if (raw == MAP_FAILED) {
    const Code code = errno == EACCES || errno == EPERM ? Code::kPermissionDenied : Code::kOutOfMemory;
    return Status(code, "import: cannot map " + std::to_string(source.bytes) + " bytes: " + Errno());
  }
  imported.mapping.base = static_cast<std::byte*>(raw);
  if (file->guarded) imported.guard = Guard(raw, imported.mapping.bytes);
  imported_bytes_ += imported.mapping.bytes;
  const std::uint64_t id = next_import_++;
  imports_.emplace(id, imported);
  return Import{imported.mapping.base, source.bytes, id};
}

void CpuMemory::ReleaseImport(std::uint64_t import_id) {
  const auto found = imports_.find(import_id);
  if (found == imports_.end()) return;
  if (found->second.guard != nullptr) Unguard(found->second.guard);
  munmap(found->second.mapping.base, found->second.mapping.bytes);
  imported_bytes_ -= found->second.mapping.bytes;
  imports_.erase(found);
}

bool CpuMemory::ImportFailed(std::uint64_t import_id) const {
  const auto found = imports_.find(import_id);
  return found != imports_.end() && found->second.guard != nullptr &&
         found->second.guard->failed.load(std::memory_order_relaxed);
}

}  // namespace bitpager::kernels::cpu
