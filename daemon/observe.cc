#include "daemon/observe.h"

#include <chrono>

#include "daemon/config.h"

namespace bitpager::daemon {
namespace {

ExtentSnapshot ObserveExtent(const Core& core, const Extent& extent) {
  ExtentSnapshot out;
  out.id = extent.id.value;
  out.pages = extent.pages;
  out.lingering = !extent.owner;
  out.uses = core.pager.UsesOf(extent.paged);
  for (std::uint64_t page = 0; page < extent.pages; ++page) {
    if (core.pager.FrameOf({extent.paged, page})) out.resident_bytes += core.page_bytes();
  }
  if (const Arena* arena = extent.arena(); arena != nullptr) {
    out.kind = "optimizer_state";
    out.name = arena->key.optimizer;
    out.rank = arena->key.rank;
    out.step = arena->applied_step;
  } else {
    out.kind = "quantized_weight";
    out.name = extent.weight()->name;
  }
  return out;
}

void ObservePages(const paging::JobUsage& usage, std::uint64_t page, JobSnapshot& out) {
  out.pages = usage.pages;
  out.resident_bytes = usage.resident_frames * page;
  out.host_bytes = usage.host_frames * page;
  out.leased_bytes = usage.leased_frames * page;
  out.dirty_bytes = usage.dirty_pages * page;
  out.shared_bytes = usage.shared_pages * page;
  for (std::size_t kind = 0; kind < 2; ++kind) {
    out.bytes_by_kind[kind] = usage.pages_by_kind[kind] * page;
    out.resident_by_kind[kind] = usage.resident_by_kind[kind] * page;
  }
  out.share_bytes = usage.share_frames * page;
  out.loaded_bytes = usage.loaded_pages * page;
  out.stored_bytes = usage.stored_pages * page;
  out.dropped_bytes = usage.dropped_pages * page;
}

JobSnapshot ObserveJob(Core& core, const Job& job, std::uint64_t now_ns) {
  JobSnapshot out;
  const std::uint64_t page = core.page_bytes();
  out.id = job.id.value;
  out.name = job.name;
  out.device = core.device_info.uuid;
  out.uid = job.uid;
  out.sessions = static_cast<std::uint32_t>(job.sessions.size());
  out.lingering = job.sessions.empty();
  if (job.linger_until_ns > now_ns) {
    out.linger_left_ms = static_cast<std::int64_t>((job.linger_until_ns - now_ns) / 1'000'000);
  }
  out.weight = job.spec.weight;
  out.device_quota_bytes = job.spec.device_quota_frames * page;
  out.host_quota_bytes = job.spec.host_quota_frames * page;
  out.buffer_bytes = job.buffer_bytes;
  out.steps = job.steps;
  out.stall_ns = job.stall_ns;
  out.nonfinite_blocks = job.nonfinite_blocks;
  if (const auto usage = core.pager.Usage(job.id); usage) ObservePages(*usage, page, out);
  for (const wire::ExtentId id : job.extents) {
    out.extents.push_back(ObserveExtent(core, *core.registry.FindExtent(id)));
  }
  return out;
}

DeviceSnapshot ObserveDevice(const Core& core) {
  const kernels::DeviceInfo& info = core.device_info;
  const std::uint64_t page = core.page_bytes();
  DeviceSnapshot out;
  out.kind = info.kind;
  out.uuid = info.uuid;
  out.name = info.name;
  out.budget_frames = core.pager.config().device_frames;
  out.free_frames = core.pager.free_frames();
  out.used_frames = out.budget_frames > out.free_frames ? out.budget_frames - out.free_frames : 0;
  out.budget_bytes = out.budget_frames * page;
  out.free_bytes = out.free_frames * page;
  out.used_bytes = out.used_frames * page;
  out.host_budget_bytes = core.settings.host_budget_bytes;
  out.host_committed_bytes = core.pager.used_host_frames() * page + core.registry.buffer_bytes();
  return out;
}

void ObserveTotals(const Core& core, Snapshot& out) {
  const std::uint64_t page = core.page_bytes();
  TotalsSnapshot& totals = out.totals;
  totals.loaded_bytes = core.counters.past_loaded_pages * page;
  totals.stored_bytes = core.counters.past_stored_pages * page;
  totals.dropped_bytes = core.counters.past_dropped_pages * page;
  for (const JobSnapshot& job : out.jobs) {
    totals.loaded_bytes += job.loaded_bytes;
    totals.stored_bytes += job.stored_bytes;
    totals.dropped_bytes += job.dropped_bytes;
  }
  totals.steps = core.counters.steps;
  totals.requests = core.counters.requests;
  totals.stall_ns = core.counters.stall_ns;
  totals.nonfinite_blocks = core.counters.nonfinite_blocks;
  totals.sessions_opened = core.counters.sessions_opened;
  totals.sessions_lost = core.counters.sessions_lost;
  for (const auto& [code, count] : core.counters.errors) {
    out.errors[std::string(wire::CodeName(code))] = count;
  }
}

}  // namespace

Snapshot Observe(Core& core) {
  Snapshot out;
  out.time_unix_ms = std::chrono::duration_cast<std::chrono::milliseconds>(
                         std::chrono::system_clock::now().time_since_epoch())
                         .count();
  out.draining = core.draining;
  out.policy = std::string(PolicyName(core.pager.config().policy));
  out.page_bytes = core.page_bytes();
  out.window_pages = core.pager.config().window_pages;
  out.devices.push_back(ObserveDevice(core));
  out.host_budget_bytes = out.devices.front().host_budget_bytes;
  out.host_committed_bytes = out.devices.front().host_committed_bytes;
  const std::uint64_t now_ns = core.clock.NowNs();
  for (const auto& [id, job] : core.registry.jobs()) out.jobs.push_back(ObserveJob(core, job, now_ns));
  for (const auto& [id, session] : core.registry.sessions()) {
    const Session::Identity& who = session->identity();
    out.sessions.push_back({id.value, who.peer.pid, who.peer.uid, core.registry.FindJob(who.job)->name,
                            core.device_info.uuid, who.rank, who.client,
                            static_cast<std::uint32_t>(session->outstanding())});
  }
  ObserveTotals(core, out);
  return out;
}

}  // namespace bitpager::daemon
