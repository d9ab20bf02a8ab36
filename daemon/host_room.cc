#include "daemon/host_room.h"

#include <string>

namespace bitpager::daemon {

using wire::Code;
using wire::Status;

Status CheckHostRoom(const Core& core, const Job& job, std::uint64_t bytes, const char* what) {
  const std::uint64_t page = core.page_bytes();
  const auto usage = core.pager.Usage(job.id);
  const std::uint64_t mine = (usage ? usage->host_frames * page : 0) + job.buffer_bytes;
  const std::uint64_t quota = job.spec.host_quota_frames * page;
  if (quota != 0 && (mine > quota || bytes > quota - mine)) {
    return {Code::kQuotaExceeded,
            std::string(what) + " needs " + std::to_string(bytes) + " bytes of host memory; job '" +
                job.name + "' has " + std::to_string(quota > mine ? quota - mine : 0) + " of its quota of " +
                std::to_string(quota) + " left. Hint: bitpager limit " + job.name + " --host SIZE."};
  }
  const std::uint64_t used = core.pager.used_host_frames() * page + core.registry.buffer_bytes();
  const std::uint64_t budget = core.settings.host_budget_bytes;
  if (used > budget || bytes > budget - used) {
    return {Code::kBudgetExceeded,
            std::string(what) + " needs " + std::to_string(bytes) + " bytes of host memory; the daemon has " +
                std::to_string(budget > used ? budget - used : 0) + " of its host budget of " +
                std::to_string(budget) + " left. Hint: raise --host-budget."};
  }
  return {};
}

}  // namespace bitpager::daemon
