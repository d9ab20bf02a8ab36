// A program that this process starts and that must not outlive its object, as those which find out what
// happens to memory whose owner is killed. Any one thread.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "client/wire/status.h"

namespace bitpager::kernels {

class ChildProcess {
 public:
  ChildProcess() = default;
  ~ChildProcess() { End(); }
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // Once: starts `command` (its first word is the program), which has `fd` as its fd `as` and no signal
  // blocked. kInternal: it could not be started, and why.
  [[nodiscard]] wire::Status Start(std::vector<std::string> command, int fd, int as);
  void Kill();                 // it may still run for a moment
  [[nodiscard]] bool Ended();  // it runs no more, or was never started
  void End();                  // kills it and waits until it runs no more

 private:
  pid_t pid_ = -1;
};

}  // namespace bitpager::kernels
