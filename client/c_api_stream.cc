// The C ABI over the C++ API: requests on a GPU's stream. Any thread; nothing throws out of here.
#include <memory>
#include <string>
#include <vector>

#include "client/c_api_handles.h"
#include "client/wire/text.h"

namespace client = bitpager::client;
namespace wire = bitpager::wire;
using namespace client::internal;  // NOLINT(google-build-using-namespace): this file is their user
using wire::Code;
using wire::Result;
using wire::Status;

namespace {

constexpr OlderBytes kOlderFinished = {offsetof(bp_finished, launch_ns)};

// Lists of one call; kept by each thread, so that a step allocates nothing.
struct Lists {
  std::vector<client::StepTensor> tensors;
  std::vector<wire::GroupRecord> groups;
};

Lists& ListsOfThisThread() {
  static thread_local Lists lists;
  return lists;
}

Status Fill(Lists& lists, const bp_step_tensor* tensors, std::uint64_t n, const bp_group* groups,
            std::uint64_t n_groups) {
  lists.tensors.resize(n);
  for (std::uint64_t i = 0; i < n; ++i) {
    const bp_step_tensor& t = tensors[i];
    if (t.param_dtype < BP_F32 || t.param_dtype > BP_U8 || t.grad_dtype < BP_F32 || t.grad_dtype > BP_U8) {
      return InvalidArgument("step tensor " + std::to_string(i) + ": its dtype is no bp_dtype");
    }
    client::StepTensor& to = lists.tensors[i];
    to.tensor = t.tensor;
    to.group = t.group;
    to.step = t.step;
    to.param_dtype = static_cast<wire::DType>(t.param_dtype);
    to.grad_dtype = static_cast<wire::DType>(t.grad_dtype);
    to.param = t.param;
    to.grad = t.grad;
  }
  lists.groups.resize(n_groups);
  for (std::uint64_t i = 0; i < n_groups; ++i) {
    const bp_group& g = groups[i];
    lists.groups[i] = {g.lr, g.beta1, g.beta2, g.eps, g.weight_decay};
  }
  return {};
}

std::span<const std::uint64_t> Addresses(const uint64_t* list, std::uint64_t n) {
  return list == nullptr ? std::span<const std::uint64_t>() : std::span<const std::uint64_t>(list, n);
}

// Runs `submit`, which returns a ticket, and says what became of it.
template <typename Submit>
Status Submitted(bp_session* session, bp_submitted* out, Submit&& submit) {
  if (out != nullptr) {
    if (Status fine = CopyOut(bp_submitted{}, out, "bp_submitted"); !fine.ok()) return fine;
  }
  const Result<std::uint64_t> ticket = submit();
  if (!ticket.ok()) return ticket.status();
  if (out == nullptr) return {};
  const std::shared_ptr<client::Session> alive = SessionOf(session);
  const std::uint64_t imports = alive == nullptr ? 0 : alive->imports();
  return CopyOut(bp_submitted{0, 0, *ticket, imports}, out, "bp_submitted");
}

bp_finished FinishedFrom(const client::Finished& finished) {
  const wire::CompletionRecord& record = finished.record;
  bp_finished out{};
  out.code = static_cast<int32_t>(client::CodeFrom(record.code));
  out.ticket = record.ticket;
  out.extent = finished.note.extent;
  out.step = finished.note.step;
  out.first_nonfinite_tensor = UINT32_MAX;
  if (record.op == wire::Op::kStep && record.ticket != 0) {
    out.nonfinite_blocks = record.values[0];
    out.first_nonfinite_tensor = static_cast<uint32_t>(record.values[1]);
  }
  if (record.op == wire::Op::kStep || record.op == wire::Op::kDequantize) {
    out.loaded_pages = record.values[2];
    out.stored_pages = record.values[3];
    out.total_ns = record.values[4];
    out.stall_ns = record.values[5];
    out.launch_ns = record.values[6];
  }
  wire::CopyText(out.message, client::StatusOf(record).message());
  return out;
}

}  // namespace

