#include "daemon/admission.h"

#include <string>

namespace bitpager::daemon {

using wire::Code;
using wire::Op;
using wire::Status;

wire::Result<Place> Resolve(const SessionScope& scope, const wire::Slice& slice, std::uint64_t bytes,
                            std::uint64_t align, bool write, const char* what) {
  BufferRef buffer = scope.FindBuffer(wire::BufferId{slice.buffer});
  if (buffer == nullptr) {
    return Status(Code::kNotFound,
                  std::string(what) + ": no buffer " + std::to_string(slice.buffer) +
                      " in this session. Hint: register it first, and after each reconnect.");
  }
  if (slice.offset > buffer->bytes() || bytes > buffer->bytes() - slice.offset) {
    return Status(Code::kOutOfRange, std::string(what) + ": " + std::to_string(bytes) + " bytes at offset " +
                                         std::to_string(slice.offset) + " pass the end of buffer " +
                                         std::to_string(slice.buffer) + " (" +
                                         std::to_string(buffer->bytes()) + " bytes).");
  }
  if (slice.offset % align != 0) {
    return Status(Code::kInvalidArgument, std::string(what) + ": offset " + std::to_string(slice.offset) +
                                              " is not a multiple of " + std::to_string(align) + ".");
  }
  if (write && !buffer->writable()) {
    return Status(Code::kInvalidArgument, std::string(what) + ": buffer " + std::to_string(slice.buffer) +
                                              " was registered read-only but would be written.");
  }
  std::byte* at = buffer->base() + slice.offset;
  return Place{std::move(buffer), at};
}

namespace {

wire::Result<Extent*> FindExtent(const SessionScope& scope, std::uint64_t id) {
  Extent* extent = scope.FindExtent(wire::ExtentId{id});
  if (extent == nullptr) {
    return Status(Code::kNotFound, "no extent " + std::to_string(id) +
                                       " in this session: it was dropped, or belongs to another session.");
  }
  return extent;
}

}  // namespace

wire::Result<Extent*> FindArena(const SessionScope& scope, std::uint64_t id) {
  wire::Result<Extent*> found = FindExtent(scope, id);
  if (found.ok() && (*found)->arena() == nullptr) {
    return Status(
        Code::kInvalidArgument,
        "extent " + std::to_string(id) + " is a quantized weight; this request needs an optimizer arena.");
  }
  return found;
}

wire::Result<Extent*> FindWeight(const SessionScope& scope, std::uint64_t id, bool must_be_filled) {
  wire::Result<Extent*> found = FindExtent(scope, id);
  if (!found.ok()) return found;
  if ((*found)->weight() == nullptr) {
    return Status(
        Code::kInvalidArgument,
        "extent " + std::to_string(id) + " is an optimizer arena; this request needs a quantized weight.");
  }
  if (must_be_filled && !(*found)->weight()->filled) {
    return Status(Code::kInvalidArgument,
                  "weight " + std::to_string(id) + " holds nothing yet. Hint: quantize or import it first.");
  }
  return found;
}

AdmitResult Admit(const SessionScope& scope, const wire::RequestRecord& record, kernels::Device& device) {
  switch (record.op) {
    case Op::kStep:
      return AdmitStep(scope, BodyOf<wire::StepBody>(record), device);
    case Op::kDequantize:
      return AdmitDequantize(scope, BodyOf<wire::DequantizeBody>(record));
    case Op::kQuantize:
      return AdmitQuantize(scope, BodyOf<wire::QuantizeBody>(record), device);
    case Op::kMovePacked:
      return AdmitMovePacked(scope, BodyOf<wire::PackedBody>(record), device);
    case Op::kMoveStates:
      return AdmitMoveStates(scope, BodyOf<wire::StatesBody>(record));
    default:
      break;
  }
  return Status(Code::kInvalidArgument,
                "unknown operation " + std::to_string(static_cast<unsigned>(record.op)) + " in a request.");
}

}  // namespace bitpager::daemon
