// A training job through the client library: fp32 tensors in a shared buffer, 8-bit states, gradients that
// everybody agrees on. One thread.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "client/client.h"
#include "tests/support/shadow_arena.h"

namespace bitpager::testing {

inline constexpr optim8bit::HyperInput kHyper{1e-3, 0.9, 0.99, 1e-8, 0.01};

class Trainer {
 public:
  Trainer(std::shared_ptr<client::Session> session, std::vector<std::uint64_t> elements,
          wire::Rule rule = wire::Rule::kAdam)
      : session_(std::move(session)), elements_(std::move(elements)), rule_(rule) {}

  // Buffer and arena. kContinue: goes on at `step`.
  [[nodiscard]] wire::Status Create(wire::Resume resume = wire::Resume::kFresh, std::uint64_t step = 0) {
    const std::uint64_t sum = std::accumulate(elements_.begin(), elements_.end(), std::uint64_t{0});
    auto buffer = client::Buffer::Create(*session_, sum * 8);
    if (!buffer.ok()) return buffer.status();
    buffer_ = std::move(*buffer);
    grads_at_ = sum * 4;
    std::uint64_t at = 0;
    for (std::size_t t = 0; t < elements_.size(); ++t) {
      FillParameter(Floats(at), elements_[t], t);
      at += elements_[t] * 4;
    }
    client::ArenaOptions options;
    options.rule = rule_;
    options.optimizer = "test";
    options.elements = elements_;
    options.resume = resume;
    options.step = step;
    auto arena = client::Arena::Create(*session_, options);
    if (!arena.ok()) return arena.status();
    arena_ = std::move(*arena);
    return {};
  }
  [[nodiscard]] wire::Status Step(std::uint64_t step) {
    std::vector<client::StepTensor> tensors(elements_.size());
    std::uint64_t at = 0;
    for (std::size_t t = 0; t < elements_.size(); ++t) {
      FillGradient(Floats(grads_at_ + at), elements_[t], t, step);
      tensors[t].tensor = static_cast<std::uint32_t>(t);
      tensors[t].step = step;
      tensors[t].param_place = {buffer_->id(), at};
      tensors[t].grad_place = {buffer_->id(), grads_at_ + at};
      at += elements_[t] * 4;
    }
    const wire::GroupRecord group{kHyper.lr, kHyper.beta1, kHyper.beta2, kHyper.eps, kHyper.weight_decay};
    return arena_->Step(tensors, {&group, 1}, {wire::OnNonFinite::kSkip, step}, &result);
  }
  [[nodiscard]] std::vector<float> Params() const {
    const std::uint64_t sum = std::accumulate(elements_.begin(), elements_.end(), std::uint64_t{0});
    return std::vector<float>(Floats(0), Floats(0) + sum);
  }
  void SetParams(const std::vector<float>& params) {
    std::memcpy(buffer_->data(), params.data(), params.size() * 4);
  }
  // Codes and absmaxes of all states, one after the other.
  [[nodiscard]] wire::Result<std::vector<std::uint8_t>> States() const {
    std::vector<std::uint8_t> all;
    for (std::size_t t = 0; t < elements_.size(); ++t) {
      const std::uint64_t units = optim8bit::UnitsOf(elements_[t]);
      std::vector<std::uint8_t> codes[2] = {std::vector<std::uint8_t>(elements_[t]),
                                            std::vector<std::uint8_t>(elements_[t])};
      std::vector<float> absmax[2] = {std::vector<float>(units), std::vector<float>(units)};
      client::StatePlanes planes;
      for (std::size_t k = 0; k < wire::StatesOf(rule_); ++k) {
        planes.planes[k] = codes[k].data();
        planes.absmax[k] = absmax[k].data();
      }
      const wire::Status read = arena_->ReadStates(static_cast<std::uint32_t>(t), planes);
      if (!read.ok()) return read;
      for (std::size_t k = 0; k < wire::StatesOf(rule_); ++k) {
        all.insert(all.end(), codes[k].begin(), codes[k].end());
        const auto* bytes = reinterpret_cast<const std::uint8_t*>(absmax[k].data());
        all.insert(all.end(), bytes, bytes + units * 4);
      }
    }
    return all;
  }
  [[nodiscard]] const client::Arena& arena() const { return *arena_; }
  [[nodiscard]] client::Session& session() const { return *session_; }
  client::StepResult result;  // of the last step

 private:
  [[nodiscard]] float* Floats(std::uint64_t offset) const {
    return reinterpret_cast<float*>(buffer_->data() + offset);
  }

  std::shared_ptr<client::Session> session_;
  std::vector<std::uint64_t> elements_;
  wire::Rule rule_;
  std::unique_ptr<client::Buffer> buffer_;
  std::unique_ptr<client::Arena> arena_;
  std::uint64_t grads_at_ = 0;
};

}  // namespace bitpager::testing
