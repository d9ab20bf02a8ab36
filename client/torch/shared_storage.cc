#include "client/torch/shared_storage.h"

#include <ATen/MapAllocator.h>
#include <ATen/StorageUtils.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "client/torch/error.h"

namespace bitpager::optim {
namespace {

constexpr std::uint64_t kShmReserveBytes = 1U << 20;
constexpr rlim_t kFreeFiles = 64;

std::uint64_t FreeShmBytes() {
  struct statvfs state {};
  if (::statvfs("/dev/shm", &state) != 0) return 0;
  return static_cast<std::uint64_t>(state.f_bavail) * state.f_frsize;
}

// libtorch keeps one descriptor for each shared storage: raises the soft limit while the hard one allows.
bool AllowOneMoreFile() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return true;
  std::error_code error;
  rlim_t used = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", error)) {
    used += entry.path().empty() ? 0 : 1;
  }
  if (used + kFreeFiles < limit.rlim_cur) return true;
  if (limit.rlim_cur >= limit.rlim_max) return used + kFreeFiles / 4 < limit.rlim_cur;
  limit.rlim_cur = std::min(limit.rlim_cur * 2, limit.rlim_max);
  return ::setrlimit(RLIMIT_NOFILE, &limit) == 0;
}

// The shared file behind the tensor's storage, made if need be; -1 and why there is none. libtorch owns it.
int ShareFile(const at::Tensor& tensor, std::string& reason) {
  const c10::Storage& storage = tensor.storage();
  if (at::RefcountedMapAllocator::fromDataPtr(storage.data_ptr()) != nullptr) {
    reason = "its shared memory is a named file of another process";
    return -1;
  }
  const auto* mapped = at::MapAllocator::fromDataPtr(storage.data_ptr());
  if (mapped == nullptr) {
    const std::uint64_t free_bytes = FreeShmBytes();
    if (!storage.resizable()) {
      reason = "its memory belongs to another owner (from_blob, a mapped file)";
    } else if (free_bytes < storage.nbytes() + kShmReserveBytes) {
      reason = "/dev/shm has " + std::to_string(free_bytes) + " bytes left and " +
               std::to_string(storage.nbytes()) + " are needed (containers: --shm-size)";
    } else if (!AllowOneMoreFile()) {
      reason = "this process has reached its limit of open files (ulimit -n)";
    } else {
      at::share_memory_(const_cast<at::Tensor&>(tensor));
      mapped = at::MapAllocator::fromDataPtr(tensor.storage().data_ptr());
      if (mapped == nullptr) reason = "libtorch could not move it";
    }
  }
  if (mapped == nullptr) return -1;
  if (mapped->fd() < 0) reason = "its shared file is closed";
  return mapped->fd();
}

}  // namespace

wire::Slice SharedStorages::Locate(const at::Tensor& tensor) {
  const c10::StorageImpl* const key = tensor.storage().unsafeGetStorageImpl();
  auto found = entries_.find(key);
  if (found != entries_.end() &&
      (found->second.data != tensor.storage().data() || found->second.bytes != tensor.storage().nbytes())) {
    entries_.erase(found);
    found = entries_.end();
  }
  if (found == entries_.end()) {
    Sweep();
    found = entries_.emplace(key, Register(tensor)).first;
  }
  const Entry& entry = found->second;
  if (entry.buffer == nullptr) return {};
  return {entry.buffer->id(), static_cast<std::uint64_t>(tensor.storage_offset()) * tensor.element_size()};
}

void SharedStorages::Sweep() {
  std::erase_if(entries_, [](const auto& item) { return item.second.storage.expired(); });
}

SharedStorages::Entry SharedStorages::Register(const at::Tensor& tensor) {
  std::string reason;
  int file = -1;
  try {
    file = ShareFile(tensor, reason);
  } catch (const c10::Error& error) {
    reason = error.what_without_backtrace();
  }
  const c10::Storage& storage = tensor.storage();
  Entry entry{c10::weak_intrusive_ptr<c10::StorageImpl>(storage.getWeakStorageImpl()), storage.data(),
              storage.nbytes(), nullptr};
  if (file >= 0) {
    entry.buffer = Take(client::Buffer::Register(*session_, file, storage.nbytes()));
  } else {
    reason_ = reason;
  }
  return entry;
}

}  // namespace bitpager::optim
