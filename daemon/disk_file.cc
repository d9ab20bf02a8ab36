#include "daemon/disk_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace bitpager::daemon {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

constexpr int kThreads = 2;

Status Refused(const std::string& folder, int error) {
  switch (error) {
    case EACCES:
    case EPERM:
    case EROFS:
      return {Code::kPermissionDenied, "memory.disk_folder: " + folder + " cannot be written (" +
                                           std::strerror(error) + "). Hint: choose a folder of this user's"};
    case ENOENT:
    case ENOTDIR:
      return {Code::kInvalidArgument, "memory.disk_folder: " + folder + " is no folder (" +
                                          std::strerror(error) + "). Hint: mkdir -p " + folder};
    default:
      return {Code::kInternal, "memory.disk_folder: " + folder + ": " + std::strerror(error)};
  }
}

Status CheckFolder(const std::string& folder) {
  struct statfs system {};
  if (::statfs(folder.c_str(), &system) != 0) return Refused(folder, errno);
  if (system.f_type != TMPFS_MAGIC && system.f_type != RAMFS_MAGIC) return {};
  return {Code::kInvalidArgument,
          "memory.disk_folder: " + folder +
              " lies in memory (tmpfs), so nothing would be won. Hint: a folder on a disk"};
}

// A file that is in no folder's list, or -1 and errno. Some file systems make none without a name: there it
// has one for a moment.
int MakeNameless(const std::string& folder) {
  const int file = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (file >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)) return file;
  std::string name = folder + "/bitpager.XXXXXX";
  const int named = ::mkostemp(name.data(), O_CLOEXEC);
  if (named >= 0) ::unlink(name.c_str());
  return named;
}

// Sets the blocks aside. File systems that cannot are told of: there a full disk is found out late.
Status SetAside(int file, const std::string& folder, std::uint64_t bytes) {
  if (::fallocate(file, 0, 0, static_cast<off_t>(bytes)) == 0) return {};
  const int error = errno;
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) {
    return {Code::kBudgetExceeded, "memory.disk_budget: " + folder + " has no room for " +
                                       std::to_string(bytes) + " bytes (" + std::strerror(error) +
                                       "). Hint: a smaller --disk-budget, or another --disk-folder"};
  }
  if (error != EOPNOTSUPP && error != ENOSYS) return Refused(folder, error);
  spdlog::warn("{} cannot set room aside: a disk that others fill up ends this daemon's jobs", folder);
  return ::ftruncate(file, static_cast<off_t>(bytes)) == 0 ? Status() : Refused(folder, errno);
}

}  // namespace

Result<std::uint64_t> DiskFile::RoomOf(const std::string& folder) {
  if (Status fine = CheckFolder(folder); !fine.ok()) return fine;
  struct statvfs room {};
  if (::statvfs(folder.c_str(), &room) != 0) return Refused(folder, errno);
  return static_cast<std::uint64_t>(room.f_bavail) * room.f_frsize;
}

Result<std::unique_ptr<DiskFile>> DiskFile::Make(const std::string& folder, std::uint64_t bytes) {
  if (Status fine = CheckFolder(folder); !fine.ok()) return fine;
  wire::UniqueFd file(MakeNameless(folder));
  if (!file) return Refused(folder, errno);
  if (Status room = SetAside(file.get(), folder, bytes); !room.ok()) return room;
  wire::UniqueFd bell(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!bell) return Status(Code::kInternal, std::string("no eventfd: ") + std::strerror(errno));
  return std::unique_ptr<DiskFile>(new DiskFile(std::move(file), std::move(bell), folder));
}

DiskFile::DiskFile(wire::UniqueFd file, wire::UniqueFd bell, std::string folder)
    : file_(std::move(file)), bell_(std::move(bell)), folder_(std::move(folder)) {
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are main's; the threads inherit the mask
  for (int i = 0; i < kThreads; ++i) threads_.emplace_back([this] { Run(); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

DiskFile::~DiskFile() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    queue_.clear();
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void DiskFile::Start(const Transfer& transfer) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(transfer);
  }
  wake_.notify_one();
}

void DiskFile::Finished(std::vector<std::uint64_t>& numbers) {
  const std::lock_guard lock(mutex_);
  numbers.insert(numbers.end(), finished_.begin(), finished_.end());
  finished_.clear();
}

Status DiskFile::fault() const {
  const std::lock_guard lock(mutex_);
  return fault_;
}

Status DiskFile::Move(const Transfer& transfer) const {
  std::uint64_t done = 0;
  while (done < transfer.bytes) {
    const auto at = static_cast<off_t>(transfer.offset + done);
    const ssize_t moved = transfer.read
                              ? ::pread(file_.get(), transfer.memory + done, transfer.bytes - done, at)
                              : ::pwrite(file_.get(), transfer.memory + done, transfer.bytes - done, at);
    if (moved < 0 && errno == EINTR) continue;
    if (moved <= 0) {
      return {Code::kDeviceFault, std::string("pages in ") + folder_ + " cannot be " +
                                      (transfer.read ? "read" : "written") + " (" +
                                      (moved == 0 ? "the file ends early" : std::strerror(errno)) +
                                      "). Hint: look at the disk, dmesg says more"};
    }
    done += static_cast<std::uint64_t>(moved);
  }
  // Written is what the disk has: an error that came later would be nobody's.
  if (transfer.read || ::fdatasync(file_.get()) == 0) return {};
  return {Code::kDeviceFault, std::string("pages in ") + folder_ + " cannot be written (" +
                                  std::strerror(errno) + "). Hint: look at the disk, dmesg says more"};
}

void DiskFile::Run() {
  ::pthread_setname_np(::pthread_self(), "bp-disk");
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stop_ || !queue_.empty(); });
    if (stop_) return;
    const Transfer transfer = queue_.front();
    queue_.pop_front();
    lock.unlock();
    const Status moved = Move(transfer);
    lock.lock();
    if (!moved.ok() && fault_.ok()) fault_ = moved;
    finished_.push_back(transfer.number);
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t rung = ::write(bell_.get(), &one, sizeof(one));  // full: it rings already
  }
}

}  // namespace bitpager::daemon
