// Admission: turns a copied record into a Work, or says what is wrong with it. Copies tables once and
// validates the copies; every offset, length and enum that a client wrote is checked here and nowhere else.
// Dispatcher thread.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>

#include "client/wire/records.h"
#include "client/wire/status.h"
#include "daemon/buffer.h"
#include "daemon/extent.h"
#include "daemon/work.h"

namespace bitpager::daemon {

// What a session may name: its own buffers, and extents of its own.
class SessionScope {
 public:
  virtual ~SessionScope() = default;
  [[nodiscard]] virtual BufferRef FindBuffer(wire::BufferId id) const = 0;
  [[nodiscard]] virtual Extent* FindExtent(wire::ExtentId id) const = 0;
};

// A checked place in client memory.
struct Place {
  BufferRef buffer;
  std::byte* at = nullptr;
};

// kNotFound (no such buffer), kOutOfRange (past its end), kInvalidArgument (misaligned for `align`, or
// read-only memory that would be written). `what` names the field in the message.
[[nodiscard]] wire::Result<Place> Resolve(const SessionScope& scope, const wire::Slice& slice,
                                          std::uint64_t bytes, std::uint64_t align, bool write,
                                          const char* what);

// Works that visit pages: kStep, kDequantize, kQuantize, kMovePacked, kMoveStates. Others: kInvalidArgument.
[[nodiscard]] wire::Result<std::unique_ptr<Work>> Admit(const SessionScope& scope,
                                                        const wire::RequestRecord& record,
                                                        kernels::Device& device);

// One for each op; used by Admit and by tests.
using AdmitResult = wire::Result<std::unique_ptr<Work>>;
[[nodiscard]] AdmitResult AdmitStep(const SessionScope& scope, const wire::StepBody& body,
                                    kernels::Device& device);
[[nodiscard]] AdmitResult AdmitDequantize(const SessionScope& scope, const wire::DequantizeBody& body);
[[nodiscard]] AdmitResult AdmitQuantize(const SessionScope& scope, const wire::QuantizeBody& body,
                                        kernels::Device& device);
[[nodiscard]] AdmitResult AdmitMovePacked(const SessionScope& scope, const wire::PackedBody& body,
                                          kernels::Device& device);
[[nodiscard]] AdmitResult AdmitMoveStates(const SessionScope& scope, const wire::StatesBody& body);

// Finders with errors that name the extent and what it should have been.
[[nodiscard]] wire::Result<Extent*> FindArena(const SessionScope& scope, std::uint64_t id);
[[nodiscard]] wire::Result<Extent*> FindWeight(const SessionScope& scope, std::uint64_t id,
                                               bool must_be_filled);

[[nodiscard]] constexpr bool IsFloat(wire::DType t) {
  return t <= wire::DType::kBF16;
}

template <typename Body>
[[nodiscard]] Body BodyOf(const wire::RequestRecord& record) {
  static_assert(sizeof(Body) <= wire::kRequestBodyBytes);
  Body body;
  std::memcpy(static_cast<void*>(&body), record.body, sizeof(Body));
  return body;
}

}  // namespace bitpager::daemon
