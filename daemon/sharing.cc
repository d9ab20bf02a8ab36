#include "daemon/sharing.h"

#include <algorithm>
#include <utility>

#include "daemon/host_room.h"

namespace bitpager::daemon {

using wire::Code;
using wire::Status;

Status Sharing::BeginFill(Extent& extent) {
  const auto base = bases_.find(extent.paged);
  if (base == bases_.end()) return {};
  if (base->second.weights.size() == 1) {  // filled in place
    RemoveBase(extent.paged);
    return {};
  }
  const Job& job = *core_.registry.FindJob(extent.job);
  const std::uint64_t bytes = extent.pages * core_.page_bytes();
  Status room = CheckHostRoom(core_, job, bytes, "writing to a shared weight, which takes pages of its own,");
  if (!room.ok()) return room;
  paging::ExtentSpec spec;
  spec.job = job.id;
  spec.kind = wire::ExtentKind::kQuantizedWeight;
  spec.pages = extent.pages;
  spec.domain = job.domain;
  wire::Result<wire::ExtentId> fresh = core_.pager.AddExtent(spec);
  if (!fresh.ok()) return fresh.status();
  extent.fresh = *fresh;
  core_.mover.ExpectHost(extent.fresh, extent.pages);
  return {};
}

void Sharing::AbandonFill(Extent& extent) {
  if (!extent.fresh) return;
  core_.pager.RemoveExtent(extent.fresh);
  extent.fresh = {};
}

bool Sharing::EndFill(Session& session, Extent& extent, const WeightPiece* start) {
  if (extent.fresh) {
    const wire::ExtentId fresh = std::exchange(extent.fresh, {});
    Drop(extent);  // from those that have the old pages
    extent.paged = fresh;
  }
  const Weight& weight = *extent.weight();
  if (start == nullptr || !*start || !weight.shareable) return false;
  ContentHash hash = HashOf(weight, start->range().end);
  for (const std::span<const std::byte> plane : start->Planes()) hash.Add(plane);
  Settling one;
  one.session = session.identity().id;
  one.extent = &extent;
  one.key = {core_.registry.FindJob(extent.job)->domain, hash.Finish()};
  if (start->range().end == weight.blocks()) one.whole = one.key.start;
  if (Advance(one)) return false;
  settling_.push_back(one);
  return true;
}

void Sharing::Drop(Extent& extent) {
  settling_.remove_if([&](const Settling& one) { return one.extent == &extent; });
  const auto found = bases_.find(extent.paged);
  if (found != bases_.end() && found->second.weights.size() > 1) {
    std::erase(found->second.weights, &extent);
    leases_.DropHolds(extent);
    core_.pager.RemoveUse(extent.paged, extent.job);
    return;
  }
  if (found != bases_.end()) RemoveBase(extent.paged);
  if (reader_.Reads(extent.paged)) reader_.Stop();
  leases_.DropExtent(extent.paged);
  core_.pager.RemoveExtent(extent.paged);
  core_.room.Freed(core_.clock.NowNs());
}

int Sharing::Poll() {
  const std::uint64_t asked = reader_.asked();
  int work = 0;
  if (settling_.empty()) reader_.Stop();  // nobody waits for what is being read
  if (const auto outcome = reader_.Poll(); outcome) {
    TakeOutcome(*outcome);
    ++work;
  }
  for (auto one = settling_.begin(); one != settling_.end();) {
    const Session* session = core_.registry.FindSession(one->session);
    const bool given_up = session == nullptr || session->closing || core_.draining;
    if (!given_up && !Advance(*one)) {
      ++one;
      continue;
    }
    if (given_up) AddBase(*one);
    settled_.push_back(one->session);
    one = settling_.erase(one);
    ++work;
  }
  return work + (reader_.asked() > asked ? 1 : 0);
}

bool Sharing::Advance(Settling& one) {
  const auto alike = alike_.find(one.key);
  if (alike == alike_.end()) {
    AddBase(one);
    return true;
  }
  for (const wire::ExtentId paged : alike->second) {
    const Base& base = bases_.at(paged);
    if (base.whole || base.unreadable) continue;
    Read(paged, *base.weights.front());
    return false;
  }
  if (!one.whole) {
    Read(one.extent->paged, *one.extent);
    return false;
  }
  for (const wire::ExtentId paged : alike->second) {
    if (bases_.at(paged).whole != one.whole) continue;
    const Status merged = Merge(*one.extent, paged);
    if (merged.code() == Code::kPending) return false;
    if (merged.ok()) return true;
  }
  AddBase(one);
  return true;
}

void Sharing::Read(wire::ExtentId paged, const Extent& extent) {
  if (reader_.idle()) reader_.Begin(paged, extent.job, *extent.weight());
}

void Sharing::TakeOutcome(const ContentReader::Outcome& outcome) {
  if (const auto base = bases_.find(outcome.paged); base != bases_.end()) {
    base->second.whole = outcome.digest;
    base->second.unreadable = !outcome.digest;
    return;
  }
  for (auto one = settling_.begin(); one != settling_.end(); ++one) {
    if (one->extent->paged != outcome.paged) continue;
    one->whole = outcome.digest;
    if (outcome.digest) return;
    // It stays as it is: not shared.
    settled_.push_back(one->session);
    settling_.erase(one);
    return;
  }
}

Status Sharing::Merge(Extent& extent, wire::ExtentId into) {
  Status used = core_.pager.AddUse(into, extent.job);
  if (!used.ok()) return used;
  leases_.DropExtent(extent.paged);
  core_.pager.RemoveExtent(extent.paged);
  core_.room.Freed(core_.clock.NowNs());
  extent.paged = into;
  bases_.at(into).weights.push_back(&extent);
  return {};
}

void Sharing::AddBase(const Settling& one) {
  Base base;
  base.key = one.key;
  base.whole = one.whole;
  base.weights.push_back(one.extent);
  alike_[one.key].push_back(one.extent->paged);
  bases_.emplace(one.extent->paged, std::move(base));
}

void Sharing::RemoveBase(wire::ExtentId paged) {
  const auto base = bases_.find(paged);
  const auto alike = alike_.find(base->second.key);
  std::erase(alike->second, paged);
  if (alike->second.empty()) alike_.erase(alike);
  bases_.erase(base);
  if (reader_.Reads(paged)) reader_.Stop();
}

}  // namespace bitpager::daemon
