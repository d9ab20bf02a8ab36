// The C ABI over the C++ API: sessions, buffers, hints. Any thread; nothing throws out of here.
#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>

#include "client/c_api_handles.h"
#include "client/wire/text.h"

namespace client = bitpager::client;
namespace wire = bitpager::wire;
using namespace client::internal;  // NOLINT(google-build-using-namespace): this file is their user
using wire::Result;
using wire::Status;

namespace {

Result<client::ConnectOptions> OptionsFrom(const bp_connect_options* given) {
  client::ConnectOptions options;
  if (given == nullptr) return options;
  bp_connect_options in{};
  if (Status fine = CopyIn(given, in, "bp_connect_options", {offsetof(bp_connect_options, device)});
      !fine.ok())
    return fine;
  options.socket = Text(in.socket);
  options.job = Text(in.job);
  options.client = Text(in.client);
  options.daemon_path = Text(in.daemon_path);
  options.rank = in.rank;
  options.weight = in.weight;
  options.device_quota_bytes = in.device_quota_bytes;
  options.host_quota_bytes = in.host_quota_bytes;
  options.linger_ms = in.linger_ms;
  options.spawn = in.spawn != 0;
  options.threads = in.threads;
  options.device = Text(in.device);
  return options;
}

// Those that are disconnected.
std::atomic<bp_session*> g_unused{nullptr};

}  // namespace

namespace bitpager::client::internal {

// Without a lock, which a forked child could find held. Never destroyed.
void KeepUnused(bp_session* session) {
  session->next_unused = g_unused.load(std::memory_order_relaxed);
  // Pairs with MakeHandle's exchange.
  while (!g_unused.compare_exchange_weak(session->next_unused, session, std::memory_order_release,
                                         std::memory_order_relaxed)) {
  }
}

// Takes the whole list: nobody else can take the same one.
bp_session* MakeHandle() {
  bp_session* made = nullptr;
  for (bp_session* next = g_unused.exchange(nullptr, std::memory_order_acquire); next != nullptr;) {
    bp_session* const one = std::exchange(next, next->next_unused);
    if (made == nullptr && !Forked(one)) {
      made = one;
    } else {
      KeepUnused(one);
    }
  }
  return made != nullptr ? made : new bp_session;
}

}  // namespace bitpager::client::internal

