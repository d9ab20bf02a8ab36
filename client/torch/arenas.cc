#include "client/torch/arenas.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <sstream>

#include "client/torch/error.h"
#include "client/torch/sessions.h"

namespace bitpager::optim {
namespace {

wire::Code CodeOf(const wire::Status& status) {
  return status.code();
}
template <typename T>
wire::Code CodeOf(const wire::Result<T>& result) {
  return result.status().code();
}

// Asks again after a signal; only for what may be asked twice.
template <typename Call>
auto ThroughSignals(const Call& call) {
  auto outcome = call();
  while (CodeOf(outcome) == wire::Code::kInterrupted) outcome = call();
  return outcome;
}

// Differs when the tensors, their order or the kind of state differ (FNV-1a).
std::uint64_t LayoutHash(wire::Rule rule, std::int64_t bits, const std::vector<at::Tensor>& parameters) {
  std::uint64_t hash = 14695981039346656037ULL;
  const auto mix = [&](std::uint64_t value) { hash = (hash ^ value) * 1099511628211ULL; };
  mix(static_cast<std::uint64_t>(rule));
  mix(static_cast<std::uint64_t>(bits));
  for (const at::Tensor& parameter : parameters) {
    mix(static_cast<std::uint64_t>(parameter.dim()));
    for (const std::int64_t size : parameter.sizes()) mix(static_cast<std::uint64_t>(size));
  }
  return hash;
}

client::StatePlanes PlanesOf(const PagedParamState& state) {
  const auto absmax = [](const at::Tensor& t) { return t.defined() ? t.data_ptr<float>() : nullptr; };
  client::StatePlanes planes;
  planes.planes[0] = state.state1().data_ptr();
  planes.planes[1] = state.state2().defined() ? state.state2().data_ptr() : nullptr;
  planes.absmax[0] = absmax(state.absmax1());
  planes.absmax[1] = absmax(state.absmax2());
  return planes;
}

}  // namespace

void StateArenas::Admit(const std::vector<Wanted>& wanted, const Describe& describe) {
  // Devices in the order of their first parameter, then widths: names repeat from run to run.
  std::vector<c10::Device> devices;
  std::vector<at::Tensor> fresh;
  std::vector<const Wanted*> accepted;
  for (const Wanted& one : wanted) {
    if (Find(one.parameter) != nullptr || one.parameter.numel() == 0) continue;
    RequireParameter(one.parameter, describe);
    const c10::Device device = one.parameter.device();
    if (std::find(devices.begin(), devices.end(), device) == devices.end()) devices.push_back(device);
    fresh.push_back(one.parameter);
    accepted.push_back(&one);
  }
  if (fresh.empty()) return;
  RequireApart(fresh, describe);
  std::vector<std::unique_ptr<Home>> made;
  try {
    for (std::size_t place = 0; place < devices.size(); ++place) {
      std::shared_ptr<client::Session> session = session_;
      if (session == nullptr) session = DefaultSession(devices[place]);
      RequireDevice(*session, devices[place]);
      std::string name = name_;
      if (generation_ > 0) name.append("+").append(std::to_string(generation_));
      if (place > 0) name.append("@").append(std::to_string(place));
      for (const std::int64_t bits : {8, 32}) {
        std::vector<at::Tensor> members;
        for (const Wanted* one : accepted) {
          if (one->parameter.device() == devices[place] && one->bits == bits)
            members.push_back(one->parameter);
        }
        if (!members.empty()) made.push_back(MakeHome(session, name, bits, std::move(members)));
      }
    }
  } catch (...) {
    for (const auto& home : made) (void)ThroughSignals([&] { return home->arena->Drop(); });
    throw;
  }
  for (auto& home : made) {
    for (std::uint32_t i = 0; i < home->parameters.size(); ++i) {
      slots_[home->parameters[i].unsafeGetTensorImpl()] = {home.get(), i};
    }
    homes_.push_back(std::move(home));
  }
  ++generation_;
}

std::unique_ptr<Home> StateArenas::MakeHome(std::shared_ptr<client::Session> session, const std::string& name,
                                            std::int64_t bits, std::vector<at::Tensor> parameters) {
  std::vector<std::uint64_t> elements;
  elements.reserve(parameters.size());
  for (const at::Tensor& parameter : parameters) {
    elements.push_back(static_cast<std::uint64_t>(parameter.numel()));
  }
  client::ArenaOptions options;
  options.rule = rule_;
  options.bits = bits == 8 ? wire::StateBits::k8 : wire::StateBits::k32;
  options.evictable = evictable_;
  options.optimizer = name;
  options.elements = elements;
  options.layout_hash = LayoutHash(rule_, bits, parameters);
  auto home = std::make_unique<Home>();
  home->arena = Take(ThroughSignals([&] { return client::Arena::Create(*session, options); }));
  if (!IsOnGpu(*session)) {
    auto& storages = storages_[session.get()];
    if (storages == nullptr) storages = std::make_unique<SharedStorages>(session);
    home->storages = storages.get();
  }
  home->session = std::move(session);
  home->bits = bits;
  home->elements = std::move(elements);
  home->parameters = std::move(parameters);
  return home;
}

// Two parameters over the same memory would be updated at once, in no order.
void StateArenas::RequireApart(const std::vector<at::Tensor>& fresh, const Describe& describe) const {
  struct Range {
    const char* begin;
    const char* end;
    const at::Tensor* parameter;
  };
  std::vector<Range> ranges;
  const auto add = [&](const at::Tensor& parameter) {
    const char* const begin = static_cast<const char*>(parameter.data_ptr());
    ranges.push_back({begin, begin + parameter.nbytes(), &parameter});
  };
  for (const at::Tensor& parameter : fresh) add(parameter);
  for (const auto& home : homes_) {
    for (const at::Tensor& parameter : home->parameters) add(parameter);
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return std::less<>()(a.begin, b.begin); });
  for (std::size_t i = 1; i < ranges.size(); ++i) {
    if (!std::less<>()(ranges[i].begin, ranges[i - 1].end)) continue;
    const at::Tensor& first = *ranges[i - 1].parameter;
    const at::Tensor& second = *ranges[i].parameter;
    if (first.is_same(second)) {
      Refuse(describe(first) + " was given twice. Hint: name each parameter in one group, once");
    }
    Refuse(describe(first) + " and " + describe(second) +
           " share memory. Hint: tie weights by using one tensor, and pass it once");
  }
}

