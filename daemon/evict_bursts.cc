#include "daemon/evict_bursts.h"

#include <algorithm>
#include <optional>
#include <string>

#include "daemon/snapshot.h"

namespace bitpager::daemon {
namespace {

using paging::Reason;

bool Told(Reason reason) {
  return reason == Reason::kShare || reason == Reason::kLimit || reason == Reason::kCommand ||
         reason == Reason::kPressure;
}

}  // namespace

void EvictBursts::Note(const paging::Actions& actions, std::uint64_t now_ns) {
  for (const paging::StoreAction& store : actions.stores) {
    if (Told(store.reason)) Note(store.page, store.reason, now_ns);
  }
  for (const paging::DropAction& drop : actions.drops) {
    if (Told(drop.reason)) Note(drop.page, drop.reason, now_ns);
  }
}

void EvictBursts::Note(paging::PageRef page, Reason reason, std::uint64_t now_ns) {
  const std::optional<wire::JobId> job = core_.pager.OldestUserOf(page.extent);
  if (!job) return;  // it ends
  Burst& burst = bursts_[{*job, reason}];
  if (burst.pages++ == 0) burst.since_ns = now_ns;
  burst.last_ns = now_ns;
}

int EvictBursts::Poll(std::uint64_t now_ns) {
  int told = 0;
  for (auto it = bursts_.begin(); it != bursts_.end();) {
    if (now_ns < it->second.EndNs()) {
      ++it;
      continue;
    }
    const auto [job_id, reason] = it->first;
    const std::uint64_t pages = it->second.pages;
    it = bursts_.erase(it);
    const Job* job = core_.registry.FindJob(job_id);
    if (job == nullptr) continue;
    core_.Tell(
        {"evict", job->name, pages * core_.page_bytes(), kReasonNames[static_cast<std::size_t>(reason)]});
    ++told;
  }
  return told;
}

std::optional<std::uint64_t> EvictBursts::NextDeadlineNs() const {
  std::optional<std::uint64_t> next;
  for (const auto& [key, burst] : bursts_) next = std::min(next.value_or(~std::uint64_t{0}), burst.EndNs());
  return next;
}

}  // namespace bitpager::daemon
