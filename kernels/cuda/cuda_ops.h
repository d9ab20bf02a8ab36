// Between the CUDA device and its ops: what a launch is given, and one launching function for each op. No
// CUDA header is needed to include this. All on the device thread, with the device's context current. A
// launch only enqueues on `stream`; its arguments may end when it returns. Sizes were validated before.
// A function returns the first error of what it enqueued; kDeviceFault is sticky for the device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "client/wire/status.h"
#include "kernels/ops.h"

struct CUstream_st;  // a cudaStream_t points to one

namespace bitpager::kernels::cuda {

class TableRing;

// What a launch has beside its arguments. Made by the device for one call of a launching function.
class LaunchContext {
 public:
  LaunchContext(CUstream_st* stream, int multiprocessors, int capability, TableRing& tables,
                int shared_bytes = 0)
      : stream_(stream),
        multiprocessors_(multiprocessors),
        capability_(capability),
        shared_bytes_(shared_bytes),
        tables_(tables) {}

  [[nodiscard]] CUstream_st* stream() const { return stream_; }
  [[nodiscard]] int multiprocessors() const { return multiprocessors_; }
  [[nodiscard]] int capability() const { return capability_; }  // 10 * major + minor: 90 for sm_90

  // Not 0: no thread block is to take more shared memory, whatever the device has.
  [[nodiscard]] int shared_bytes() const { return shared_bytes_; }

  // Copies a table of a launch (spans, hypers) to device memory, enqueued on the stream before whatever the
  // caller enqueues next; `host` may end when this returns. The address stays valid until all that this call
  // of the launching function enqueued is complete. Any number of bytes; `align` is a power of two up to
  // 256. Tables of up to 4 KiB travel cheaper as kernel parameters: this costs one small kernel.
  // kOutOfMemory when no room can be made.
  [[nodiscard]] wire::Result<const void*> Upload(const void* host, std::size_t bytes, std::size_t align);

 private:
  CUstream_st* stream_;
  int multiprocessors_;
  int capability_;
  int shared_bytes_;
  TableRing& tables_;
};

// An empty kernel: the GPU turns to this process's context, which takes over 100 us where another one had it.
[[nodiscard]] wire::Status LaunchNothing(CUstream_st* stream);

// Each enqueues what the method of the same name of kernels::Device promises (kernels/ops.h).
[[nodiscard]] wire::Status LaunchStep(LaunchContext& context, const StepArgs& args);
[[nodiscard]] wire::Status LaunchMoveStates(LaunchContext& context, const StatePlanesArgs& args);
[[nodiscard]] wire::Status LaunchDequantize(LaunchContext& context, const DequantizeArgs& args);
[[nodiscard]] wire::Status LaunchBlockAbsmax(LaunchContext& context, const BlockAbsmaxArgs& args);
[[nodiscard]] wire::Status LaunchNestAbsmax(LaunchContext& context, const NestAbsmaxArgs& args);
[[nodiscard]] wire::Status LaunchQuantize(LaunchContext& context, const QuantizeArgs& args);
[[nodiscard]] wire::Status LaunchMovePacked(LaunchContext& context, const PackedArgs& args);

}  // namespace bitpager::kernels::cuda
