#include "daemon/disk_moves.h"

#include <algorithm>
#include <utility>

namespace bitpager::daemon {

using wire::Result;
using wire::Status;

void DiskMoves::End() {
  file_.reset();  // ends what uses the slots
  for (const Move& move : moves_) device_.Synchronize(move.copied);
  moves_.clear();
  waiting_.clear();
}

Status DiskMoves::Start(const std::string& folder, std::uint64_t slots) {
  const std::uint64_t page = pager_.config().page_bytes;
  Result<std::unique_ptr<DiskFile>> file = DiskFile::Make(folder, pager_.config().disk_frames * page);
  if (!file.ok()) return file.status();
  const Result<kernels::HostRegion> region = device_.ReserveHost(slots * page);
  if (!region.ok()) return region.status();
  device_.ExpectHost(region->base, slots * page);
  for (std::uint64_t i = 0; i < slots; ++i) slots_.push_back(region->base + i * page);
  file_ = std::move(*file);
  return {};
}

void DiskMoves::Load(paging::PageRef page, std::uint64_t disk_frame, std::byte* to) {
  Move move;
  move.page = page;
  move.offset = disk_frame * pager_.config().page_bytes;
  move.device = to;
  move.load = true;
  waiting_.push_back(move);
  Begin();
}

void DiskMoves::Store(paging::PageRef page, std::uint64_t disk_frame, const std::byte* from) {
  Move move;
  move.page = page;
  move.offset = disk_frame * pager_.config().page_bytes;
  move.device = const_cast<std::byte*>(from);  // read alone, by Copy
  waiting_.push_back(move);
  Begin();
}

void DiskMoves::Begin() {
  while (!waiting_.empty() && !slots_.empty()) {
    Move& move = moves_.emplace_back(waiting_.front());
    waiting_.pop_front();
    move.slot = slots_.back();
    slots_.pop_back();
    move.number = ++last_number_;
    move.load ? Transfer(move) : Copy(move);
  }
}

void DiskMoves::Copy(Move& move) {
  const std::uint64_t page = pager_.config().page_bytes;
  move.copied = move.load ? device_.Copy(kernels::Queue::kLoad, move.device, move.slot, page)
                          : device_.Copy(kernels::Queue::kStore, move.slot, move.device, page);
}

void DiskMoves::Transfer(Move& move) {
  file_->Start({move.number, move.load, move.slot, move.offset, pager_.config().page_bytes});
}

bool DiskMoves::Ended(Move& move) {
  const bool copying = move.load == (move.stage == Stage::kSecond);
  if (copying ? !device_.Done(move.copied) : !move.transferred) return false;
  if (move.stage == Stage::kSecond) return true;
  move.stage = Stage::kSecond;
  move.load ? Copy(move) : Transfer(move);
  return false;
}

void DiskMoves::Report(const Move& move) {
  slots_.push_back(move.slot);
  move.load ? pager_.LoadDone(move.page) : pager_.StoreDone(move.page);
}

int DiskMoves::Poll() {
  if (moves_.empty()) return 0;
  finished_.clear();
  file_->Finished(finished_);
  // What was read, or written, is not what it should be: nothing is reported, the fault ends the device's
  // work.
  if (!file_->fault().ok()) return finished_.empty() ? 0 : 1;
  for (const std::uint64_t number : finished_) {
    // Numbers grow along moves_.
    const auto found = std::lower_bound(moves_.begin(), moves_.end(), number,
                                        [](const Move& move, std::uint64_t n) { return move.number < n; });
    found->transferred = true;
  }
  int reported = 0;
  const auto ended = [&](Move& move) {
    if (!Ended(move)) return false;
    Report(move);
    ++reported;
    return true;
  };
  std::erase_if(moves_, ended);
  if (reported > 0) Begin();
  return reported;
}

}  // namespace bitpager::daemon
