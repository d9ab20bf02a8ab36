// Leases: frames that clients read in place until they are revoked. Owns every session's lease slots and
// frame table; speaks the in_use / revoke protocol of client/wire/segment.h. A holder that does not let go in
// time (it is stopped, or never ends its use) is named, and the frames count as used until it does: nobody
// waits for them. Dispatcher thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "client/wire/ids.h"
#include "client/wire/records.h"
#include "client/wire/status.h"
#include "daemon/core.h"

namespace bitpager::daemon {

class Leases {
 public:
  explicit Leases(Core& core) : core_(core) {}

  // Grants a lease on a weight whose pages are resident; fills values[0] to [2]. kUnsupported where no frame
  // is exported, kFull beyond the reserve or without a free slot, kNotResident when pages must be loaded
  // first.
  [[nodiscard]] wire::Status Grant(Session& session, const Extent& extent,
                                   wire::CompletionRecord& completion);
  // Asks every holder of what the pager calls `extent` to let go.
  void Revoke(wire::ExtentId extent);
  // Looks at holders that were asked; reports extents that nobody holds any more, and those that became
  // overdue. Returns how many.
  int Poll();
  [[nodiscard]] bool revoking() const { return !revoking_.empty(); }
  // When Poll should look again; while revoking().
  [[nodiscard]] std::int64_t LookAgainNs() const;
  [[nodiscard]] bool overdue() const { return !overdue_.empty(); }
  // Who holds what is overdue; empty when nothing is.
  [[nodiscard]] std::string OverdueText() const;
  // Its client is gone: whatever it held is free.
  void DropSession(wire::SessionId session);
  // What the pager calls `extent` goes away: holders are told, and nothing waits for them longer than their
  // next look.
  void DropExtent(wire::ExtentId extent);
  // The weight leaves its pages, which others have too: the same for its holders alone.
  void DropHolds(const Extent& weight);

 private:
  struct Hold {
    wire::SessionId session;
    wire::ExtentId weight;  // as its session knows it
    std::uint32_t slot = 0;
    std::uint64_t first_frame = 0;
    std::uint64_t frames = 0;
    std::uint64_t generation = 0;
    bool revoked = false;
    std::uint64_t revoked_ns = 0;
  };
  // Lease slots and frame-table room of one session.
  struct Table {
    std::vector<std::uint32_t> free_slots;
    std::uint32_t used_slots = 0;
    std::map<std::uint64_t, std::uint64_t> free_frames;  // first -> count
    bool ready = false;
  };

  [[nodiscard]] bool Again(const Session& session, const Extent& extent,
                           wire::CompletionRecord& completion) const;
  static void Fill(const Extent& extent, const Hold& hold, wire::CompletionRecord& completion);
  [[nodiscard]] bool TakeRoom(Table& table, std::uint64_t frames, Hold& hold);
  void GiveRoom(const Hold& hold);
  void Publish(Session& session, const Extent& extent, const Hold& hold);
  [[nodiscard]] bool StillUsed(const Hold& hold);
  [[nodiscard]] bool Overdue(wire::ExtentId extent, const std::vector<Hold>& holders);
  void Released(wire::ExtentId extent);
  void Tell(Hold& hold);

  Core& core_;
  std::uint64_t last_generation_ = 0;
  std::map<wire::ExtentId, std::vector<Hold>> holds_;  // by what the pager calls their pages
  std::map<wire::SessionId, Table> tables_;
  std::vector<wire::ExtentId> revoking_;
  std::map<wire::ExtentId, std::string> overdue_;  // who holds them
};

}  // namespace bitpager::daemon
