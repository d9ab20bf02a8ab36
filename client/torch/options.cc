#include "client/torch/options.h"

#include <torch/optim/serialize.h>
#include <torch/serialize/archive.h>

#include <sstream>

#include "client/torch/error.h"

namespace bitpager::optim {
namespace {

using torch::optim::OptimizerOptions;
using torch::serialize::InputArchive;
using torch::serialize::OutputArchive;

// Reads options one by one; a missing one means that another optimizer wrote the archive.
template <typename T>
T Read(InputArchive& archive, const char* name) {
  c10::IValue value;
  if (!archive.try_read(name, value)) {
    Refuse(std::string("the archive has no ") + name +
           ", so another optimizer wrote it. Hint: load it into one of the class that was saved");
  }
  return value.to<T>();
}

torch::Tensor ReadTensor(InputArchive& archive, const char* name) {
  c10::IValue value;
  return archive.try_read(name, value) ? value.toTensor() : torch::Tensor();
}

void WriteTensor(OutputArchive& archive, const char* name, const torch::Tensor& tensor) {
  if (tensor.defined()) archive.write(name, c10::IValue(tensor));
}

// What both families have.
template <typename Options>
void ReadCommon(InputArchive& archive, Options& options) {
  options.lr(Read<double>(archive, "lr"));
  options.betas(Read<typename Options::betas_t>(archive, "betas"));
  options.weight_decay(Read<double>(archive, "weight_decay"));
  options.optim_bits(Read<std::int64_t>(archive, "optim_bits"));
  options.min_8bit_size(Read<std::int64_t>(archive, "min_8bit_size"));
}

template <typename Options>
void WriteCommon(OutputArchive& archive, const Options& options) {
  archive.write("lr", c10::IValue(options.lr()));
  archive.write("betas", c10::IValue(options.betas()));
  archive.write("weight_decay", c10::IValue(options.weight_decay()));
  archive.write("optim_bits", c10::IValue(options.optim_bits()));
  archive.write("min_8bit_size", c10::IValue(options.min_8bit_size()));
}

double EpsOf(const PagedLion8bitOptions& /*options*/) {
  return 0.0;
}
template <typename Defaults>
double EpsOf(const PagedAdamOptions<Defaults>& options) {
  return options.eps();
}

// Written so that NaN is outside.
void CheckRange(const char* name, double value, bool fine) {
  if (fine) return;
  std::ostringstream text;
  text << "invalid " << name << ": " << value;
  Refuse(text.str());
}

template <typename Options>
void CheckRanges(const Options& options) {
  const auto& [beta1, beta2] = options.betas();
  CheckRange("learning rate", options.lr(), options.lr() >= 0);
  CheckRange("beta at index 0", beta1, beta1 >= 0 && beta1 < 1);
  CheckRange("beta at index 1", beta2, beta2 >= 0 && beta2 < 1);
  CheckRange("epsilon", EpsOf(options), EpsOf(options) >= 0);
  CheckRange("weight decay", options.weight_decay(), options.weight_decay() >= 0);
  const std::int64_t bits = options.optim_bits();
  if (bits != 8 && bits != 32) Refuse("optim_bits is " + std::to_string(bits) + "; states have 8 or 32 bits");
  const std::int64_t least = options.min_8bit_size();
  if (least < 0) Refuse("min_8bit_size is " + std::to_string(least) + "; it must not be negative");
}

template <typename Options>
const Options& As(const OptimizerOptions& options) {
  const auto* own = dynamic_cast<const Options*>(&options);
  if (own == nullptr) {
    Refuse(std::string("a parameter group has options of another optimizer (") + typeid(options).name() +
           "). Hint: give each group the Options type of the optimizer it goes into");
  }
  return *own;
}

// Takes the default for a field that has the value that its type is made with.
#define BITPAGER_INHERIT(field) \
  if (merged.field() == made.field()) merged.field(defaults.field())

template <typename Options>
void MergeCommon(Options& merged, const Options& made, const Options& defaults) {
  BITPAGER_INHERIT(lr);
  BITPAGER_INHERIT(betas);
  BITPAGER_INHERIT(weight_decay);
  BITPAGER_INHERIT(optim_bits);
  BITPAGER_INHERIT(min_8bit_size);
}
void Inherit(PagedLion8bitOptions& merged, const PagedLion8bitOptions& made,
             const PagedLion8bitOptions& defaults) {
  MergeCommon(merged, made, defaults);
}
template <typename Defaults>
void Inherit(PagedAdamOptions<Defaults>& merged, const PagedAdamOptions<Defaults>& made,
             const PagedAdamOptions<Defaults>& defaults) {
  MergeCommon(merged, made, defaults);
  BITPAGER_INHERIT(eps);
}
#undef BITPAGER_INHERIT

template <typename Options>
std::unique_ptr<OptimizerOptions> Merge(const OptimizerOptions& defaults, const OptimizerOptions& own) {
  auto merged = std::make_unique<Options>(As<Options>(own));
  Inherit(*merged, Options(), As<Options>(defaults));
  CheckRanges(*merged);
  return merged;
}

template <typename Options>
GroupSettings SettingsOf(const OptimizerOptions& options) {
  const auto& own = As<Options>(options);
  const auto& [beta1, beta2] = own.betas();
  return {{own.lr(), beta1, beta2, EpsOf(own), own.weight_decay()}, own.optim_bits(), own.min_8bit_size()};
}

template <typename Options>
void Save(OutputArchive& archive, const torch::optim::Optimizer& optimizer) {
  torch::optim::serialize<PagedParamState, Options>(archive, optimizer);
}
template <typename Options>
void Load(InputArchive& archive, torch::optim::Optimizer& optimizer) {
  torch::optim::serialize<PagedParamState, Options>(archive, optimizer);
}

template <typename Options>
constexpr OptimizerKind KindOf(const char* name, wire::Rule rule) {
  return {name, rule, SettingsOf<Options>, Merge<Options>, Save<Options>, Load<Options>};
}

}  // namespace

template <typename Defaults>
void PagedAdamOptions<Defaults>::serialize(InputArchive& archive) {
  ReadCommon(archive, *this);
  eps(Read<double>(archive, "eps"));
}

template <typename Defaults>
void PagedAdamOptions<Defaults>::serialize(OutputArchive& archive) const {
  WriteCommon(archive, *this);
  archive.write("eps", c10::IValue(eps()));
}

template struct PagedAdamOptions<AdamDefaults>;
template struct PagedAdamOptions<AdamWDefaults>;

void PagedLion8bitOptions::serialize(InputArchive& archive) {
  ReadCommon(archive, *this);
}

void PagedLion8bitOptions::serialize(OutputArchive& archive) const {
  WriteCommon(archive, *this);
}

void PagedParamState::serialize(InputArchive& archive) {
  step(Read<std::int64_t>(archive, "step"));
  state1(ReadTensor(archive, "state1"));
  state2(ReadTensor(archive, "state2"));
  absmax1(ReadTensor(archive, "absmax1"));
  absmax2(ReadTensor(archive, "absmax2"));
}

void PagedParamState::serialize(OutputArchive& archive) const {
  archive.write("step", c10::IValue(step()));
  WriteTensor(archive, "state1", state1());
  WriteTensor(archive, "state2", state2());
  WriteTensor(archive, "absmax1", absmax1());
  WriteTensor(archive, "absmax2", absmax2());
}

constinit const OptimizerKind kPagedAdam8bit =
    KindOf<PagedAdam8bitOptions>("PagedAdam8bit", wire::Rule::kAdam);
constinit const OptimizerKind kPagedAdamW8bit =
    KindOf<PagedAdamW8bitOptions>("PagedAdamW8bit", wire::Rule::kAdam);
constinit const OptimizerKind kPagedLion8bit =
    KindOf<PagedLion8bitOptions>("PagedLion8bit", wire::Rule::kLion);

}  // namespace bitpager::optim
