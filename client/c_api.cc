// The C ABI over the C++ API: checks the structs' sizes, keeps the handles of each session, turns Status into
// a code and a per-thread message. Any thread; nothing throws out of here.
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "client/bitpager.h"
#include "client/c_api_internal.h"
#include "client/client.h"
#include "client/wire/text.h"

namespace client = bitpager::client;
namespace wire = bitpager::wire;
using client::internal::CopyIn;
using client::internal::CopyOut;
using client::internal::Guarded;
using client::internal::InvalidArgument;
using wire::Code;
using wire::Result;
using wire::Status;

// The handles of one session by their ids. A handle in use lives on while another thread drops it.
struct bp_session {
  std::shared_ptr<client::Session> session;
  std::mutex mutex;  // guards the maps; never held during a call to the daemon
  std::unordered_map<std::uint64_t, std::shared_ptr<client::Arena>> arenas;
  std::unordered_map<std::uint64_t, std::shared_ptr<client::Weight>> weights;
  std::unordered_map<std::uint64_t, std::shared_ptr<client::Buffer>> buffers;
};

namespace {

bool Forked(const bp_session* session) {
  return session->session->connection()->forked();
}

Status ForkedChild() {
  return {Code::kForkedChild,
          "this session was opened before a fork, by the parent process. Hint: connect anew in the child, or "
          "keep bitpager out of forked workers"};
}

std::string Text(const char* text) {
  return text == nullptr ? std::string() : std::string(text);
}

// Runs `call` with the handle `id` of `map`.
template <typename Map, typename Call>
int WithHandle(bp_session* session, Map bp_session::*map, std::uint64_t id, const char* what, Call&& call) {
  return Guarded([&]() -> Status {
    if (session == nullptr) return InvalidArgument("session is NULL");
    if (Forked(session)) return ForkedChild();
    typename Map::mapped_type handle;
    {
      const std::lock_guard lock(session->mutex);
      const auto at = (session->*map).find(id);
      if (at != (session->*map).end()) handle = at->second;
    }
    if (handle == nullptr) {
      return {Code::kNotFound, "this session has no " + std::string(what) + " " + std::to_string(id)};
    }
    return call(*handle);
  });
}

template <typename Call>
int WithArena(bp_session* session, std::uint64_t id, Call&& call) {
  return WithHandle(session, &bp_session::arenas, id, "arena", std::forward<Call>(call));
}
template <typename Call>
int WithWeight(bp_session* session, std::uint64_t id, Call&& call) {
  return WithHandle(session, &bp_session::weights, id, "weight", std::forward<Call>(call));
}

// Runs `call` with the session.
template <typename Call>
int WithSession(bp_session* session, Call&& call) {
  return Guarded([&]() -> Status {
    if (session == nullptr) return InvalidArgument("session is NULL");
    if (Forked(session)) return ForkedChild();
    return call(*session->session);
  });
}

// Keeps a handle that was made, under its id.
template <typename Map, typename Handle>
std::uint64_t Keep(bp_session* session, Map bp_session::*map, std::unique_ptr<Handle> handle) {
  const std::uint64_t id = handle->id();
  const std::lock_guard lock(session->mutex);
  (session->*map)[id] = std::move(handle);
  return id;
}

// Takes a handle out; null when there is none.
template <typename Map>
typename Map::mapped_type Take(bp_session* session, Map bp_session::*map, std::uint64_t id) {
  const std::lock_guard lock(session->mutex);
  const auto at = (session->*map).find(id);
  if (at == (session->*map).end()) return nullptr;
  typename Map::mapped_type handle = std::move(at->second);
  (session->*map).erase(at);
  return handle;
}

Status NoSuch(const char* what, std::uint64_t id) {
  return {Code::kNotFound, "this session has no " + std::string(what) + " " + std::to_string(id)};
}

Result<wire::DType> DTypeFrom(int dtype) {
  if (dtype >= BP_F32 && dtype <= BP_U8) return static_cast<wire::DType>(dtype);
  return InvalidArgument("dtype " + std::to_string(dtype) + " is no bp_dtype");
}

Result<std::vector<client::StepTensor>> TensorsFrom(const bp_step_tensor* tensors, std::uint64_t n) {
  std::vector<client::StepTensor> list;
  list.reserve(n);
  for (std::uint64_t i = 0; i < n; ++i) {
    const bp_step_tensor& t = tensors[i];
    const Result<wire::DType> param = DTypeFrom(t.param_dtype);
    const Result<wire::DType> grad = DTypeFrom(t.grad_dtype);
    if (!param.ok()) return param.status();
    if (!grad.ok()) return grad.status();
    list.push_back({t.tensor,
                    t.group,
                    t.step,
                    *param,
                    *grad,
                    {t.param_buffer, t.param_offset},
                    t.param,
                    {t.grad_buffer, t.grad_offset},
                    t.grad});
  }
  return list;
}

Result<client::ConnectOptions> OptionsFrom(const bp_connect_options* given) {
  client::ConnectOptions options;
  if (given == nullptr) return options;
  bp_connect_options in{};
  if (Status fine = CopyIn(given, in, "bp_connect_options"); !fine.ok()) return fine;
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
  return options;
}

}  // namespace

