// A daemon that goes to the background: the program that started it waits until it serves, and is not its
// parent, so that nobody has to reap it when it ends.
#pragma once

#include "client/wire/status.h"
#include "client/wire/unique_fd.h"

namespace bitpager::daemon {

class Background {
 public:
  // Forks, and returns in the child alone, which leads a session of its own. The parent ends with 0 when the
  // child serves, with the child's exit status (128 and its signal) when that ended before; while the child
  // does not serve yet, it goes with its parent. Before any thread is started. kOutOfMemory.
  [[nodiscard]] static wire::Result<Background> Split();
  // The child serves: its parent may go.
  void Serving();

 private:
  explicit Background(wire::UniqueFd parent) : parent_(std::move(parent)) {}

  wire::UniqueFd parent_;  // of a pipe
};

}  // namespace bitpager::daemon
