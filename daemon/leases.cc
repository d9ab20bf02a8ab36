#include "daemon/leases.h"

#include <algorithm>
#include <bit>

namespace bitpager::daemon {

using wire::Code;
using wire::Status;

Status Leases::Grant(Session& session, const Extent& extent, wire::CompletionRecord& completion) {
  if (!core_.device_info.exports) {
    return {Code::kUnsupported, "this device's frames cannot be read by other processes."};
  }
  if (Again(session, extent, completion)) return {};
  Hold hold;
  hold.session = session.identity().id;
  hold.weight = extent.id;
  hold.frames = extent.pages;
  hold.generation = ++last_generation_;
  Table& table = tables_[hold.session];
  if (!TakeRoom(table, extent.pages, hold)) {
    return {Code::kFull, "this session holds as many leases as its table has room for."};
  }
  std::vector<Hold>& holders = holds_[extent.paged];
  if (holders.empty()) {
    Status leased = core_.pager.Lease(extent.paged);
    if (!leased.ok()) {
      GiveRoom(hold);
      holds_.erase(extent.paged);
      return leased;
    }
  } else if (std::find(revoking_.begin(), revoking_.end(), extent.paged) != revoking_.end()) {
    GiveRoom(hold);
    return {Code::kFull, "the lease on this weight is being revoked."};
  }
  holders.push_back(hold);
  Publish(session, extent, hold);
  Fill(extent, hold, completion);
  return {};
}

// The session holds a lease on the extent: the same one serves.
bool Leases::Again(const Session& session, const Extent& extent, wire::CompletionRecord& completion) const {
  const auto found = holds_.find(extent.paged);
  if (found == holds_.end()) return false;
  for (const Hold& hold : found->second) {
    if (hold.session != session.identity().id || hold.weight != extent.id || hold.revoked) continue;
    Fill(extent, hold, completion);
    return true;
  }
  return false;
}

void Leases::Fill(const Extent& extent, const Hold& hold, wire::CompletionRecord& completion) {
  completion.values[0] = hold.slot;
  completion.values[1] = hold.generation;
  completion.values[2] = std::bit_cast<std::uint32_t>(extent.weight()->format.offset);
}

bool Leases::TakeRoom(Table& table, std::uint64_t frames, Hold& hold) {
  if (!table.ready) {
    table.free_frames[0] = wire::kLeaseFrames;
    table.ready = true;
  }
  const auto room = std::find_if(table.free_frames.begin(), table.free_frames.end(),
                                 [&](const auto& run) { return run.second >= frames; });
  if (room == table.free_frames.end()) return false;
  if (table.free_slots.empty() && table.used_slots == wire::kLeaseSlots) return false;
  if (table.free_slots.empty()) {
    hold.slot = table.used_slots++;
  } else {
    hold.slot = table.free_slots.back();
    table.free_slots.pop_back();
  }
  hold.first_frame = room->first;
  const std::uint64_t left = room->second - frames;
  table.free_frames.erase(room);
  if (left > 0) table.free_frames[hold.first_frame + frames] = left;
  return true;
}

void Leases::GiveRoom(const Hold& hold) {
  const auto found = tables_.find(hold.session);
  if (found == tables_.end()) return;
  Table& table = found->second;
  table.free_slots.push_back(hold.slot);
  auto here = table.free_frames.emplace(hold.first_frame, hold.frames).first;
  const auto next = std::next(here);
  if (next != table.free_frames.end() && here->first + here->second == next->first) {
    here->second += next->second;
    table.free_frames.erase(next);
  }
  if (here == table.free_frames.begin()) return;
  const auto before = std::prev(here);
  if (before->first + before->second == here->first) {
    before->second += here->second;
    table.free_frames.erase(here);
  }
}

void Leases::Publish(Session& session, const Extent& extent, const Hold& hold) {
  const wire::SegmentView view = session.segment();
  for (std::uint64_t page = 0; page < extent.pages; ++page) {
    const paging::FrameRef frame = *core_.pager.FrameOf({extent.paged, page});
    const kernels::DeviceSegment& segment = *core_.mover.SegmentOf(frame);
    view.lease_frames()[hold.first_frame + page] = {core_.mover.MappingOf(segment),
                                                    segment.fd_offset + frame.slot * core_.page_bytes()};
  }
  wire::LeaseSlot& slot = view.leases()[hold.slot];
  slot.extent = extent.id.value;
  slot.first_frame = hold.first_frame;
  slot.frames = hold.frames;
  // Pairs with the client's acquire of the completion that names this slot.
  slot.generation.store(hold.generation, std::memory_order_release);
}

bool Leases::StillUsed(const Hold& hold) {
  Session* session = core_.registry.FindSession(hold.session);
  if (session == nullptr) return false;
  const wire::LeaseSlot& slot = session->segment().leases()[hold.slot];
  // Sequentially consistent after the store of `revoke`: pairs with the client's store of in_use, then load
  // of revoke. Acquire pairs with the write of the client's stream behind its kernels.
  const std::uint64_t begun = slot.in_use.load(std::memory_order_seq_cst);
  return slot.ended.load(std::memory_order_acquire) != begun;
}

void Leases::Revoke(wire::ExtentId extent) {
  const auto found = holds_.find(extent);
  if (found == holds_.end()) return;
  for (Hold& hold : found->second) Tell(hold);
  if (std::find(revoking_.begin(), revoking_.end(), extent) == revoking_.end()) revoking_.push_back(extent);
}

void Leases::Tell(Hold& hold) {
  if (hold.revoked) return;
  hold.revoked = true;
  hold.revoked_ns = core_.clock.NowNs();
  Session* session = core_.registry.FindSession(hold.session);
  if (session == nullptr) return;
  session->segment().leases()[hold.slot].revoke.store(hold.generation, std::memory_order_seq_cst);
}

int Leases::Poll() {
  int released = 0;
  for (std::size_t i = 0; i < revoking_.size();) {
    const wire::ExtentId extent = revoking_[i];
    std::vector<Hold>& holders = holds_[extent];
    const auto free = std::remove_if(holders.begin(), holders.end(), [&](const Hold& hold) {
      if (StillUsed(hold)) return false;
      GiveRoom(hold);
      return true;
    });
    holders.erase(free, holders.end());
    if (!holders.empty()) {
      released += Overdue(extent, holders) ? 1 : 0;
      ++i;
      continue;
    }
    revoking_.erase(revoking_.begin() + static_cast<std::ptrdiff_t>(i));
    Released(extent);
    ++released;
  }
  return released;
}

// Whether the extent has become overdue now.
bool Leases::Overdue(wire::ExtentId extent, const std::vector<Hold>& holders) {
  if (overdue_.count(extent) != 0) return false;
  const std::uint64_t now_ns = core_.clock.NowNs();
  const std::uint64_t limit_ns = core_.settings.lease_return_ms * 1'000'000;
  const auto late = std::find_if(holders.begin(), holders.end(),
                                 [&](const Hold& hold) { return now_ns - hold.revoked_ns >= limit_ns; });
  if (late == holders.end()) return false;
  const Session::Identity& who = core_.registry.FindSession(late->session)->identity();
  const std::string& job = core_.registry.FindJob(who.job)->name;
  const std::uint64_t bytes = late->frames * core_.page_bytes();
  // Short: it fits the message of a completion behind a few words more.
  overdue_[extent] = "job '" + job + "' of uid " + std::to_string(who.peer.uid) + " (process " +
                     std::to_string(who.peer.pid) + ") does not give " + std::to_string(bytes) +
                     " leased bytes back. Hint: continue or end it";
  core_.Tell({"error", job, bytes, overdue_[extent]});
  core_.pager.LeaseOverdue(extent);
  return true;
}

std::int64_t Leases::LookAgainNs() const {
  // What is overdue may stay so for long: a stopped process costs the daemon next to nothing.
  return overdue_.size() < revoking_.size() ? 1'000'000 : 50'000'000;
}

std::string Leases::OverdueText() const {
  return overdue_.empty() ? std::string() : overdue_.begin()->second;
}

void Leases::Released(wire::ExtentId extent) {
  holds_.erase(extent);
  overdue_.erase(extent);
  core_.pager.LeaseReleased(extent);
}

void Leases::DropSession(wire::SessionId session) {
  tables_.erase(session);
  std::vector<wire::ExtentId> empty;
  for (auto& [extent, holders] : holds_) {
    std::erase_if(holders, [&](const Hold& hold) { return hold.session == session; });
    if (holders.empty()) empty.push_back(extent);
  }
  for (const wire::ExtentId extent : empty) {
    std::erase(revoking_, extent);
    Released(extent);
  }
}

void Leases::DropHolds(const Extent& weight) {
  const auto found = holds_.find(weight.paged);
  if (found == holds_.end()) return;
  std::erase_if(found->second, [&](Hold& hold) {
    if (hold.weight != weight.id) return false;
    Tell(hold);
    GiveRoom(hold);
    return true;
  });
  if (!found->second.empty()) return;
  std::erase(revoking_, weight.paged);
  Released(weight.paged);
}

void Leases::DropExtent(wire::ExtentId extent) {
  const auto found = holds_.find(extent);
  if (found == holds_.end()) return;
  Revoke(extent);
  for (const Hold& hold : found->second) GiveRoom(hold);
  std::erase(revoking_, extent);
  Released(extent);
}

}  // namespace bitpager::daemon