extern "C" {

int bp_connect(const bp_connect_options* options, bp_session** out) {
  return Guarded([&]() -> Status {
    if (out == nullptr) return InvalidArgument("out is NULL");
    *out = nullptr;
    const Result<client::ConnectOptions> in = OptionsFrom(options);
    if (!in.ok()) return in.status();
    Result<std::shared_ptr<client::Session>> session = client::Session::Connect(*in);
    if (!session.ok()) return session.status();
    auto made = std::make_unique<bp_session>();
    made->session = std::move(*session);
    *out = made.release();
    return {};
  });
}

void bp_disconnect(bp_session* session) {
  // In a forked child another thread of the parent may have held its locks: left as it is there.
  if (session == nullptr || Forked(session)) return;
  session->session->Disconnect();
  delete session;
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
    return CopyOut(filled, out, "bp_session_info");
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
    return CopyOut(filled, out, "bp_usage");
  });
}

int bp_buffer_create(bp_session* session, uint64_t bytes, uint64_t* buffer, void** ptr) {
  return WithSession(session, [&](client::Session& s) -> Status {
    if (buffer == nullptr || ptr == nullptr) return InvalidArgument("buffer or ptr is NULL");
    Result<std::unique_ptr<client::Buffer>> made = client::Buffer::Create(s, bytes);
    if (!made.ok()) return made.status();
    *ptr = (*made)->data();
    *buffer = Keep(session, &bp_session::buffers, std::move(*made));
    return {};
  });
}

int bp_buffer_register(bp_session* session, int fd, uint64_t bytes, uint64_t* buffer) {
  return WithSession(session, [&](client::Session& s) -> Status {
    if (buffer == nullptr) return InvalidArgument("buffer is NULL");
    Result<std::unique_ptr<client::Buffer>> made = client::Buffer::Register(s, fd, bytes);
    if (!made.ok()) return made.status();
    *buffer = Keep(session, &bp_session::buffers, std::move(*made));
    return {};
  });
}

int bp_buffer_release(bp_session* session, uint64_t buffer) {
  return WithSession(session, [&](client::Session&) -> Status {
    const std::shared_ptr<client::Buffer> handle = Take(session, &bp_session::buffers, buffer);
    return handle == nullptr ? NoSuch("buffer", buffer) : handle->Release();
  });
}