const Slot* StateArenas::Find(const at::Tensor& parameter) const {
  const auto found = slots_.find(parameter.unsafeGetTensorImpl());
  return found == slots_.end() ? nullptr : &found->second;
}

void StateArenas::Drop() {
  for (const auto& home : homes_) (void)ThroughSignals([&] { return home->arena->Drop(); });
  slots_.clear();
  homes_.clear();
  storages_.clear();
  generation_ = 0;
}

void StateArenas::Place(const Slot& slot, const at::Tensor& parameter, const Describe& describe,
                        client::StepTensor& into) {
  RequireParameter(parameter, describe);
  const Home& home = *slot.home;
  const bool on_gpu = home.storages == nullptr;
  if (parameter.is_cuda() != on_gpu) {
    Refuse(describe(parameter) + " is now on " + parameter.device().str() + "; its states are for " +
           home.session->info().device_uuid +
           ". Hint: move parameters before the first step, or save the optimizer and load it into a new one");
  }
  const std::uint64_t elements = home.elements[slot.tensor];
  if (static_cast<std::uint64_t>(parameter.numel()) != elements) {
    Refuse(describe(parameter) + " was resized; its states were made for " + std::to_string(elements) +
           " elements. Hint: make a new optimizer after resizing parameters");
  }
  into.tensor = slot.tensor;
  into.param_dtype = DTypeOf(parameter);
  if (!on_gpu) {
    into.param_place = home.storages->Locate(parameter);
    if (const std::string reason = home.storages->TakeReason(); !reason.empty() && !warned_) {
      warned_ = true;
      TORCH_WARN(describe(parameter), " stays in private memory because ", reason,
                 ". It, and others like it, are copied to the daemon and back at every step.");
    }
  }
  into.param = parameter.data_ptr();  // sharing may have moved it
}

PagedParamState StateArenas::Read(const Slot& slot) const {
  const Home& home = *slot.home;
  PagedParamState state = EmptyState(home.parameters[slot.tensor], rule_, home.bits);
  const client::StatePlanes planes = PlanesOf(state);
  Check(ThroughSignals([&] { return home.arena->ReadStates(slot.tensor, planes); }));
  return state;
}

void StateArenas::Write(const Slot& slot, const PagedParamState& state, std::uint64_t step) {
  const client::StatePlanes planes = PlanesOf(state);
  Check(ThroughSignals([&] { return slot.home->arena->WriteStates(slot.tensor, step, planes); }));
}

std::vector<std::shared_ptr<client::Session>> StateArenas::Sessions() const {
  std::vector<std::shared_ptr<client::Session>> sessions;
  for (const auto& home : homes_) {
    if (std::find(sessions.begin(), sessions.end(), home->session) == sessions.end()) {
      sessions.push_back(home->session);
    }
  }
  return sessions;
}

}  // namespace bitpager::optim
