// TEMPORARY: ops of the CUDA device whose sources have not landed fail by name. Delete an op's line when it
// lands.
#include "kernels/cuda/cuda_ops.h"

namespace bitpager::kernels::cuda {
namespace {
[[maybe_unused]] wire::Status NotBuilt(const char* op) {
  return {wire::Code::kUnsupported, std::string(op) + " is not built"};
}
}  // namespace

#define PENDING(name, args)                                \
  wire::Status Launch##name(LaunchContext&, const args&) { \
    return NotBuilt(#name);                                \
  }

PENDING(Step, StepArgs)
PENDING(MoveStates, StatePlanesArgs)

}  // namespace bitpager::kernels::cuda
