#include "daemon/core.h"

#include <algorithm>

namespace bitpager::daemon {

void Core::Tell(const Notice& notice) {
  if (!notice.job.empty()) {
    for (auto& [id, job] : registry.jobs()) {
      if (job.name == notice.job) job.last_event = notice.name;
    }
  }
  notify(notice);
}

void Core::CollectPeaks(Job& job) {
  const auto usage = pager.Usage(job.id);
  if (!usage) return;
  const auto raise = [&](Peaks& peaks) {
    peaks.resident = std::max(peaks.resident, usage->peak_resident_frames);
    peaks.host = std::max(peaks.host, usage->peak_host_frames);
  };
  raise(job.peaks);
  for (const wire::SessionId id : job.sessions) raise(registry.FindSession(id)->peaks);
  pager.ResetPeaks(job.id);
}

void Core::BeginPeaks(Session& session) {
  Job& job = *registry.FindJob(session.identity().job);
  CollectPeaks(job);
  const auto usage = pager.Usage(job.id);
  if (usage) session.peaks = {usage->resident_frames, usage->host_frames};
}

void Core::TellSeldom(Notice notice) {
  constexpr std::uint64_t kApartNs = 1'000'000'000;
  constexpr std::size_t kMostKept = 256;
  if (seldom_.size() >= kMostKept) seldom_.clear();
  const std::uint64_t now_ns = clock.NowNs();
  Seldom& seldom = seldom_[{notice.name, notice.job}];
  if (seldom.told_ns != 0 && now_ns - seldom.told_ns < kApartNs) {
    ++seldom.untold;
    return;
  }
  if (seldom.untold > 0) notice.text += " (and " + std::to_string(seldom.untold) + " times before)";
  seldom = {now_ns, 0};
  Tell(notice);
}

}  // namespace bitpager::daemon