extern "C" {

int bp_step_async(bp_session* session, uint64_t arena, const bp_step_tensor* tensors, uint64_t n,
                  const bp_group* groups, uint64_t n_groups, const bp_stream_step_options* options,
                  void* stream, bp_submitted* submitted) {
  return WithArena(session, arena, [&](client::Arena& handle) -> Status {
    bp_stream_step_options in{};
    if (Status fine =
            CopyIn(options, in, "bp_stream_step_options", {offsetof(bp_stream_step_options, follows)});
        !fine.ok())
      return fine;
    if (tensors == nullptr || groups == nullptr || n == 0 || n_groups == 0) {
      return InvalidArgument("a step needs tensors and groups");
    }
    if (n > wire::kMaxTensors || n_groups > wire::kMaxTensors) {
      return InvalidArgument("a step of " + std::to_string(n) + " tensors in " + std::to_string(n_groups) +
                             " groups; at most " + std::to_string(wire::kMaxTensors));
    }
    Lists& lists = ListsOfThisThread();
    if (Status filled = Fill(lists, tensors, n, groups, n_groups); !filled.ok()) return filled;
    client::StreamStepOptions how;
    how.on_nonfinite = in.propagate_nonfinite != 0 ? wire::OnNonFinite::kPropagate : wire::OnNonFinite::kSkip;
    how.step = in.step;
    how.follows = in.follows != 0;
    how.steps_ahead = in.steps_ahead;
    how.grads = Addresses(in.grads, n);
    how.params = Addresses(in.params, n);
    return Submitted(session, submitted,
                     [&] { return handle.StepOnStream(lists.tensors, lists.groups, how, stream); });
  });
}

int bp_expect_step(bp_session* session, void* stream) {
  return WithSession(session, [&](client::Session& s) -> Status { return s.ExpectStep(stream); });
}

int bp_session_synchronize(bp_session* session) {
  return WithSession(session, [](client::Session& s) -> Status { return s.Synchronize(); });
}

int bp_poll_results(bp_session* session, bp_finished* out) {
  return WithSession(session, [&](client::Session& s) -> Status {
    // First, so that no failure is taken that cannot be told.
    if (Status fine = CopyOut(bp_finished{}, out, "bp_finished", kOlderFinished); !fine.ok()) return fine;
    const Result<client::Finished> finished = s.TakeFinished();
    if (!finished.ok()) return finished.status();
    return CopyOut(FinishedFrom(*finished), out, "bp_finished", kOlderFinished);
  });
}

int bp_release_gradients(bp_session* session) {
  return WithSession(session, [](client::Session& s) -> Status { return s.ReleaseGradients(); });
}

int bp_cuda_uuid(int ordinal, char* out, uint64_t out_bytes) {
  return Guarded([&]() -> Status {
    if (out == nullptr || out_bytes == 0) return InvalidArgument("out is NULL or has no room");
    const Result<client::CudaDriver*> driver = client::CudaDriver::System();
    if (!driver.ok()) return driver.status();
    const Result<std::string> uuid = (*driver)->Uuid(ordinal);
    if (!uuid.ok()) return uuid.status();
    if (uuid->size() >= out_bytes) return InvalidArgument("a UUID takes 41 bytes");
    std::memcpy(out, uuid->c_str(), uuid->size() + 1);
    return {};
  });
}

int bp_weight_quantize_async(bp_session* session, uint64_t weight, int dtype, const void* src, void* stream,
                             bp_submitted* submitted) {
  return WithWeight(session, weight, [&](client::Weight& handle) -> Status {
    const Result<wire::DType> type = DTypeFrom(dtype);
    if (!type.ok()) return type.status();
    return Submitted(session, submitted, [&] { return handle.QuantizeOnStream(*type, src, stream); });
  });
}

int bp_weight_dequantize_async(bp_session* session, uint64_t weight, int dtype, void* dst, uint64_t first,
                               uint64_t n, void* stream, bp_submitted* submitted) {
  return WithWeight(session, weight, [&](client::Weight& handle) -> Status {
    const Result<wire::DType> type = DTypeFrom(dtype);
    if (!type.ok()) return type.status();
    return Submitted(session, submitted,
                     [&] { return handle.DequantizeOnStream(*type, dst, first, n, stream); });
  });
}

int bp_weight_read_leased(bp_session* session, uint64_t weight, void* stream, bp_leased_launch launch,
                          void* context, int* launched) {
  if (launched != nullptr) *launched = 0;
  return WithWeight(session, weight, [&](client::Weight& handle) -> Status {
    if (launch == nullptr) return InvalidArgument("launch is NULL");
    return handle.ReadOnStream(stream, [&](const client::LeasedPages& leased) -> Status {
      const bp_leased_pages pages{
          sizeof(bp_leased_pages), leased.blocksize,
          leased.nested ? 1 : 0,   leased.offset,
          leased.page_bytes,       reinterpret_cast<const void* const*>(leased.pages.data()),
          leased.pages.size()};
      const int code = launch(context, &pages);
      if (launched != nullptr) *launched = code;
      if (code == 0) return {};
      return {Code::kInternal,
              "the caller's kernels could not be launched (code " + std::to_string(code) + ")"};
    });
  });
}

}  // extern "C"
