// How the libtorch optimizers report errors: as exceptions, which is what libtorch's users expect. The only
// place of the client that throws.
#pragma once

#include <stdexcept>
#include <string>

#include "client/wire/status.h"

namespace bitpager::optim {

// what() says what happened, why, and gives a hint.
class Error : public std::runtime_error {
 public:
  Error(wire::Code code, const std::string& message) : std::runtime_error(message), code_(code) {}
  explicit Error(const wire::Status& status) : Error(status.code(), status.message()) {}

  [[nodiscard]] wire::Code code() const { return code_; }

 private:
  wire::Code code_;
};

[[noreturn]] inline void Refuse(const std::string& message) {
  throw Error(wire::Code::kInvalidArgument, message);
}

inline void Check(const wire::Status& status) {
  if (!status.ok()) throw Error(status);
}

template <typename T>
T Take(wire::Result<T> result) {
  if (!result.ok()) throw Error(result.status());
  return std::move(*result);
}

}  // namespace bitpager::optim
