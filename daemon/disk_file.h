// Frames on disk: a file without a name, and the threads that read and write it. What goes through it is
// copied between the file and memory that the caller lends until it is told of the end. Calls from the
// dispatcher thread.
//
// The file is in no folder's list and goes with the process; its blocks are set aside when it is made, so
// that a page that was admitted can always be written.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "client/wire/status.h"
#include "client/wire/unique_fd.h"

namespace bitpager::daemon {

class DiskFile {
 public:
  struct Transfer {
    std::uint64_t number = 0;  // the caller's
    bool read = false;
    std::byte* memory = nullptr;
    std::uint64_t offset = 0;
    std::uint64_t bytes = 0;
  };

  // `bytes` in `folder`. kInvalidArgument: no folder, or one that lies in memory; kPermissionDenied;
  // kBudgetExceeded: the disk has not so much room; kUnsupported: the file system has no files without a
  // name.
  [[nodiscard]] static wire::Result<std::unique_ptr<DiskFile>> Make(const std::string& folder,
                                                                    std::uint64_t bytes);
  // Bytes that this user may write in `folder`. Errors as Make.
  [[nodiscard]] static wire::Result<std::uint64_t> RoomOf(const std::string& folder);
  ~DiskFile();  // what was begun ends
  DiskFile(const DiskFile&) = delete;
  DiskFile& operator=(const DiskFile&) = delete;

  // Queues it; two run at a time. The memory is the file's until Finished names the number.
  void Start(const Transfer& transfer);
  // Appends the numbers of what has finished since the last call.
  void Finished(std::vector<std::uint64_t>& numbers);
  // The first failure; what it concerns is lost. kDeviceFault.
  [[nodiscard]] wire::Status fault() const;
  // Readable after something finished, until it is read (8 bytes).
  [[nodiscard]] int bell() const { return bell_.get(); }

 private:
  DiskFile(wire::UniqueFd file, wire::UniqueFd bell, std::string folder);
  void Run();
  [[nodiscard]] wire::Status Move(const Transfer& transfer) const;

  const wire::UniqueFd file_;
  const wire::UniqueFd bell_;
  const std::string folder_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Transfer> queue_;           // guarded by mutex_
  std::vector<std::uint64_t> finished_;  // guarded by mutex_
  wire::Status fault_;                   // guarded by mutex_
  bool stop_ = false;                    // guarded by mutex_
  std::vector<std::thread> threads_;     // last: they use everything above
};

}  // namespace bitpager::daemon
