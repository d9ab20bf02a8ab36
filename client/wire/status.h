// Status and Result: the one way an outcome crosses a folder, the shared memory or the C ABI.
// Owns nothing; used on every thread. No exception crosses those borders.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace bitpager::wire {

// Values travel in records and through the C ABI: append only, never renumber.
enum class Code : std::uint32_t {
  kOk = 0,
  // Not errors: the caller tries again or takes another way.
  kFull = 1,         // ring, reserve or budget has no room now
  kPending = 2,      // accepted, not finished
  kNotResident = 3,  // the page is not on the device
  // The caller's fault; only the caller is told.
  kInvalidArgument = 10,
  kOutOfRange = 11,  // an offset or a length past its buffer
  kUnknownVersion = 12,
  kAlreadyExists = 13,
  kNotFound = 14,
  kPermissionDenied = 15,
  kStepMismatch = 16,    // returning client and kept states are at different steps
  kLayoutMismatch = 17,  // returning client's layout is not the kept one
  kForkedChild = 18,     // a session used in a child of the process that opened it
  // Limits.
  kQuotaExceeded = 20,
  kBudgetExceeded = 21,
  kOutOfMemory = 22,
  // The work itself.
  kNonFinite = 30,  // gradients held NaN or inf; those blocks were left untouched
  kCancelled = 31,  // not applied: states untouched
  kDeviceFault = 32,
  // The connection.
  kUnreachable = 40,  // no daemon answers
  kDaemonLost = 41,   // the daemon ended while the client used it
  kProtocol = 42,     // the peer wrote something that no peer writes
  kDraining = 43,     // the daemon takes no new work
  kInterrupted = 44,  // the wait was interrupted; the request goes on
  kUnsupported = 45,
  kInternal = 50,
};

[[nodiscard]] std::string_view CodeName(Code code);

// An outcome with its message: what happened, why, and a hint. Ok carries no message.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}
  [[nodiscard]] bool ok() const { return code_ == Code::kOk; }
  [[nodiscard]] Code code() const { return code_; }
  [[nodiscard]] const std::string& message() const { return message_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

// A value or the Status that says why there is none. Never holds an Ok status.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}         // NOLINT(google-explicit-constructor)
  Result(Status status) : value_(std::move(status)) {}  // NOLINT(google-explicit-constructor)
  [[nodiscard]] bool ok() const { return std::holds_alternative<T>(value_); }
  [[nodiscard]] T& value() { return std::get<T>(value_); }
  [[nodiscard]] const T& value() const { return std::get<T>(value_); }
  [[nodiscard]] T& operator*() { return value(); }
  [[nodiscard]] const T& operator*() const { return value(); }
  [[nodiscard]] T* operator->() { return &value(); }
  [[nodiscard]] const T* operator->() const { return &value(); }
  [[nodiscard]] Status status() const { return ok() ? Status() : std::get<Status>(value_); }

 private:
  std::variant<T, Status> value_;
};

}  // namespace bitpager::wire
