// The C ABI over the C++ API: optimizer arenas and their steps. Any thread; nothing throws out of here.
#include <memory>
#include <string>
#include <vector>

#include "client/c_api_handles.h"

namespace client = bitpager::client;
namespace wire = bitpager::wire;
using namespace client::internal;  // NOLINT(google-build-using-namespace): this file is their user
using wire::Code;
using wire::Result;
using wire::Status;

namespace {

constexpr OlderBytes kOlderResults = {offsetof(bp_step_result, launch_ns)};

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

}  // namespace

extern "C" {

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
    if (Status kept = Keep(session, s, &bp_session::arenas, std::move(*made), arena); !kept.ok()) return kept;
    return info == nullptr ? Status() : CopyOut(filled, info, "bp_arena_info");
  });
}

int bp_arena_drop(bp_session* session, uint64_t arena) {
  return DropHandle(session, &bp_session::arenas, arena, "arena");
}

int bp_arena_drop_later(bp_session* session, uint64_t arena) {
  return WithSession(session, [&](client::Session&) -> Status {
    const std::shared_ptr<client::Arena> handle = Take(session, &bp_session::arenas, arena);
    if (handle == nullptr) return NoSuch("arena", arena);
    handle->DropLater();
    return {};
  });
}

int bp_step(bp_session* session, uint64_t arena, const bp_step_tensor* tensors, uint64_t n,
            const bp_group* groups, uint64_t n_groups, const bp_step_options* options,
            bp_step_result* result) {
  return WithArena(session, arena, [&](client::Arena& handle) -> Status {
    bp_step_options in{};
    if (Status fine = CopyIn(options, in, "bp_step_options", {offsetof(bp_step_options, continues)});
        !fine.ok())
      return fine;
    if (tensors == nullptr || groups == nullptr || n == 0 || n_groups == 0) {
      return InvalidArgument("a step needs tensors and groups");
    }
    if (n > wire::kMaxTensors || n_groups > wire::kMaxTensors) {
      return InvalidArgument("a step of " + std::to_string(n) + " tensors in " + std::to_string(n_groups) +
                             " groups; at most " + std::to_string(wire::kMaxTensors));
    }
    if (result != nullptr) {
      if (Status fine = CopyOut(bp_step_result{}, result, "bp_step_result", kOlderResults); !fine.ok())
        return fine;
    }
    const Result<std::vector<client::StepTensor>> list = TensorsFrom(tensors, n);
    if (!list.ok()) return list.status();
    std::vector<wire::GroupRecord> settings;
    settings.reserve(n_groups);
    for (const bp_group* g = groups; g != groups + n_groups; ++g) {
      settings.push_back({g->lr, g->beta1, g->beta2, g->eps, g->weight_decay});
    }
    const client::StepOptions how{
        in.propagate_nonfinite != 0 ? wire::OnNonFinite::kPropagate : wire::OnNonFinite::kSkip, in.step,
        in.continues != 0};
    client::StepResult got;
    const Status outcome = handle.Step(*list, settings, how, &got);
    if (result != nullptr && (outcome.ok() || outcome.code() == Code::kNonFinite)) {
      const bp_step_result filled{0,
                                  got.first_nonfinite_tensor,
                                  got.nonfinite_blocks,
                                  got.loaded_pages,
                                  got.stored_pages,
                                  got.total_ns,
                                  got.stall_ns,
                                  got.launch_ns};
      if (Status fine = CopyOut(filled, result, "bp_step_result", kOlderResults); !fine.ok()) return fine;
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

}  // extern "C"
