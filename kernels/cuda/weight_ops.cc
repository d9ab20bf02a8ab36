// The launching functions of the weight ops: the stream of the launch, and weights.h. On the device thread.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/weights.h"

namespace bitpager::kernels::cuda {

wire::Status LaunchDequantize(LaunchContext& context, const DequantizeArgs& args) {
  return Dequantize(context.stream(), args);
}
wire::Status LaunchBlockAbsmax(LaunchContext& context, const BlockAbsmaxArgs& args) {
  return BlockAbsmax(context.stream(), args);
}
wire::Status LaunchNestAbsmax(LaunchContext& context, const NestAbsmaxArgs& args) {
  return NestAbsmax(context.stream(), args);
}
wire::Status LaunchQuantize(LaunchContext& context, const QuantizeArgs& args) {
  return Quantize(context.stream(), args);
}
wire::Status LaunchMovePacked(LaunchContext& context, const PackedArgs& args) {
  return MovePacked(context.stream(), args);
}

}  // namespace bitpager::kernels::cuda
