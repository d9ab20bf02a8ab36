#include "client/torch/tensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <sstream>

#include "client/torch/error.h"

namespace bitpager::optim {
namespace {

bool IsFloat(const at::Tensor& tensor) {
  const at::ScalarType type = tensor.scalar_type();
  return type == at::kFloat || type == at::kHalf || type == at::kBFloat16;
}

template <typename... Parts>
[[noreturn]] void RefuseTensor(wire::Code code, const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(code, text.str());
}

// What is wrong with a tensor; null: nothing that keeps it from being stepped.
const char* FlawOf(const at::Tensor& tensor, wire::Code& code) {
  code = wire::Code::kInvalidArgument;
  if (tensor.layout() != at::kStrided) {
    return "is sparse; bitpager steps dense tensors. Hint: EmbeddingOptions::sparse(false)";
  }
  if (!IsFloat(tensor)) {
    return "has a dtype that is none of Float, Half and BFloat16. Hint: keep it out of the optimizer, or "
           "convert it";
  }
  if (tensor.is_meta()) return "is on the meta device and has no data. Hint: materialise it first";
  if (tensor.is_cpu() || tensor.is_cuda()) return nullptr;
  code = wire::Code::kUnsupported;
  return "is neither on the CPU nor on a CUDA device. Hint: move the model before the optimizer is made";
}

void RequireDenseFloat(const at::Tensor& tensor, const std::function<std::string()>& name) {
  wire::Code code{};
  if (const char* const flaw = FlawOf(tensor, code); flaw != nullptr) {
    RefuseTensor(code, name(), " (", tensor.scalar_type(), ", ", tensor.layout(), ", ", tensor.device(), ") ",
                 flaw);
  }
}

at::Tensor LoadedPlane(const at::Tensor& saved, const at::Tensor& parameter, const std::string& name,
                       const char* key) {
  if (!saved.defined()) Refuse("the loaded state of " + name + " lacks " + key);
  if (saved.numel() != parameter.numel()) {
    RefuseTensor(wire::Code::kInvalidArgument, key, " of ", name, " has shape ", saved.sizes(),
                 ", the parameter ", parameter.sizes(), ". Hint: the archive belongs to another model");
  }
  const bool coded = saved.scalar_type() == at::kByte;
  if (!coded && !saved.is_floating_point()) {
    RefuseTensor(wire::Code::kInvalidArgument, key, " of ", name, " has dtype ", saved.scalar_type(),
                 "; states are Byte (8-bit codes) or floats");
  }
  if (coded && (saved.sizes() != parameter.sizes() || !SameOrder(saved, parameter))) {
    RefuseTensor(wire::Code::kInvalidArgument, key, " of ", name,
                 " was saved in another memory order than the parameter has, and 8-bit blocks cannot be "
                 "carried over. Hint: load into a parameter of the saved memory format");
  }
  const auto options = at::TensorOptions().dtype(coded ? at::kByte : at::kFloat).device(at::kCPU);
  at::Tensor plane = at::empty_like(parameter, options);
  plane.copy_(saved.detach().reshape(parameter.sizes()));
  return plane;
}

at::Tensor LoadedAbsmax(const at::Tensor& saved, const at::Tensor& parameter, const std::string& name,
                        const char* key) {
  const std::int64_t blocks = (parameter.numel() + wire::kStateBlock - 1) / wire::kStateBlock;
  if (!saved.defined()) Refuse("the loaded 8-bit state of " + name + " lacks " + key);
  if (saved.numel() != blocks) {
    RefuseTensor(wire::Code::kInvalidArgument, key, " of ", name, " has ", saved.numel(), " entries; ",
                 blocks, " blocks of 256 elements need one each");
  }
  return saved.detach().to(at::kCPU, at::kFloat).flatten().contiguous().clone();
}

}  // namespace

void RequireParameter(const at::Tensor& parameter, const Describe& describe) {
  RequireDenseFloat(parameter, [&] { return describe(parameter); });
  if (!parameter.is_non_overlapping_and_dense()) {
    RefuseTensor(wire::Code::kInvalidArgument, describe(parameter), " has strides ", parameter.strides(),
                 ": its elements overlap or have gaps. Hint: parameter.set_data(parameter.contiguous())");
  }
}

at::Tensor GradientOf(const at::Tensor& parameter, const Describe& describe) {
  const at::Tensor& gradient = parameter.grad();
  RequireDenseFloat(gradient, [&] { return "the gradient of " + describe(parameter); });
  if (gradient.device() != parameter.device()) {
    RefuseTensor(wire::Code::kInvalidArgument, "the gradient of ", describe(parameter), " is on ",
                 gradient.device(), ", the parameter on ", parameter.device(),
                 ". Hint: move parameters before backward()");
  }
  if (gradient.sizes() == parameter.sizes() && gradient.is_non_overlapping_and_dense() &&
      SameOrder(gradient, parameter) && !gradient.is_neg() && !gradient._is_zerotensor()) {
    return gradient;
  }
  at::Tensor copy = at::empty_like(parameter, at::TensorOptions().dtype(gradient.scalar_type()));
  copy.copy_(gradient);
  return copy;
}

wire::DType DTypeOf(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kHalf:
      return wire::DType::kF16;
    case at::kBFloat16:
      return wire::DType::kBF16;
    default:
      return wire::DType::kF32;
  }
}

bool SameOrder(const at::Tensor& a, const at::Tensor& b) {
  for (std::int64_t dimension = 0; dimension < a.dim(); ++dimension) {
    if (a.size(dimension) != 1 && a.stride(dimension) != b.stride(dimension)) return false;
  }
  return true;
}

PagedParamState EmptyState(const at::Tensor& parameter, wire::Rule rule, std::int64_t bits) {
  const bool coded = bits == 8;
  const auto options = at::TensorOptions().dtype(coded ? at::kByte : at::kFloat).device(at::kCPU);
  const std::int64_t blocks = (parameter.numel() + wire::kStateBlock - 1) / wire::kStateBlock;
  const auto absmax = [&] {
    return coded ? at::empty({blocks}, at::TensorOptions().dtype(at::kFloat).device(at::kCPU)) : at::Tensor();
  };
  PagedParamState state;
  state.state1(at::empty_like(parameter, options)).absmax1(absmax());
  if (wire::StatesOf(rule) == 2) state.state2(at::empty_like(parameter, options)).absmax2(absmax());
  return state;
}

PagedParamState CheckLoaded(const PagedParamState& loaded, const at::Tensor& parameter, wire::Rule rule,
                            const std::string& name) {
  const bool two = wire::StatesOf(rule) == 2;
  if (loaded.step() < 0) Refuse("the loaded state of " + name + " is at a negative step");
  if (!two && loaded.state2().defined()) {
    Refuse("the loaded state of " + name + " has two moments; this optimizer keeps one");
  }
  PagedParamState state;
  state.step(loaded.step()).state1(LoadedPlane(loaded.state1(), parameter, name, "state1"));
  const bool coded = BitsOf(state) == 8;
  if (coded) state.absmax1(LoadedAbsmax(loaded.absmax1(), parameter, name, "absmax1"));
  if (!two) return state;
  state.state2(LoadedPlane(loaded.state2(), parameter, name, "state2"));
  if (state.state1().scalar_type() != state.state2().scalar_type()) {
    Refuse("the loaded states of " + name + " differ in dtype");
  }
  if (coded) state.absmax2(LoadedAbsmax(loaded.absmax2(), parameter, name, "absmax2"));
  return state;
}

}  // namespace bitpager::optim
