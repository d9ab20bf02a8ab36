// Reads the gradients of a list of parameters in one call: checks that each is like the one that a step was
// packed for in all but its address, and writes the addresses where the step expects them.
//
// bitpager/optim/gather.py compiles this file for the installed PyTorch, without Python's headers and CUDA's.
// A parameter comes as its Python object, which the caller keeps alive, and as the TensorImpl in it. The
// object may be given another one (torch.utils.swap_tensors), and the old one may then be gone: so the object
// is asked each time, and a TensorImpl is touched only when the object still has it. References to parameters
// are not taken, for PyTorch refuses to swap tensors that others refer to.
//
// Threads: every function is called with the GIL held, which guards all of this. It guards the parameters'
// .grad from Python's threads; autograd's own write there too, as they do beside any other reader of .grad.
// Nothing throws.
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

#define BP_GATHER_API extern "C" __attribute__((visibility("default")))

namespace {

// Those of plain dense memory. A tensor with others, such as sparse, negated, conjugated, fake, or one with
// code in Python, is none whose address says it all.
constexpr c10::DispatchKeySet kPlainKeys =
    c10::DispatchKeySet(c10::DispatchKey::Dense) | c10::autograd_dispatch_keyset |
    c10::autocast_dispatch_keyset | c10::DispatchKeySet(c10::DispatchKey::ADInplaceOrView) |
    c10::DispatchKeySet(c10::DispatchKeySet::RAW, c10::full_backend_mask);

bool IsPlain(const c10::TensorImpl& tensor) {
  return (tensor.key_set().raw_repr() & ~kPlainKeys.raw_repr()) == 0 && tensor.layout() == c10::kStrided &&
         (tensor.is_cpu() || tensor.is_cuda()) && !tensor.has_symbolic_sizes_strides();
}

constexpr std::size_t kLine = 64;  // bytes that the processor's caches take at a time

// Null: it has no memory.
std::uint64_t AddressOf(c10::TensorImpl& tensor) {
  return reinterpret_cast<std::uintptr_t>(tensor.mutable_data());
}

// All of a tensor but its address.
class Look {
 public:
  explicit Look(const c10::TensorImpl& tensor)
      : keys_(tensor.key_set()),
        dtype_(tensor.dtype()),
        device_(tensor.device()),
        sizes_(tensor.sizes().vec()),
        strides_(tensor.strides().vec()) {}

  [[nodiscard]] bool IsOf(const c10::TensorImpl& tensor) const {
    // The keys first: with these, the rest is there to be asked.
    return tensor.key_set() == keys_ && !tensor.has_symbolic_sizes_strides() && tensor.dtype() == dtype_ &&
           tensor.device() == device_ && tensor.sizes() == sizes_ && tensor.strides() == strides_;
  }

 private:
  c10::DispatchKeySet keys_;
  caffe2::TypeMeta dtype_;
  c10::Device device_;
  std::vector<std::int64_t> sizes_;
  std::vector<std::int64_t> strides_;
};

struct Row {
  const std::byte* object;  // of Python
  c10::TensorImpl* parameter;
  std::uint64_t place;  // the parameter's address
  const Look* parameter_look;
  const Look* gradient_look;
};

// The TensorImpl that a Python object has now, `offset` bytes into it.
const void* ImplOf(const void* object, std::uint64_t offset) {
  const void* impl = nullptr;
  std::memcpy(&impl, static_cast<const std::byte*>(object) + offset, sizeof(impl));
  return impl;
}

class Gather {
 public:
  explicit Gather(std::uint64_t offset) : offset_(offset) {}

  // False: something here cannot be told apart.
  bool Add(const void* object, c10::TensorImpl* parameter, const c10::TensorImpl& gradient) {
    if (ImplOf(object, offset_) != parameter || !IsPlain(*parameter) || !IsPlain(gradient)) return false;
    rows_.push_back({static_cast<const std::byte*>(object), parameter, AddressOf(*parameter),
                     LookOf(*parameter), LookOf(gradient)});
    held_.emplace_back();
    return rows_.back().place != 0;
  }

  bool AddWithout(const void* object, c10::TensorImpl* parameter) {
    if (ImplOf(object, offset_) != parameter) return false;
    without_.push_back({object, parameter});
    return true;
  }

  bool Take(std::uint64_t* addresses) {
    Release();
    Fetch();
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      const Row& row = rows_[i];
      if (ImplOf(row.object, offset_) != row.parameter) return false;
      const at::Tensor& gradient = row.parameter->grad();
      if (!gradient.defined()) return false;
      c10::TensorImpl& impl = *gradient.unsafeGetTensorImpl();
      if (!row.gradient_look->IsOf(impl) || !row.parameter_look->IsOf(*row.parameter)) return false;
      addresses[i] = AddressOf(impl);
      if (addresses[i] == 0 || AddressOf(*row.parameter) != row.place) return false;
      held_[i] = gradient;
    }
    for (const Without& each : without_) {
      if (ImplOf(each.object, offset_) != each.parameter || each.parameter->grad().defined()) return false;
    }
    return true;
  }

