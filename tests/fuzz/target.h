// What every fuzz target is to its driver: one object, made with the first input, that lives to the end of
// the process. One thread.
#pragma once

#include <cstddef>
#include <cstdint>

// `Target`: has void One(Input) and void Finish().
#define FUZZ_TARGET(Target)                                                           \
  namespace {                                                                         \
  Target& TheTarget() {                                                               \
    static Target* target = new Target;                                               \
    return *target;                                                                   \
  }                                                                                   \
  }                                                                                   \
  extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) { \
    TheTarget().One({data, size});                                                    \
    return 0;                                                                         \
  }                                                                                   \
  void FuzzFinish() {                                                                 \
    TheTarget().Finish();                                                             \
  }
