#include "tools/replay_main/step_trace.h"

#include <algorithm>

#include "tools/replay_main/recording.h"

namespace bitpager::replay {
namespace {

using daemon::ExtentSnapshot;
using daemon::JobSnapshot;
using daemon::Snapshot;

std::uint64_t Grown(std::uint64_t before, std::uint64_t now) {
  return now > before ? now - before : 0;
}

const ExtentSnapshot* FindExtent(const JobSnapshot* job, std::uint64_t id) {
  if (job == nullptr) return nullptr;
  const auto found = std::find_if(job->extents.begin(), job->extents.end(),
                                  [&](const ExtentSnapshot& extent) { return extent.id == id; });
  return found == job->extents.end() ? nullptr : &*found;
}

}  // namespace

TraceRequest StepTrace::RequestOf(const JobSnapshot& job, const ExtentSnapshot& extent) {
  Trace& trace = traces_[job.device];
  const std::string name = std::to_string(job.uid) + " " + job.name;
  auto place = std::find(trace.jobs.begin(), trace.jobs.end(), name);
  if (place == trace.jobs.end()) place = trace.jobs.insert(place, name);
  TraceRequest out;
  out.job = static_cast<std::uint32_t>(place - trace.jobs.begin());
  const auto [found, fresh] = extents_.try_emplace({daemon_, job.device, extent.id},
                                                   static_cast<std::uint32_t>(trace.extents.size()));
  if (fresh) trace.extents.push_back({extent.name, out.job, extent.pages});
  out.extent = found->second;
  out.count = trace.extents[out.extent].pages;
  return out;
}

void StepTrace::AddJob(const JobSnapshot* before, const JobSnapshot& now, std::vector<Stepped>& out) {
  // A step number may jump, when a job goes on from a checkpoint; steps that were done do not.
  const std::uint64_t most = Grown(before == nullptr ? 0 : before->steps, now.steps);
  for (const ExtentSnapshot& extent : now.extents) {
    if (extent.kind != "optimizer_state") {
      weights_[{daemon_, now.device, extent.id}] = true;
      continue;
    }
    const ExtentSnapshot* was = FindExtent(before, extent.id);
    const std::uint64_t steps = std::min(most, Grown(was == nullptr ? 0 : was->step, extent.step));
    if (steps == 0 || extent.pages == 0) continue;
    const std::uint64_t room = (kMostVisits - visits_) / extent.pages;
    const std::uint64_t taken = std::min(steps, room);
    left_out_ += steps - taken;
    if (taken == 0) continue;
    visits_ += taken * extent.pages;
    out.push_back({now.device, RequestOf(now, extent), taken});
  }
}

void StepTrace::Interleave(const std::vector<Stepped>& stepped) {
  std::vector<std::pair<double, const Stepped*>> order;  // where in the sample, from 0 to 1
  for (const Stepped& one : stepped) {
    for (std::uint64_t step = 0; step < one.steps; ++step) {
      order.emplace_back((static_cast<double>(step) + 0.5) / static_cast<double>(one.steps), &one);
    }
  }
  std::stable_sort(order.begin(), order.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [when, one] : order) traces_[one->device].requests.push_back(one->request);
}

void StepTrace::Add(const Snapshot& before, const Snapshot& now) {
  std::map<std::pair<std::string, std::uint64_t>, const JobSnapshot*> known;  // by device and id
  for (const JobSnapshot& job : before.jobs) known[{job.device, job.id}] = &job;
  std::vector<Stepped> stepped;
  for (const JobSnapshot& job : now.jobs) {
    const auto found = known.find({job.device, job.id});
    AddJob(found == known.end() ? nullptr : found->second, job, stepped);
  }
  Interleave(stepped);
  if (now.page_bytes == 0) return;
  for (auto& [device, trace] : traces_) trace.page_bytes = now.page_bytes;
}

std::vector<Trace> StepTrace::Take(const std::string& name) {
  std::vector<Trace> out;
  for (auto& [device, trace] : traces_) {
    if (trace.requests.empty()) continue;
    trace.name = name;
    if (traces_.size() > 1) trace.name.append(":").append(device);
    out.push_back(std::move(trace));
  }
  return out;
}

}  // namespace bitpager::replay