  // A training step has put everything here out of the processor's caches. What Take() is to look at one by
  // one comes from memory at once: each pass asks for what the next one needs, and waits for nothing.
  void Fetch() const {
    for (const Row& row : rows_) {
      __builtin_prefetch(row.object + offset_);
      FetchTensor(row.parameter);
    }
    for (const Row& row : rows_) {
      if (ImplOf(row.object, offset_) != row.parameter) return;
      FetchStorage(*row.parameter);
      __builtin_prefetch(row.parameter->autograd_meta());  // .grad lies in it
    }
    for (const Row& row : rows_) FetchTensor(row.parameter->grad().unsafeGetTensorImpl());
    for (const Row& row : rows_) {
      const at::Tensor& gradient = row.parameter->grad();
      if (gradient.defined()) FetchStorage(*gradient.unsafeGetTensorImpl());
    }
  }
  static void FetchTensor(const c10::TensorImpl* tensor) {
    const auto* const at = reinterpret_cast<const char*>(tensor);
    for (std::size_t line = 0; line < sizeof(c10::TensorImpl); line += kLine) __builtin_prefetch(at + line);
  }
  static void FetchStorage(const c10::TensorImpl& tensor) {
    if (tensor.has_storage()) __builtin_prefetch(tensor.unsafe_storage().unsafeGetStorageImpl());
  }

  // A gradient's end may run Python, which may come back here: it is out of the list before it ends.
  void Release() {
    for (at::Tensor& gradient : held_) const at::Tensor gone = std::move(gradient);
  }

 private:
  struct Without {
    const void* object;
    c10::TensorImpl* parameter;
  };

  // Kept once for all tensors that are alike: there are a few kinds, and a step goes through all tensors.
  const Look* LookOf(const c10::TensorImpl& tensor) {
    for (const Look& look : looks_) {
      if (look.IsOf(tensor)) return &look;
    }
    return &looks_.emplace_back(tensor);
  }

  const std::uint64_t offset_;
  std::deque<Look> looks_;  // where they are they stay
  std::vector<Row> rows_;
  std::vector<Without> without_;
  std::vector<at::Tensor> held_;  // gradients that were taken, until they are released
};

}  // namespace

BP_GATHER_API std::uint32_t bp_gather_abi_version() {
  return 1;
}

// offset: of the TensorImpl pointer in a tensor's Python object. objects, parameters, gradients: n each;
// without_objects, without: m parameters that are to have no gradient. Null: not all can be told apart.
BP_GATHER_API void* bp_gather_make(std::uint64_t offset, const void* const* objects,
                                   c10::TensorImpl* const* parameters, c10::TensorImpl* const* gradients,
                                   std::uint64_t n, const void* const* without_objects,
                                   c10::TensorImpl* const* without, std::uint64_t m) {
  try {
    auto gather = std::make_unique<Gather>(offset);
    for (std::uint64_t i = 0; i < n; ++i) {
      if (!gather->Add(objects[i], parameters[i], *gradients[i])) return nullptr;
    }
    for (std::uint64_t i = 0; i < m; ++i) {
      if (!gather->AddWithout(without_objects[i], without[i])) return nullptr;
    }
    return gather.release();
  } catch (const std::exception&) {
    return nullptr;
  }
}

// 1: all is as it was; addresses has the n gradients', which are kept until bp_gather_release. 0: something
// is not, or may not be; nothing is kept.
BP_GATHER_API int bp_gather_take(void* gather, std::uint64_t* addresses) {
  auto& of = *static_cast<Gather*>(gather);
  try {
    if (of.Take(addresses)) return 1;
  } catch (const std::exception&) {  // a tensor that has no address to give
  }
  of.Release();
  return 0;
}

BP_GATHER_API void bp_gather_release(void* gather) {
  static_cast<Gather*>(gather)->Release();
}

BP_GATHER_API void bp_gather_free(void* gather) {
  delete static_cast<Gather*>(gather);
}

// How many of n addresses lie in the m ranges [begins[i], ends[i]), which are sorted; `found` gets their
// indices, and has room for n.
BP_GATHER_API std::uint64_t bp_gather_find(const std::uint64_t* addresses, std::uint64_t n,
                                           const std::uint64_t* begins, const std::uint64_t* ends,
                                           std::uint64_t m, std::uint64_t* found) {
  std::uint64_t count = 0;
  for (std::uint64_t i = 0; i < n; ++i) {
    const std::uint64_t* after = std::upper_bound(begins, begins + m, addresses[i]);
    if (after != begins && addresses[i] < ends[after - begins - 1]) found[count++] = i;
  }
  return count;
}