int bp_arena_create(bp_session* session, const bp_arena_options* options, uint64_t* arena,
                    bp_arena_info* info) {
  return WithSession(session, [&](client::Session& s) -> Status {
    bp_arena_options in{};
    if (Status fine = CopyIn(options, in, "bp_arena_options"); !fine.ok()) return fine;
    if (arena == nullptr || in.elements == nullptr) return InvalidArgument("arena or elements is NULL");
    if (in.rule != BP_ADAM && in.rule != BP_LION) {
      return InvalidArgument("rule " + std::to_string(in.rule) + " is no bp_rule");
    }
    if (in.bits != 8 && in.bits != 32) {
      return InvalidArgument("bits is " + std::to_string(in.bits) + "; 8 or 32");
    }
    if (info != nullptr) {
      if (Status fine = CopyOut(bp_arena_info{}, info, "bp_arena_info"); !fine.ok()) return fine;
    }
    client::ArenaOptions made_of;
    made_of.rule = static_cast<wire::Rule>(in.rule);
    made_of.bits = static_cast<wire::StateBits>(in.bits);
    made_of.evictable = in.evictable != 0;
    made_of.optimizer = Text(in.optimizer);
    made_of.elements = {in.elements, in.tensors};
    made_of.layout_hash = in.layout_hash;
    made_of.resume = in.resume != 0 ? wire::Resume::kContinue : wire::Resume::kFresh;
    made_of.step = in.step;
    Result<std::unique_ptr<client::Arena>> made = client::Arena::Create(s, made_of);
    if (!made.ok()) return made.status();
    const client::ArenaInfo& got = (*made)->info();
    const bp_arena_info filled{0, 0, got.pages, got.units, got.units_per_page, got.step};
    *arena = Keep(session, &bp_session::arenas, std::move(*made));
    return info == nullptr ? Status() : CopyOut(filled, info, "bp_arena_info");
  });
}

int bp_arena_drop(bp_session* session, uint64_t arena) {
  return WithSession(session, [&](client::Session&) -> Status {
    const std::shared_ptr<client::Arena> handle = Take(session, &bp_session::arenas, arena);
    return handle == nullptr ? NoSuch("arena", arena) : handle->Drop();
  });
}

int bp_step(bp_session* session, uint64_t arena, const bp_step_tensor* tensors, uint64_t n,
            const bp_group* groups, uint64_t n_groups, const bp_step_options* options,
            bp_step_result* result) {
  return WithArena(session, arena, [&](client::Arena& handle) -> Status {
    bp_step_options in{};
    if (Status fine = CopyIn(options, in, "bp_step_options"); !fine.ok()) return fine;
    if (tensors == nullptr || groups == nullptr || n == 0 || n_groups == 0) {
      return InvalidArgument("a step needs tensors and groups");
    }
    if (n > wire::kMaxTensors || n_groups > wire::kMaxTensors) {
      return InvalidArgument("a step of " + std::to_string(n) + " tensors in " + std::to_string(n_groups) +
                             " groups; at most " + std::to_string(wire::kMaxTensors));
    }
    if (result != nullptr) {
      if (Status fine = CopyOut(bp_step_result{}, result, "bp_step_result"); !fine.ok()) return fine;
    }
    const Result<std::vector<client::StepTensor>> list = TensorsFrom(tensors, n);
    if (!list.ok()) return list.status();
    std::vector<wire::GroupRecord> settings;
    settings.reserve(n_groups);
    for (const bp_group* g = groups; g != groups + n_groups; ++g) {
      settings.push_back({g->lr, g->beta1, g->beta2, g->eps, g->weight_decay});
    }
    const client::StepOptions how{
        in.propagate_nonfinite != 0 ? wire::OnNonFinite::kPropagate : wire::OnNonFinite::kSkip, in.step};
    client::StepResult got;
    const Status outcome = handle.Step(*list, settings, how, &got);
    if (result != nullptr && (outcome.ok() || outcome.code() == Code::kNonFinite)) {
      const bp_step_result filled{0,
                                  got.first_nonfinite_tensor,
                                  got.nonfinite_blocks,
                                  got.loaded_pages,
                                  got.stored_pages,
                                  got.total_ns,
                                  got.stall_ns};
      if (Status fine = CopyOut(filled, result, "bp_step_result"); !fine.ok()) return fine;
    }
    return outcome;
  });
}

int bp_arena_states(bp_session* session, uint64_t arena, uint32_t tensor, int write, uint64_t step,
                    void* const planes[2], float* const absmax[2]) {
  return WithArena(session, arena, [&](client::Arena& handle) -> Status {
    if (planes == nullptr) return InvalidArgument("planes is NULL");
    client::StatePlanes all;
    for (int k = 0; k < 2; ++k) {
      all.planes[k] = planes[k];
      all.absmax[k] = absmax == nullptr ? nullptr : absmax[k];
    }
    return write != 0 ? handle.WriteStates(tensor, step, all) : handle.ReadStates(tensor, all);
  });
}

