// The half of Control that reads and commands jobs: usage, limit, evict.
#include <cmath>
#include <string>

#include "client/wire/text.h"
#include "daemon/control.h"

namespace bitpager::daemon {

using wire::Code;
using wire::Status;
using wire::UsageValue;

Status Control::Usage(Call& call) {
  wire::UsageBody body;  // may be left out
  if (call.packet.header().body_bytes != 0 && !wire::ReadBody(call.packet, body)) {
    return {Code::kProtocol, "a usage message of the wrong size."};
  }
  Job& job = *core_.registry.FindJob(call.session->identity().job);
  const auto usage = core_.pager.Usage(job.id);
  if (!usage) return {Code::kNotFound, "job '" + job.name + "' is gone."};
  core_.CollectPeaks(job);
  if (body.reset_peaks != 0) core_.BeginPeaks(*call.session);
  const std::uint64_t page = core_.page_bytes();
  const auto set = [&](UsageValue which, std::uint64_t value) {
    call.answer.body.values[static_cast<std::size_t>(which)] = value;
  };
  set(UsageValue::kResidentBytes, usage->resident_frames * page);
  set(UsageValue::kHostBytes, usage->host_frames * page);
  set(UsageValue::kStateBytes, usage->pages_by_kind[0] * page);
  set(UsageValue::kWeightBytes, usage->pages_by_kind[1] * page);
  set(UsageValue::kResidentStateBytes, usage->resident_by_kind[0] * page);
  set(UsageValue::kResidentWeightBytes, usage->resident_by_kind[1] * page);
  set(UsageValue::kLeasedBytes, usage->leased_frames * page);
  set(UsageValue::kLoadedBytes, usage->loaded_pages * page);
  set(UsageValue::kStoredBytes, usage->stored_pages * page);
  set(UsageValue::kDroppedBytes, usage->dropped_pages * page);
  set(UsageValue::kPages, usage->pages);
  set(UsageValue::kShareBytes, usage->share_frames * page);
  set(UsageValue::kStallNs, job.counters.stall_ns);
  set(UsageValue::kSteps, job.counters.steps);
  set(UsageValue::kNonFiniteBlocks, job.counters.nonfinite_blocks);
  set(UsageValue::kDeviceBudgetBytes, core_.pager.config().device_frames * page);
  set(UsageValue::kBufferBytes, job.buffer_bytes);
  set(UsageValue::kDiskBytes, usage->disk_frames * page);
  set(UsageValue::kDiskBudgetBytes, core_.settings.pager.disk_frames * page);
  set(UsageValue::kSharedBytes, usage->shared_pages * page);
  set(UsageValue::kPeakResidentBytes, call.session->peaks.resident * page);
  set(UsageValue::kPeakHostBytes, call.session->peaks.host * page);
  set(UsageValue::kJobPeakResidentBytes, job.peaks.resident * page);
  set(UsageValue::kJobPeakHostBytes, job.peaks.host * page);
  return {};
}

wire::Result<Job*> Control::CommandedJob(const Peer& peer, std::string_view name, std::uint32_t uid) {
  const std::uint32_t owner = uid == ~0U ? peer.uid : uid;
  if (peer.uid != 0 && owner != peer.uid) {
    return Status(Code::kPermissionDenied, "uid " + std::to_string(peer.uid) +
                                               " may not command jobs of uid " + std::to_string(owner) +
                                               ". Hint: ask root or the owner.");
  }
  Job* job = core_.registry.FindJob(owner, std::string(name));
  if (job == nullptr) {
    return Status(Code::kNotFound,
                  "uid " + std::to_string(owner) + " has no job '" + std::string(name) +
                      "' here. Hint: bitpager status lists them; root names an owner by --uid.");
  }
  return job;
}

bool Control::Knows(const ConnectionRef& connection, const wire::Packet& packet) {
  wire::LimitBody limit;
  wire::EvictBody evict;
  std::string_view name;
  std::uint32_t uid = ~0U;
  if (wire::ReadBody(packet, limit)) {
    name = wire::TextOf(limit.job);
    uid = limit.uid;
  } else if (wire::ReadBody(packet, evict)) {
    name = wire::TextOf(evict.job);
    uid = evict.uid;
  }
  return core_.registry.FindJob(uid == ~0U ? connection->peer.uid : uid, std::string(name)) != nullptr;
}

void Control::Reply(const ConnectionRef& connection, const wire::Packet& packet, const Status& status) {
  wire::ReplyBody body;
  body.code = static_cast<std::uint32_t>(status.code());
  wire::CopyText(body.message, status.message());
  const wire::MessageHeader header = packet.header();
  const Status sent = wire::SendBody(connection->socket.get(), header.type, header.sequence, body);
  if (!sent.ok() || status.code() == Code::kProtocol) connection->HangUp();
}

Status Control::Limit(Call& call) {
  wire::LimitBody body;
  if (!wire::ReadBody(call.packet, body)) return {Code::kProtocol, "a limit message of the wrong size."};
  wire::Result<Job*> job = CommandedJob(call.connection->peer, wire::TextOf(body.job), body.uid);
  if (!job.ok()) return job.status();
  if (!std::isfinite(body.weight) || body.weight < 0 || body.weight > 1e6) {
    return {Code::kInvalidArgument, "a job's weight is a number above 0 and at most 1e6."};
  }
  const std::uint64_t page = core_.page_bytes();
  const auto frames = [&](std::uint64_t bytes, std::uint64_t now) {
    if (bytes == 0) return now;
    return bytes == ~std::uint64_t{0} ? 0 : std::max<std::uint64_t>(1, bytes / page);
  };
  paging::JobSpec spec = (*job)->spec;
  spec.device_quota_frames = frames(body.device_quota_bytes, spec.device_quota_frames);
  spec.host_quota_frames = frames(body.host_quota_bytes, spec.host_quota_frames);
  if (body.weight > 0) spec.weight = body.weight;
  Status taken = core_.pager.SetJob((*job)->id, spec);
  if (!taken.ok()) return taken;
  (*job)->spec = spec;
  core_.Tell({"limit", (*job)->name, spec.device_quota_frames * page,
              "device quota " + std::to_string(spec.device_quota_frames * page) + ", host quota " +
                  std::to_string(spec.host_quota_frames * page) + " bytes (0: none), weight " +
                  std::to_string(spec.weight)});
  tasks_.Touch();
  return {};
}

Status Control::Evict(Call& call) {
  wire::EvictBody body;
  if (!wire::ReadBody(call.packet, body)) return {Code::kProtocol, "an evict message of the wrong size."};
  wire::Result<Job*> job = CommandedJob(call.connection->peer, wire::TextOf(body.job), body.uid);
  if (!job.ok()) return job.status();
  const std::uint64_t page = core_.page_bytes();
  const std::uint64_t wanted = body.bytes / page + (body.bytes % page != 0 ? 1 : 0);  // 0: all
  call.answer.body.values[0] = core_.pager.Evict((*job)->id, wanted, paging::Reason::kCommand) * page;
  tasks_.Touch();
  return {};
}

}  // namespace bitpager::daemon
