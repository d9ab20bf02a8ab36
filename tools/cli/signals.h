// Signals as a file that can be waited for, in place of handlers. One thread: make it before any other
// starts.
#pragma once

#include <csignal>
#include <initializer_list>

#include "client/wire/unique_fd.h"

namespace bitpager::cli {

class Signals {
 public:
  // Holds these signals back until the end of this object, and takes them from fd().
  explicit Signals(std::initializer_list<int> signals);
  ~Signals();
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  [[nodiscard]] int fd() const { return fd_.get(); }
  // One signal that came; 0 when none did.
  [[nodiscard]] int Take() const;

 private:
  wire::UniqueFd fd_;
  sigset_t before_{};
};

}  // namespace bitpager::cli