int bp_weight_create(bp_session* session, const bp_weight_options* options, uint64_t* weight) {
  return WithSession(session, [&](client::Session& s) -> Status {
    bp_weight_options in{};
    if (Status fine = CopyIn(options, in, "bp_weight_options"); !fine.ok()) return fine;
    if (weight == nullptr) return InvalidArgument("weight is NULL");
    if (in.quant_type != BP_NF4 && in.quant_type != BP_FP4) {
      return InvalidArgument("quant_type " + std::to_string(in.quant_type) + " is no bp_quant_type");
    }
    Result<std::unique_ptr<client::Weight>> made =
        client::Weight::Create(s, {static_cast<wire::QuantType>(in.quant_type), in.blocksize, in.nested != 0,
                                   in.elements, Text(in.name)});
    if (!made.ok()) return made.status();
    *weight = Keep(session, &bp_session::weights, std::move(*made));
    return {};
  });
}

int bp_weight_drop(bp_session* session, uint64_t weight) {
  return WithSession(session, [&](client::Session&) -> Status {
    const std::shared_ptr<client::Weight> handle = Take(session, &bp_session::weights, weight);
    return handle == nullptr ? NoSuch("weight", weight) : handle->Drop();
  });
}

int bp_weight_quantize(bp_session* session, uint64_t weight, int dtype, const void* src, uint64_t buffer,
                       uint64_t offset) {
  return WithWeight(session, weight, [&](client::Weight& handle) -> Status {
    const Result<wire::DType> type = DTypeFrom(dtype);
    if (!type.ok()) return type.status();
    return handle.Quantize(*type, {const_cast<void*>(src), {buffer, offset}});
  });
}

int bp_weight_dequantize(bp_session* session, uint64_t weight, int dtype, void* dst, uint64_t buffer,
                         uint64_t offset, int path, int* used) {
  return WithWeight(session, weight, [&](client::Weight& handle) -> Status {
    const Result<wire::DType> type = DTypeFrom(dtype);
    if (!type.ok()) return type.status();
    if (path < BP_PATH_AUTO || path > BP_PATH_LEASE) {
      return InvalidArgument("path " + std::to_string(path) + " is no bp_path");
    }
    client::Path taken = client::Path::kAuto;
    const Status outcome =
        handle.Dequantize(*type, {dst, {buffer, offset}}, static_cast<client::Path>(path), &taken);
    if (used != nullptr) *used = static_cast<int>(taken);
    return outcome;
  });
}

int bp_weight_export(bp_session* session, uint64_t weight, void* packed, void* absmax, float* absmax2,
                     float* offset) {
  return WithWeight(session, weight, [&](client::Weight& handle) -> Status {
    if (handle.options().nested && offset == nullptr) return InvalidArgument("offset is NULL");
    client::WeightPlanes planes{packed, absmax, absmax2, 0};
    const Status outcome = handle.Export(planes);
    if (outcome.ok() && offset != nullptr) *offset = planes.offset;
    return outcome;
  });
}

int bp_weight_import(bp_session* session, uint64_t weight, const void* packed, const void* absmax,
                     const float* absmax2, float offset) {
  return WithWeight(session, weight, [&](client::Weight& handle) -> Status {
    return handle.Import(
        {const_cast<void*>(packed), const_cast<void*>(absmax), const_cast<float*>(absmax2), offset});
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
    if (phase < BP_PHASE_IDLE || phase > BP_PHASE_STEP) {
      return InvalidArgument("phase " + std::to_string(phase) + " is no bp_phase");
    }
    return s.HintPhase(static_cast<wire::Phase>(phase));
  });
}

int bp_noop(bp_session* session) {
  return WithSession(session, [](client::Session& s) -> Status { return s.Noop(); });
}

}  // extern "C"
