// A training job over a raw client: one arena of fp32 tensors with 8-bit states, its buffer, its steps, and
// the comparison with the shadow. One thread.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <vector>

#include "tests/support/raw_client.h"
#include "tests/support/shadow_arena.h"

namespace bitpager::testing {

inline const optim8bit::HyperInput kTestHyper{1e-3, 0.9, 0.99, 1e-8, 0.01};

class RawTrainer {
 public:
  // The session of `client` gets an arena of `elements` in its own buffer.
  RawTrainer(RawClient& client, std::vector<std::uint64_t> elements, wire::Rule rule = wire::Rule::kAdam)
      : client_(client), elements_(std::move(elements)), rule_(rule) {
    const std::uint64_t sum = std::accumulate(elements_.begin(), elements_.end(), std::uint64_t{0});
    const std::uint64_t table = sizeof(wire::GroupRecord) + elements_.size() * sizeof(wire::StepEntry);
    params_at_ = wire::AlignUp(table + elements_.size() * 8, 4096);
    grads_at_ = wire::AlignUp(params_at_ + sum * 4, 4096);
    buffer_ = client.MakeBuffer(grads_at_ + sum * 4);
    std::uint64_t at = params_at_;
    for (std::size_t t = 0; t < elements_.size(); ++t) {
      FillParameter(buffer_.map.At<float>(at), elements_[t], t);
      at += elements_[t] * 4;
    }
  }

  [[nodiscard]] Reply Create(wire::CreateArenaBody body = {}) {
    body.rule = rule_;
    Reply reply = client_.CreateArena(body, elements_, buffer_);
    if (reply.ok()) extent_ = reply.value(0);
    return reply;
  }
  // The record of step `step`, with its gradients and its table; nothing is pushed.
  wire::RequestRecord Prepare(std::uint64_t step) {
    std::uint64_t at = grads_at_;
    for (std::size_t t = 0; t < elements_.size(); ++t) {
      FillGradient(buffer_.map.At<float>(at), elements_[t], t, step);
      at += elements_[t] * 4;
    }
    return Entries(step);
  }
  // As Prepare, on the gradients that are there.
  wire::RequestRecord Entries(std::uint64_t step) {
    auto* group = buffer_.map.At<wire::GroupRecord>(0);
    *group = {kTestHyper.lr, kTestHyper.beta1, kTestHyper.beta2, kTestHyper.eps, kTestHyper.weight_decay};
    auto* entries = buffer_.map.At<wire::StepEntry>(sizeof(wire::GroupRecord));
    std::uint64_t offset = 0;
    for (std::size_t t = 0; t < elements_.size(); ++t) {
      wire::StepEntry entry;
      entry.tensor = static_cast<std::uint32_t>(t);
      entry.step = step;
      entry.param = buffer_.Place(params_at_ + offset);
      entry.grad = buffer_.Place(grads_at_ + offset);
      entries[t] = entry;
      offset += elements_[t] * 4;
    }
    wire::StepBody body;
    body.extent = extent_;
    body.table = buffer_.Place();
    body.groups = 1;
    body.entries = static_cast<std::uint32_t>(elements_.size());
    body.step = step;
    return RawClient::RecordOf(wire::Op::kStep, body);
  }
  // Steps and waits.
  [[nodiscard]] wire::CompletionRecord Step(std::uint64_t step) {
    client_.Push(Prepare(step));
    const auto done = client_.Wait();
    if (done) return *done;
    wire::CompletionRecord none;
    none.code = static_cast<std::uint32_t>(wire::Code::kDaemonLost);
    return none;
  }
  void StepOk(std::uint64_t step) {
    const wire::CompletionRecord done = Step(step);
    ASSERT_EQ(RawClient::CodeOf(done), wire::Code::kOk) << RawClient::TextIn(done);
  }
  // Bit for bit.
  void ExpectParams(const ShadowArena& shadow) const {
    std::uint64_t offset = params_at_;
    for (std::size_t t = 0; t < elements_.size(); ++t) {
      ASSERT_EQ(std::memcmp(buffer_.map.At<float>(offset), shadow.params(t).data(), elements_[t] * 4), 0)
          << "parameters of tensor " << t;
      offset += elements_[t] * 4;
    }
  }
  [[nodiscard]] ShadowArena Shadow() const { return ShadowArena(rule_, elements_, kTestHyper); }
  // The bytes of all parameters, one after the other.
  [[nodiscard]] const float* params() const { return buffer_.map.At<float>(params_at_); }
  void SetParams(const float* from) {
    const std::uint64_t sum = std::accumulate(elements_.begin(), elements_.end(), std::uint64_t{0});
    std::memcpy(buffer_.map.base() + params_at_, from, sum * 4);
  }

  [[nodiscard]] std::uint64_t extent() const { return extent_; }
  [[nodiscard]] const RawBuffer& buffer() const { return buffer_; }
  [[nodiscard]] wire::StepEntry& entry(std::size_t i) const {
    return buffer_.map.At<wire::StepEntry>(sizeof(wire::GroupRecord))[i];
  }
  [[nodiscard]] wire::GroupRecord& group() const { return *buffer_.map.At<wire::GroupRecord>(0); }

 private:
  RawClient& client_;
  std::vector<std::uint64_t> elements_;
  wire::Rule rule_;
  std::uint64_t params_at_ = 0;
  std::uint64_t grads_at_ = 0;
  std::uint64_t extent_ = 0;
  RawBuffer buffer_;
};

}  // namespace bitpager::testing
