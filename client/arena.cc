#include "client/arena.h"

#include <cstring>
#include <utility>

#include "client/wire/messages.h"
#include "client/wire/text.h"

namespace bitpager::client {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

bool IsFloat(wire::DType dtype) {
  return dtype == wire::DType::kF32 || dtype == wire::DType::kF16 || dtype == wire::DType::kBF16;
}

Status Refuse(std::uint64_t index, const std::string& what) {
  return {Code::kInvalidArgument, "step tensor " + std::to_string(index) + ": " + what};
}

Status CheckOptions(const ArenaOptions& options) {
  if (options.elements.empty() || options.elements.size() > wire::kMaxTensors) {
    return {Code::kInvalidArgument, "an arena of " + std::to_string(options.elements.size()) +
                                        " tensors; 1 to " + std::to_string(wire::kMaxTensors)};
  }
  for (std::size_t i = 0; i < options.elements.size(); ++i) {
    if (options.elements[i] == 0 || options.elements[i] > (1ULL << 48)) {
      return {Code::kInvalidArgument, "tensor " + std::to_string(i) + " of the arena has " +
                                          std::to_string(options.elements[i]) + " elements"};
    }
  }
  if (options.optimizer.empty() || options.optimizer.size() >= wire::kNameBytes) {
    return {Code::kInvalidArgument, "the optimizer's name '" + options.optimizer + "' is not 1 to 63 bytes"};
  }
  if (options.rule != wire::Rule::kAdam && options.rule != wire::Rule::kLion) {
    return {Code::kInvalidArgument, "unknown optimizer rule"};
  }
  if (options.bits != wire::StateBits::k8 && options.bits != wire::StateBits::k32) {
    return {Code::kInvalidArgument, "states have 8 or 32 bits"};
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<Arena>> Arena::Create(const Session& session, const ArenaOptions& options) {
  if (Status fine = CheckOptions(options); !fine.ok()) return fine;
  const std::shared_ptr<Connection>& connection = session.connection();
  const Result<Connection::Lock> lock = connection->Enter();
  if (!lock.ok()) return lock.status();
  if (Status room = connection->DropForgotten(); !room.ok()) return room;
  const std::uint64_t table_bytes = options.elements.size_bytes();
  if (Status room = connection->ReserveSlab(table_bytes); !room.ok()) return room;
  const SlabPiece table = connection->slab().Take(table_bytes);
  std::memcpy(table.at, options.elements.data(), table_bytes);
  wire::CreateArenaBody body;
  wire::CopyText(body.optimizer, options.optimizer);
  body.rule = options.rule;
  body.bits = options.bits;
  body.evictable = options.evictable ? 1 : 0;
  body.resume = options.resume;
  body.tensors = static_cast<std::uint32_t>(options.elements.size());
  body.table = table.slice;
  body.layout_hash = options.layout_hash;
  body.step = options.step;
  Result<Reply> reply = connection->Ask(wire::MessageType::kCreateArena, body);
  if (!reply.ok()) return reply.status();
  std::unique_ptr<Arena> arena(new Arena(connection, options));
  const std::uint64_t* values = reply->body.values;
  arena->extent_ = values[0];
  arena->info_ = {values[1], values[2], values[4], values[3]};
  return arena;
}

// What one step needs of the slab.
struct Arena::Plan {
  std::uint64_t table_bytes = 0;
  std::uint64_t slab_bytes = 0;
  bool stages_params = false;
};

Status Arena::CheckList(std::size_t tensors, std::size_t groups, std::uint64_t step) const {
  if (tensors == 0 || groups == 0 || tensors > elements_.size() || groups > wire::kMaxTensors) {
    return {Code::kInvalidArgument, "a step of " + std::to_string(tensors) + " tensors in " +
                                        std::to_string(groups) + " groups; the arena has " +
                                        std::to_string(elements_.size()) + " tensors"};
  }
  if (step == 0) return {Code::kInvalidArgument, "the optimizer's step counts from 1"};
  return {};
}

// What holds for a tensor wherever its memory is.
Status Arena::CheckTensor(std::span<const StepTensor> tensors, std::size_t index, std::size_t groups) const {
  const StepTensor& t = tensors[index];
  if (t.tensor >= elements_.size()) {
    return Refuse(index, "index " + std::to_string(t.tensor) + " is past the arena's " +
                             std::to_string(elements_.size()) + " tensors");
  }
  if (index > 0 && t.tensor <= tensors[index - 1].tensor) {
    return Refuse(index,
                  "index " + std::to_string(t.tensor) + " does not ascend. Hint: sort by index, each once");
  }
  if (t.group >= groups) return Refuse(index, "group " + std::to_string(t.group) + " does not exist");
  if (t.step == 0) return Refuse(index, "its step counts from 1");
  if (!IsFloat(t.param_dtype) || !IsFloat(t.grad_dtype))
    return Refuse(index, "dtypes are fp32, fp16 or bf16");
  return {};
}

Status Arena::CheckStep(std::span<const StepTensor> tensors, std::span<const wire::GroupRecord> groups,
                        const StepOptions& options, Plan& plan) const {
  if (Status fine = CheckList(tensors.size(), groups.size(), options.step); !fine.ok()) return fine;
  plan.table_bytes = groups.size_bytes() + tensors.size() * sizeof(wire::StepEntry);
  plan.slab_bytes = Slab::Rounded(plan.table_bytes);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const StepTensor& t = tensors[i];
    if (Status fine = CheckTensor(tensors, i, groups.size()); !fine.ok()) return fine;
    if (t.param_place.buffer == 0) {
      if (t.param == nullptr) return Refuse(i, "param is null and no buffer holds it");
      plan.stages_params = true;
      plan.slab_bytes += Slab::Rounded(elements_[t.tensor] * wire::DTypeBytes(t.param_dtype));
    }
    if (t.grad_place.buffer == 0) {
      if (t.grad == nullptr) return Refuse(i, "grad is null and no buffer holds it");
      plan.slab_bytes += Slab::Rounded(elements_[t.tensor] * wire::DTypeBytes(t.grad_dtype));
    }
  }
  return {};
}

// Writes the table and copies what is staged: one pass over the tensors, one over the bytes. Leaves the
// staged parameters' way back in ranges().
wire::StepBody Arena::Stage(std::span<const StepTensor> tensors, std::span<const wire::GroupRecord> groups,
                            const StepOptions& options, const Plan& plan) {
  Slab& slab = connection_->slab();
  std::vector<CopyRange>& ranges = connection_->ranges();
  std::vector<CopyRange> back;
  ranges.clear();
  const SlabPiece table = slab.Take(plan.table_bytes);
  std::memcpy(table.at, groups.data(), groups.size_bytes());
  std::byte* at = table.at + groups.size_bytes();
  for (const StepTensor& t : tensors) {
    wire::StepEntry entry;
    entry.tensor = t.tensor;
    entry.group = t.group;
    entry.step = t.step;
    entry.param = t.param_place;
    entry.grad = t.grad_place;
    entry.param_dtype = t.param_dtype;
    entry.grad_dtype = t.grad_dtype;
    if (t.param_place.buffer == 0) {
      const std::uint64_t bytes = elements_[t.tensor] * wire::DTypeBytes(t.param_dtype);
      const SlabPiece piece = slab.Take(bytes);
      entry.param = piece.slice;
      ranges.push_back({piece.at, t.param, bytes});
      back.push_back({t.param, piece.at, bytes});
    }
    if (t.grad_place.buffer == 0) {
      const std::uint64_t bytes = elements_[t.tensor] * wire::DTypeBytes(t.grad_dtype);
      const SlabPiece piece = slab.Take(bytes);
      entry.grad = piece.slice;
      ranges.push_back({piece.at, t.grad, bytes});
    }
    std::memcpy(at, &entry, sizeof(entry));
    at += sizeof(entry);
  }
  connection_->copies().Run(ranges);
  ranges.swap(back);
  wire::StepBody body;
  body.extent = extent_;
  body.table = table.slice;
  body.groups = static_cast<std::uint32_t>(groups.size());
  body.entries = static_cast<std::uint32_t>(tensors.size());
  body.step = options.step;
  body.on_nonfinite = options.on_nonfinite;
  body.continues = options.continues ? 1 : 0;
  return body;
}

Status Arena::Step(std::span<const StepTensor> tensors, std::span<const wire::GroupRecord> groups,
                   const StepOptions& options, StepResult* result) {
  Plan plan;
  if (Status fine = CheckStep(tensors, groups, options, plan); !fine.ok()) return fine;
  const Result<Connection::Lock> lock = connection_->Enter();
  if (!lock.ok()) return lock.status();
  if (Status room = connection_->ReserveSlab(plan.slab_bytes); !room.ok()) return room;
  const wire::StepBody body = Stage(tensors, groups, options, plan);
  // The parameters must come back from the slab: such a step is not left behind.
  const Patience patience = plan.stages_params ? Patience::kUntilDone : Patience::kUntilSignal;
  const Result<wire::CompletionRecord> done = connection_->timeline().Run(wire::Op::kStep, body, patience);
  if (!done.ok()) return done.status();
  const Status outcome = StatusOf(*done);
  if (!outcome.ok() && outcome.code() != Code::kNonFinite) return outcome;
  connection_->copies().Run(connection_->ranges());
  if (result != nullptr) {
    const std::uint64_t* values = done->values;
    result->nonfinite_blocks = values[0];
    result->first_nonfinite_tensor = static_cast<std::uint32_t>(values[1]);
    result->loaded_pages = values[2];
    result->stored_pages = values[3];
    result->total_ns = values[4];
    result->stall_ns = values[5];
    result->launch_ns = values[6];
  }
  return outcome;
}

Status Arena::WriteStreamTable(std::span<const StepTensor> tensors, std::span<const wire::GroupRecord> groups,
                               const StreamStepOptions& options, std::byte* at) {
  std::memcpy(at, groups.data(), groups.size_bytes());
  at += groups.size_bytes();
  DeviceSession& device = *connection_->device();
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (Status fine = CheckTensor(tensors, i, groups.size()); !fine.ok()) return fine;
    const StepTensor& t = tensors[i];
    const void* param = options.params.empty() ? t.param : reinterpret_cast<const void*>(options.params[i]);
    const void* grad = options.grads.empty() ? t.grad : reinterpret_cast<const void*>(options.grads[i]);
    if (param == nullptr || grad == nullptr) return Refuse(i, "its parameter or gradient is null");
    wire::StepEntry entry;
    entry.tensor = t.tensor;
    entry.group = t.group;
    entry.step = t.step + options.steps_ahead;
    entry.param_dtype = t.param_dtype;
    entry.grad_dtype = t.grad_dtype;
    const std::uint64_t elements = elements_[t.tensor];
    Status placed =
        device.Resolve(param, elements * wire::DTypeBytes(t.param_dtype), Use::kLasting, entry.param);
    if (placed.ok()) {
      placed = device.Resolve(grad, elements * wire::DTypeBytes(t.grad_dtype), Use::kGradient, entry.grad);
    }
    if (!placed.ok()) return {placed.code(), "step tensor " + std::to_string(i) + ": " + placed.message()};
    std::memcpy(at, &entry, sizeof(entry));
    at += sizeof(entry);
  }
  return {};
}

Result<std::uint64_t> Arena::StepOnStream(std::span<const StepTensor> tensors,
                                          std::span<const wire::GroupRecord> groups,
                                          const StreamStepOptions& options, StreamHandle stream) {
  if (Status fine = CheckList(tensors.size(), groups.size(), options.step); !fine.ok()) return fine;
  for (const auto& list : {options.grads, options.params}) {
    if (list.empty() || list.size() == tensors.size()) continue;
    return Status(Code::kInvalidArgument, "there are not as many addresses as tensors");
  }
  const Result<Connection::Lock> lock = connection_->Enter();
  if (!lock.ok()) return lock.status();
  DeviceSession* const device = connection_->device();
  if (device == nullptr) return NoStreams(connection_->info().device_kind);
  if (Status begun = device->Begin(stream); !begun.ok()) return begun;
  const Result<SlabPiece> table =
      device->Table(groups.size_bytes() + tensors.size() * sizeof(wire::StepEntry));
  if (!table.ok()) return table.status();
  if (Status written = WriteStreamTable(tensors, groups, options, table->at); !written.ok()) return written;
  wire::StepBody body;
  body.extent = extent_;
  body.table = table->slice;
  body.groups = static_cast<std::uint32_t>(groups.size());
  body.entries = static_cast<std::uint32_t>(tensors.size());
  body.step = options.step;
  body.on_nonfinite = options.on_nonfinite;
  body.continues = options.follows ? 1 : 0;
  return device->Submit(stream, wire::Op::kStep, body, {extent_, options.step}, options.follows);
}

Status Arena::ReadStates(std::uint32_t tensor, const StatePlanes& into) {
  return MoveStates(tensor, false, 0, into);
}

Status Arena::WriteStates(std::uint32_t tensor, std::uint64_t step, const StatePlanes& from) {
  return MoveStates(tensor, true, step, from);
}

Status Arena::MoveStates(std::uint32_t tensor, bool into_pages, std::uint64_t step,
                         const StatePlanes& planes) {
  if (tensor >= elements_.size()) {
    return {Code::kOutOfRange,
            "tensor " + std::to_string(tensor) + " of an arena of " + std::to_string(elements_.size())};
  }
  const bool coded = bits_ == wire::StateBits::k8;
  const std::uint32_t states = wire::StatesOf(rule_);
  const std::uint64_t plane_bytes = elements_[tensor] * (coded ? 1 : 4);
  const std::uint64_t absmax_bytes =
      coded ? (elements_[tensor] + wire::kStateBlock - 1) / wire::kStateBlock * sizeof(float) : 0;
  for (std::uint32_t k = 0; k < states; ++k) {
    if (planes.planes[k] == nullptr || (coded && planes.absmax[k] == nullptr)) {
      return {Code::kInvalidArgument, "state " + std::to_string(k) + " has no plane" +
                                          (coded ? " or no absmax (8-bit states need both)" : "")};
    }
  }
  const Result<Connection::Lock> lock = connection_->Enter();
  if (!lock.ok()) return lock.status();
  const std::uint64_t each = Slab::Rounded(plane_bytes) + Slab::Rounded(absmax_bytes);
  if (Status room = connection_->ReserveSlab(each * states); !room.ok()) return room;
  wire::StatesBody body;
  body.extent = extent_;
  body.tensor = tensor;
  body.into_pages = into_pages ? 1 : 0;
  body.step = step;
  std::vector<CopyRange>& ranges = connection_->ranges();
  ranges.clear();
  const auto stage = [&](void* plane, std::uint64_t bytes, wire::Slice& slice) {
    const SlabPiece piece = connection_->slab().Take(bytes);
    slice = piece.slice;
    ranges.push_back(into_pages ? CopyRange{piece.at, plane, bytes} : CopyRange{plane, piece.at, bytes});
  };
  for (std::uint32_t k = 0; k < states; ++k) {
    stage(planes.planes[k], plane_bytes, body.planes[k]);
    if (coded) stage(planes.absmax[k], absmax_bytes, body.absmax[k]);
  }
  if (into_pages) connection_->copies().Run(ranges);
  const Result<wire::CompletionRecord> done = connection_->timeline().Run(wire::Op::kMoveStates, body);
  if (!done.ok()) return done.status();
  const Status outcome = StatusOf(*done);
  if (outcome.ok() && !into_pages) connection_->copies().Run(ranges);
  return outcome;
}

void Arena::DropLater() {
  static_cast<void>(connection_->Locked([this] {
    if (extent_ != 0) connection_->DropLater(std::exchange(extent_, 0));
  }));
}

Status Arena::Drop() {
  const Result<Connection::Lock> lock = connection_->Enter();
  if (!lock.ok()) return lock.status();
  if (extent_ == 0) return {};
  // What was asked for before is applied first.
  if (Status idle = connection_->timeline().AwaitAll(Patience::kUntilSignal); !idle.ok()) return idle;
  wire::DropExtentBody body;
  body.extent = std::exchange(extent_, 0);
  return connection_->Ask(wire::MessageType::kDropExtent, body).status();
}

}  // namespace bitpager::client
