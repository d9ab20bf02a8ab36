// A healthy job beside whatever is fuzzed: it steps now and then, and its parameters must stay those of the
// reference. One thread.
#pragma once

#include <memory>

#include "tests/fuzz/check.h"
#include "tests/support/in_process_daemon.h"
#include "tests/support/raw_trainer.h"

namespace bitpager::testing {

class Neighbour {
 public:
  explicit Neighbour(InProcessDaemon& daemon)
      : client_(daemon.Open("neighbour", 0, {4242, 4242, 1})),
        trainer_(*client_, {3 * 6144, 100}),
        shadow_(trainer_.Shadow()) {
    FUZZ_CHECK(trainer_.Create().ok());
  }
  void StepAndCheck() {
    const wire::CompletionRecord done = trainer_.Step(++step_);
    FUZZ_CHECK(RawClient::CodeOf(done) == wire::Code::kOk);
    shadow_.Step(step_);
    FUZZ_CHECK(std::memcmp(trainer_.params(), shadow_.params(0).data(), shadow_.params(0).size() * 4) == 0);
  }

 private:
  std::unique_ptr<RawClient> client_;
  RawTrainer trainer_;
  ShadowArena shadow_;
  std::uint64_t step_ = 0;
};

}  // namespace bitpager::testing