extern "C" {

int bp_connect(const bp_connect_options* options, bp_session** out) {
  return Guarded([&]() -> Status {
    if (out == nullptr) return InvalidArgument("out is NULL");
    *out = nullptr;
    const Result<client::ConnectOptions> in = OptionsFrom(options);
    if (!in.ok()) return in.status();
    Result<std::shared_ptr<client::Session>> session = client::Session::Connect(*in);
    if (!session.ok()) return session.status();
    bp_session* const made = MakeHandle();
    const std::lock_guard lock(made->mutex);
    made->session = std::move(*session);
    *out = made;
    return {};
  });
}

void bp_disconnect(bp_session* session) {
  // In a forked child another thread of the parent may have held its locks: left as it is there.
  if (session == nullptr || Forked(session)) return;
  decltype(session->session) ending;
  decltype(session->arenas) arenas;
  decltype(session->weights) weights;
  decltype(session->buffers) buffers;
  {
    const std::lock_guard lock(session->mutex);
    ending.swap(session->session);
    arenas.swap(session->arenas);
    weights.swap(session->weights);
    buffers.swap(session->buffers);
  }
  if (ending == nullptr) return;
  ending->Disconnect();
  KeepUnused(session);
}

int bp_session_get_info(bp_session* session, bp_session_info* out) {
  return WithSession(session, [&](client::Session& s) -> Status {
    const client::SessionInfo& info = s.info();
    bp_session_info filled{};
    filled.session = info.session;
    filled.job = info.job;
    filled.page_bytes = info.page_bytes;
    filled.linger_ms = info.linger_ms;
    wire::CopyText(filled.socket, info.socket);
    wire::CopyText(filled.job_name, info.job_name);
    wire::CopyText(filled.device_kind, info.device_kind);
    wire::CopyText(filled.device_uuid, info.device_uuid);
    filled.synchronous = info.synchronous ? 1 : 0;
    filled.no_leases = info.leases ? 0 : 1;
    return CopyOut(filled, out, "bp_session_info", {offsetof(bp_session_info, device_kind)});
  });
}

int bp_get_usage(bp_session* session, bp_usage* out) {
  return WithSession(session, [&](client::Session& s) -> Status {
    const Result<client::Usage> usage = s.GetUsage();
    if (!usage.ok()) return usage.status();
    bp_usage filled{};
    filled.resident_bytes = usage->resident_bytes;
    filled.host_bytes = usage->host_bytes;
    filled.state_bytes = usage->state_bytes;
    filled.weight_bytes = usage->weight_bytes;
    filled.resident_state_bytes = usage->resident_state_bytes;
    filled.resident_weight_bytes = usage->resident_weight_bytes;
    filled.leased_bytes = usage->leased_bytes;
    filled.loaded_bytes = usage->loaded_bytes;
    filled.stored_bytes = usage->stored_bytes;
    filled.dropped_bytes = usage->dropped_bytes;
    filled.pages = usage->pages;
    filled.share_bytes = usage->share_bytes;
    filled.stall_ns = usage->stall_ns;
    filled.steps = usage->steps;
    filled.nonfinite_blocks = usage->nonfinite_blocks;
    filled.device_budget_bytes = usage->device_budget_bytes;
    filled.buffer_bytes = usage->buffer_bytes;
    filled.disk_bytes = usage->disk_bytes;
    filled.disk_budget_bytes = usage->disk_budget_bytes;
    filled.shared_bytes = usage->shared_bytes;
    filled.peak_resident_bytes = usage->peak_resident_bytes;
    filled.peak_host_bytes = usage->peak_host_bytes;
    filled.job_peak_resident_bytes = usage->job_peak_resident_bytes;
    filled.job_peak_host_bytes = usage->job_peak_host_bytes;
    // Callers of before the disk, and of before the peaks, have no more.
    return CopyOut(filled, out, "bp_usage",
                   {offsetof(bp_usage, disk_bytes), offsetof(bp_usage, peak_resident_bytes)});
  });
}

int bp_reset_peaks(bp_session* session) {
  return WithSession(session, [&](client::Session& s) -> Status { return s.GetUsage(true).status(); });
}

int bp_buffer_create(bp_session* session, uint64_t bytes, uint64_t* buffer, void** ptr) {
  return WithSession(session, [&](client::Session& s) -> Status {
    if (buffer == nullptr || ptr == nullptr) return InvalidArgument("buffer or ptr is NULL");
    Result<std::unique_ptr<client::Buffer>> made = client::Buffer::Create(s, bytes);
    if (!made.ok()) return made.status();
    *ptr = (*made)->data();
    return Keep(session, s, &bp_session::buffers, std::move(*made), buffer);
  });
}

int bp_buffer_register(bp_session* session, int fd, uint64_t bytes, uint64_t* buffer) {
  return WithSession(session, [&](client::Session& s) -> Status {
    if (buffer == nullptr) return InvalidArgument("buffer is NULL");
    Result<std::unique_ptr<client::Buffer>> made = client::Buffer::Register(s, fd, bytes);
    if (!made.ok()) return made.status();
    return Keep(session, s, &bp_session::buffers, std::move(*made), buffer);
  });
}

int bp_buffer_release(bp_session* session, uint64_t buffer) {
  return WithSession(session, [&](client::Session&) -> Status {
    const std::shared_ptr<client::Buffer> handle = Take(session, &bp_session::buffers, buffer);
    return handle == nullptr ? NoSuch("buffer", buffer) : handle->Release();
  });
}

int bp_prefetch(bp_session* session, uint64_t extent) {
  return WithSession(session, [&](client::Session& s) -> Status {
    {
      const std::lock_guard lock(session->mutex);
      if (session->arenas.count(extent) + session->weights.count(extent) == 0) {
        return NoSuch("arena or weight", extent);
      }
    }
    return s.Prefetch(extent);
  });
}

int bp_phase_hint(bp_session* session, int phase) {
  return WithSession(session, [&](client::Session& s) -> Status {
    if (phase < BP_PHASE_IDLE || phase > BP_PHASE_LEAVE) {
      return InvalidArgument("phase " + std::to_string(phase) + " is no bp_phase");
    }
    return s.HintPhase(static_cast<wire::Phase>(phase));
  });
}

int bp_make_room(bp_session* session, uint64_t bytes, uint64_t limit_ms, uint64_t* free_bytes) {
  return WithSession(session, [&](client::Session& s) -> Status {
    std::uint64_t free_now = 0;
    Status made = s.MakeRoom(bytes, limit_ms, &free_now);
    if (free_bytes != nullptr) *free_bytes = free_now;
    return made;
  });
}

int bp_request_count(bp_session* session, uint64_t* count) {
  return WithSession(session, [&](client::Session& s) -> Status {
    if (count == nullptr) return InvalidArgument("count is NULL");
    const wire::Result<std::uint64_t> made = s.RequestCount();
    if (!made.ok()) return made.status();
    *count = *made;
    return {};
  });
}

int bp_noop(bp_session* session) {
  return WithSession(session, [](client::Session& s) -> Status { return s.Noop(); });
}

}  // extern "C"
