#include "daemon/observe.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <vector>

#include "daemon/config.h"
#include "daemon/event.h"
#include "daemon/pressure.h"

namespace bitpager::daemon {
namespace {

ExtentSnapshot ObserveExtent(const Core& core, const Extent& extent) {
  ExtentSnapshot out;
  out.id = extent.id.value;
  out.pages = extent.pages;
  out.lingering = !extent.owner;
  out.uses = core.pager.UsesOf(extent.paged);
  out.resident_bytes = core.pager.FramesOf(extent.paged) * core.page_bytes();
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

paging::ByReason Bytes(const paging::ByReason& pages, std::uint64_t page) {
  paging::ByReason out = pages;
  for (std::uint64_t& count : out) count *= page;
  return out;
}

// Of jobs, past jobs and devices alike.
template <typename S>
void ObserveTraffic(const paging::Traffic& traffic, std::uint64_t page, S& out) {
  out.evictions_by_reason = traffic.evicted;
  out.moved_by_reason = {Bytes(traffic.to_device, page), Bytes(traffic.to_host, page),
                         Bytes(traffic.dropped, page)};
}

template <typename S>
void ObserveCounters(const JobCounters& counters, S& out) {
  out.steps = counters.steps;
  out.faults = counters.faults;
  out.stall_ns = counters.stall_ns;
  out.nonfinite_blocks = counters.nonfinite_blocks;
  out.step_ns = counters.step_ns;
}

HistogramSnapshot ObserveHistogram(const Histogram& histogram) {
  HistogramSnapshot out;
  for (const std::uint64_t ns : Histogram::kBoundsNs) out.bounds_s.push_back(static_cast<double>(ns) / 1e9);
  out.counts.assign(histogram.counts().begin(), histogram.counts().end());
  out.sum_s = static_cast<double>(histogram.sum_ns()) / 1e9;
  out.count = histogram.count();
  return out;
}

// What the same elements take elsewhere, less what they take here.
void ObserveSaved(const Extent& extent, std::uint64_t uses, std::uint64_t page, SavedSnapshot& out) {
  const std::uint64_t ours = extent.pages * page / std::max<std::uint64_t>(1, uses);
  const auto saved = [&](std::uint64_t theirs) { return theirs > ours ? theirs - ours : 0; };
  if (const Weight* weight = extent.weight(); weight != nullptr) {
    out.weights_16bit += saved(2 * weight->elements);
    return;
  }
  const Arena& arena = *extent.arena();
  std::uint64_t elements = 0;
  for (const std::uint64_t of_tensor : arena.elements) elements += of_tensor;
  if (arena.layout.bits == wire::StateBits::k8)
    out.states_32bit += saved(std::uint64_t{4} * arena.layout.states * elements);
}

void ObservePages(const paging::JobUsage& usage, const Peaks& before, std::uint64_t page, JobSnapshot& out) {
  out.peak_resident_bytes = std::max(before.resident, usage.peak_resident_frames) * page;
  out.peak_host_bytes = std::max(before.host, usage.peak_host_frames) * page;
  out.pages = usage.pages;
  out.resident_bytes = usage.resident_frames * page;
  out.host_bytes = usage.host_frames * page;
  out.disk_bytes = usage.disk_frames * page;
  out.leased_bytes = usage.leased_frames * page;
  out.dirty_bytes = usage.dirty_pages * page;
  out.shared_bytes = usage.shared_pages * page;
  for (std::size_t kind = 0; kind < 2; ++kind) {
    out.bytes_by_kind[kind] = usage.pages_by_kind[kind] * page;
    out.resident_by_kind[kind] = usage.resident_by_kind[kind] * page;
    out.host_by_kind[kind] = usage.host_by_kind[kind] * page;
    out.disk_by_kind[kind] = usage.disk_by_kind[kind] * page;
  }
  out.share_bytes = usage.share_frames * page;
  out.loaded_bytes = usage.loaded_pages * page;
  out.stored_bytes = usage.stored_pages * page;
  out.dropped_bytes = usage.dropped_pages * page;
  ObserveTraffic(usage.traffic, page, out);
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
  ObserveCounters(job.counters, out);
  out.step_ns_last = job.step_ns_last;
  out.stall_ns_last = job.stall_ns_last;
  out.last_event = job.last_event;
  if (const auto usage = core.pager.Usage(job.id); usage) ObservePages(*usage, job.peaks, page, out);
  for (const wire::ExtentId id : job.extents) {
    const Extent& extent = *core.registry.FindExtent(id);
    out.extents.push_back(ObserveExtent(core, extent));
    ObserveSaved(extent, out.extents.back().uses, page, out.saved_bytes);
  }
  return out;
}

// Jobs that are gone but for frames on their way out.
JobSnapshot ObserveEnding(const Core& core, wire::JobId id, const PastJobs::Ending& job) {
  JobSnapshot out;
  out.id = id.value;
  out.name = job.name;
  out.device = core.device_info.uuid;
  out.uid = job.uid;
  out.ending = true;
  ObserveCounters(job.counters, out);
  if (const auto usage = core.pager.Usage(id); usage) ObservePages(*usage, job.peaks, core.page_bytes(), out);
  return out;
}

PastJobSnapshot ObservePast(const Core& core, const PastJob& past) {
  PastJobSnapshot out;
  out.name = past.name;
  out.device = core.device_info.uuid;
  out.uid = past.uid;
  out.jobs = past.jobs;
  ObserveCounters(past.counters, out);
  ObserveTraffic(past.traffic, core.page_bytes(), out);
  return out;
}

DeviceSnapshot ObserveDevice(const Core& core) {
  const kernels::DeviceInfo& info = core.device_info;
  const std::uint64_t page = core.page_bytes();
  const paging::DeviceUsage usage = core.pager.Usage();
  const kernels::DeviceMemory memory = core.device.Memory();
  DeviceSnapshot out;
  out.kind = info.kind;
  out.uuid = info.uuid;
  out.name = info.name;
  out.gpu = info.kind == "cpu" ? info.kind : "";
  out.budget_frames = core.pager.config().device_frames;
  out.free_frames = core.pager.free_frames();
  out.used_frames = usage.used_frames;
  out.budget_bytes = out.budget_frames * page;
  out.free_bytes = out.free_frames * page;
  out.used_bytes = out.used_frames * page;
  out.host_budget_bytes = core.settings.host_budget_bytes;
  out.host_committed_bytes = usage.host_frames * page + core.registry.buffer_bytes();
  out.disk_budget_bytes = core.settings.pager.disk_frames * page;
  out.disk_committed_bytes = usage.disk_frames * page;
  out.memory_total_bytes = memory.total_bytes;
  out.memory_free_bytes = memory.free_bytes;
  out.own_bytes = memory.own_bytes;
  out.pinned_host_bytes = memory.pinned_host_bytes;
  out.pressure_ratio = Pressure::Ratio(memory.free_bytes, core.settings.free_watermark_bytes);
  out.leased_bytes = usage.leased_frames * page;
  out.dirty_bytes = usage.dirty_pages * page;
  out.link = {core.mover.to_device().bytes_per_s(), core.mover.to_host().bytes_per_s()};
  ObserveTraffic(usage.traffic, page, out);
  ObserveCounters(core.counters.jobs, out);
  out.requests = core.counters.requests;
  out.histograms = {ObserveHistogram(core.counters.step), ObserveHistogram(core.counters.stall),
                    ObserveHistogram(core.counters.fault), ObserveHistogram(core.counters.request)};
  return out;
}

std::uint64_t SumOf(const paging::ByReason& counts) {
  return std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
}

void ObserveTotals(const Core& core, Snapshot& out) {
  const DeviceSnapshot& device = out.devices.front();
  TotalsSnapshot& totals = out.totals;
  totals.loaded_bytes = SumOf(device.moved_by_reason.to_device);
  totals.stored_bytes = SumOf(device.moved_by_reason.to_host);
  totals.dropped_bytes = SumOf(device.moved_by_reason.dropped);
  totals.requests = device.requests;
  totals.steps = device.steps;
  totals.faults = device.faults;
  totals.stall_ns = device.stall_ns;
  totals.nonfinite_blocks = device.nonfinite_blocks;
  totals.step_ns = device.step_ns;
  totals.sessions_opened = core.counters.sessions_opened;
  totals.sessions_lost = core.counters.sessions_lost;
  for (const auto& [code, count] : core.counters.errors) {
    out.errors[std::string(wire::CodeName(code))] = count;
  }
}

}  // namespace

Snapshot Observe(Core& core) {
  Snapshot out;
  out.time_unix_ms = UnixMs();
  out.draining = core.draining;
  out.policy = std::string(PolicyName(core.pager.config().policy));
  out.page_bytes = core.page_bytes();
  out.window_pages = core.pager.config().window_pages;
  out.devices.push_back(ObserveDevice(core));
  out.host_budget_bytes = out.devices.front().host_budget_bytes;
  out.host_committed_bytes = out.devices.front().host_committed_bytes;
  const std::uint64_t now_ns = core.clock.NowNs();
  for (const auto& [id, job] : core.registry.jobs()) out.jobs.push_back(ObserveJob(core, job, now_ns));
  for (const auto& [id, job] : core.past_jobs.ending()) out.jobs.push_back(ObserveEnding(core, id, job));
  for (const PastJob& past : core.past_jobs.past()) out.past_jobs.push_back(ObservePast(core, past));
  for (const auto& [id, session] : core.registry.sessions()) {
    const Session::Identity& who = session->identity();
    out.sessions.push_back({id.value, who.peer.pid, who.peer.uid, core.registry.FindJob(who.job)->name,
                            core.device_info.uuid, who.rank, who.client,
                            static_cast<std::uint32_t>(session->outstanding())});
  }
  ObserveTotals(core, out);
  return out;
}

DevicePages ObservePages(const Core& core, std::uint64_t cells) {
  DevicePages out;
  out.uuid = core.device_info.uuid;
  out.kind = core.device_info.kind;
  out.gpu = out.kind == "cpu" ? out.kind : "";
  out.page_bytes = core.page_bytes();
  // What several weights lie in is shown once, with the first job that has it.
  std::map<wire::JobId, std::vector<wire::ExtentId>> shown;
  std::set<wire::ExtentId> seen;
  for (const auto& [id, job] : core.registry.jobs()) {
    for (const wire::ExtentId name : job.extents) {
      const Extent& extent = *core.registry.FindExtent(name);
      if (!seen.insert(extent.paged).second) continue;
      shown[id].push_back(extent.paged);
      out.pages += extent.pages;
    }
  }
  const std::uint64_t jobs = shown.size();
  // Every job may have a cell that is not full.
  const std::uint64_t whole = cells > jobs ? cells - jobs : 1;
  out.pages_per_cell = std::max<std::uint64_t>(1, (out.pages + whole - 1) / whole);
  for (const auto& [id, job] : core.registry.jobs()) {
    paging::PageCells of_job{out.pages_per_cell, 0, {}};
    for (const wire::ExtentId extent : shown[id]) core.pager.ReadPages(extent, of_job);
    if (of_job.cells.empty()) continue;
    const auto index = static_cast<std::uint32_t>(out.jobs.size());
    out.jobs.push_back(job.name);
    for (const paging::PageCounts& counts : of_job.cells) out.cells.push_back({index, counts});
  }
  return out;
}

}  // namespace bitpager::daemon
