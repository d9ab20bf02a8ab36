// The shared base: quantized weights of one share domain that hold the same lie in one extent, however many
// sessions and jobs have them. Equal is what has the same SHA-256 over all that the numbers depend on: type,
// block size, double quantization with its offset, element count, codes and statistics. The daemon hashes
// what is in its pages; nothing that a client says is taken for it.
//
// A weight that was filled is frozen, and settles: the start of its content is looked up; where nothing in
// its domain begins alike, as for every weight of a first job, that is all. Else it is hashed whole, once, as
// is what it may equal, and where both agree its pages are given up for those that are there. Until it has
// settled its request is not complete, so that a job that loads weight by weight never holds more than one
// twice.
//
// To fill a weight again whose pages others have too, new pages are taken first (copy on write): the others
// keep theirs. Dispatcher thread.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <optional>
#include <vector>

#include "client/wire/ids.h"
#include "client/wire/status.h"
#include "daemon/content_reader.h"
#include "daemon/core.h"
#include "daemon/leases.h"

namespace bitpager::daemon {

class Sharing {
 public:
  // `ring` is called on another thread when there is something to do.
  Sharing(Core& core, Leases& leases, std::function<void()> ring)
      : core_(core), leases_(leases), reader_(core, std::move(ring)) {}

  // ---- filling
  // Before: takes new pages when others have the present ones. kQuotaExceeded, kBudgetExceeded: the weight is
  // as it was, and must not be filled.
  [[nodiscard]] wire::Status BeginFill(Extent& extent);
  // It was not begun: the weight is as it was.
  void AbandonFill(Extent& extent);
  // It is filled. True: its session's request is complete once TakeSettled names the session.
  [[nodiscard]] bool EndFill(Session& session, Extent& extent, const WeightPiece* start);

  // ---- going
  // The extent ends: its pages go, unless others have them.
  void Drop(Extent& extent);

  // ---- moving on
  // Returns how much there was to do.
  int Poll();
  [[nodiscard]] std::vector<wire::SessionId> TakeSettled() { return std::exchange(settled_, {}); }
  [[nodiscard]] ContentReader& reader() { return reader_; }
  [[nodiscard]] bool idle() const { return reader_.idle(); }

 private:
  struct Key {
    paging::DomainId domain = paging::kPrivateDomain;
    Digest start{};
    auto operator<=>(const Key&) const = default;
  };
  // An extent whose content is whole and may be had by others.
  struct Base {
    Key key;
    std::optional<Digest> whole;
    bool unreadable = false;       // hashing it failed: nobody shares it
    std::vector<Extent*> weights;  // that lie in it, oldest first
  };
  // A weight that was filled and is not a base yet.
  struct Settling {
    wire::SessionId session;
    Extent* extent = nullptr;
    Key key;
    std::optional<Digest> whole;
  };

  // Whether it is settled now.
  [[nodiscard]] bool Advance(Settling& one);
  void Read(wire::ExtentId paged, const Extent& extent);
  // kPending: to be tried again.
  [[nodiscard]] wire::Status Merge(Extent& extent, wire::ExtentId into);
  void AddBase(const Settling& one);
  void RemoveBase(wire::ExtentId paged);
  void TakeOutcome(const ContentReader::Outcome& outcome);

  Core& core_;
  Leases& leases_;
  ContentReader reader_;
  std::map<wire::ExtentId, Base> bases_;  // by the extent that the pages lie in
  std::map<Key, std::vector<wire::ExtentId>> alike_;
  std::list<Settling> settling_;  // oldest first
  std::vector<wire::SessionId> settled_;
};

}  // namespace bitpager::daemon
