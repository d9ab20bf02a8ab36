// Pages on their way between the device and the disk, each through a slot of host memory: read, then copied
// in; or copied out, then written. Reports each end to the pager. Dispatcher thread.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "client/wire/status.h"
#include "daemon/disk_file.h"
#include "kernels/device.h"
#include "paging/pager.h"

namespace bitpager::daemon {

class DiskMoves {
 public:
  DiskMoves(kernels::Device& device, paging::Pager& pager) : device_(device), pager_(pager) {}
  ~DiskMoves() { End(); }
  DiskMoves(const DiskMoves&) = delete;
  DiskMoves& operator=(const DiskMoves&) = delete;

  // Makes the file for every disk frame, and `slots` slots. Errors: those of DiskFile::Make and ReserveHost.
  [[nodiscard]] wire::Status Start(const std::string& folder, std::uint64_t slots);

  // Ends what was begun, before the frames that it works on go; nothing may be moved afterwards.
  void End();
  void Load(paging::PageRef page, std::uint64_t disk_frame, std::byte* to);
  void Store(paging::PageRef page, std::uint64_t disk_frame, const std::byte* from);
  // Takes every move as far as it can go now. Returns how many pages it reported.
  int Poll();
  [[nodiscard]] bool idle() const { return waiting_.empty() && moves_.empty(); }

  // -1: there is no disk tier.
  [[nodiscard]] int bell() const { return file_ ? file_->bell() : -1; }
  [[nodiscard]] wire::Status fault() const { return file_ ? file_->fault() : wire::Status(); }

 private:
  enum class Stage : std::uint8_t { kFirst, kSecond };  // of a load: read, copy; of a store: copy, write
  struct Move {
    paging::PageRef page;
    std::uint64_t offset = 0;     // in the file
    std::byte* device = nullptr;  // the page's frame
    bool load = false;
    Stage stage = Stage::kFirst;
    bool transferred = false;  // between file and slot
    std::byte* slot = nullptr;
    kernels::Event copied;
    std::uint64_t number = 0;
  };

  void Begin();
  void Copy(Move& move);
  void Transfer(Move& move);
  [[nodiscard]] bool Ended(Move& move);  // takes it one stage further where it can go
  void Report(const Move& move);

  kernels::Device& device_;
  paging::Pager& pager_;
  std::unique_ptr<DiskFile> file_;
  std::vector<std::byte*> slots_;  // free
  std::deque<Move> waiting_;       // for a slot
  std::deque<Move> moves_;
  std::vector<std::uint64_t> finished_;  // kept for its memory
  std::uint64_t last_number_ = 0;
};

}  // namespace bitpager::daemon
