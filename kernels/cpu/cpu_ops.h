// The ops of the CPU device: each runs on the compute queue's thread and fans out over its pool. Outputs do
// not depend on how an op is cut into pieces.
#pragma once

#include "kernels/cpu/worker_pool.h"
#include "kernels/ops.h"

namespace bitpager::kernels::cpu {

void RunStep(WorkerPool& pool, const StepArgs& args);
void RunDequantize(WorkerPool& pool, const DequantizeArgs& args);
void RunBlockAbsmax(WorkerPool& pool, const BlockAbsmaxArgs& args);
void RunNestAbsmax(WorkerPool& pool, const NestAbsmaxArgs& args);
void RunQuantize(WorkerPool& pool, const QuantizeArgs& args);
void RunMovePacked(WorkerPool& pool, const PackedArgs& args);
void RunMoveStates(WorkerPool& pool, const StatePlanesArgs& args);
void RunCopy(WorkerPool& pool, void* to, const void* from, std::uint64_t bytes);

}  // namespace bitpager::kernels::cpu
