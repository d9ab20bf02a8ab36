// What tests of the C ABI's handles share: a session with a scripted daemon that steps arenas, and decodes
// and leases weights.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "client/bitpager.h"
#include "client/wire/text.h"
#include "quant/weight_layout.h"
#include "tests/client/fake_daemon.h"

namespace bitpager::client {

using testing::FakeDaemon;
using testing::Memory;
using testing::TemporaryPath;
using wire::Code;
using Then = FakeDaemon::Then;

template <typename Body>
Body BodyOf(const wire::RequestRecord& record) {
  Body body;
  std::memcpy(&body, record.body, sizeof(body));
  return body;
}

// A session over the C ABI with a daemon that steps p -= lr * g, and a weight whose value i is i.
class Handles : public ::testing::Test {
 protected:
  Handles() {
    FakeDaemon::Script script;
    script.on_request = [this](FakeDaemon& d, const wire::RequestRecord& r, wire::CompletionRecord& c) {
      return OnRequest(d, r, c);
    };
    script.on_message = [this](FakeDaemon& d, const wire::Packet& p) { return OnMessage(d, p); };
    daemon_ = std::make_unique<FakeDaemon>(TemporaryPath("sock"), std::move(script));
    bp_connect_options options{};
    options.struct_bytes = sizeof(options);
    options.socket = daemon_->path().c_str();
    options.job = "test";
    options.linger_ms = -1;
    options.threads = 3;
    EXPECT_EQ(bp_connect(&options, &session_), BP_OK) << bp_last_error();
  }
  ~Handles() override { bp_disconnect(session_); }

  Then OnRequest(FakeDaemon& d, const wire::RequestRecord& record, wire::CompletionRecord& done) {
    if (record.op == wire::Op::kStep) Step(d, BodyOf<wire::StepBody>(record), done);
    if (record.op == wire::Op::kMoveStates) MoveStates(d, BodyOf<wire::StatesBody>(record));
    if (record.op == wire::Op::kDequantize) Dequantize(d, BodyOf<wire::DequantizeBody>(record));
    if (record.op == wire::Op::kLease) Grant(d, BodyOf<wire::LeaseBody>(record), done);
    return Then::kComplete;
  }
  void Step(FakeDaemon& d, const wire::StepBody& body, wire::CompletionRecord& done) {
    const auto* groups = reinterpret_cast<const wire::GroupRecord*>(d.At(body.table));
    const auto* entries = reinterpret_cast<const wire::StepEntry*>(groups + body.groups);
    for (std::uint32_t i = 0; i < body.entries; ++i) {
      auto* param = reinterpret_cast<float*>(d.At(entries[i].param));
      const auto* grad = reinterpret_cast<const float*>(d.At(entries[i].grad));
      const float lr = static_cast<float>(groups[entries[i].group].lr);
      for (std::uint64_t e = 0; e < elements_[entries[i].tensor]; ++e) param[e] -= lr * grad[e];
    }
    done.values[0] = nonfinite_;
    done.values[1] = nonfinite_ == 0 ? ~0ULL : 1;
    done.values[2] = 22;
    done.values[6] = 9000;
    if (nonfinite_ != 0) {
      done.code = static_cast<std::uint32_t>(Code::kNonFinite);
      wire::CopyText(done.message, "tensor 1 held NaN");
    }
    step_ = body.step;
  }
  void MoveStates(FakeDaemon& d, const wire::StatesBody& body) {
    const std::uint64_t n = elements_[body.tensor];
    for (int k = 0; k < 2; ++k) {
      if (body.into_pages != 0) {
        codes_[k].assign(d.At(body.planes[k]), d.At(body.planes[k]) + n);
      } else {
        std::memcpy(d.At(body.planes[k]), codes_[k].data(), n);
      }
    }
  }
  void Dequantize(FakeDaemon& d, const wire::DequantizeBody& body) {
    auto* out = reinterpret_cast<float*>(d.At(body.out));
    for (std::uint64_t i = 0; i < body.elements; ++i) out[i] = static_cast<float>(body.first_element + i);
  }

  // One page of NF4 with block 64, in a "share domain": every code 15, absmax of block b is b + 1.
  void Grant(FakeDaemon& d, const wire::LeaseBody& body, wire::CompletionRecord& done) {
    ++leases_asked_;
    if (refuse_lease_ != Code::kOk) {
      done.code = static_cast<std::uint32_t>(refuse_lease_.load());
      return;
    }
    const auto layout = *quant::MakeWeightLayout(64, false, page_bytes_);
    std::byte* page = domain_.base + page_bytes_;
    std::memset(page, 0xFF, layout.absmax_offset);
    for (std::uint32_t b = 0; b < layout.blocks_per_page; ++b) {
      const float absmax = static_cast<float>(b + 1);
      std::memcpy(page + layout.absmax_offset + b * sizeof(float), &absmax, sizeof(absmax));
    }
    wire::LeaseSlot& slot = d.view().leases()[5];
    slot.extent = body.extent + lease_extent_shift_;
    slot.first_frame = first_frame_;
    slot.frames = 1;
    d.view().lease_frames()[7] = {3, frame_offset_};
    slot.generation.store(++generation_);
    done.values[0] = 5;
    done.values[1] = generation_;
  }
  bool OnMessage(FakeDaemon& d, const wire::Packet& packet) {
    wire::MapDomainBody body;
    if (packet.bytes < sizeof(wire::MessageHeader) || packet.header().type != wire::MessageType::kMapDomain ||
        !wire::ReadBody(packet, body)) {
      return false;
    }
    ++domains_mapped_;
    wire::ReplyBody reply;
    reply.values[0] = domain_.bytes;
    const int fd = domain_.fd.get();
    d.Reply(packet, reply, {&fd, 1});
    return true;
  }

  std::uint64_t MakeArena() {
    bp_arena_options options{};
    options.struct_bytes = sizeof(options);
    options.bits = 8;
    options.optimizer = "adam";
    options.elements = elements_.data();
    options.tensors = elements_.size();
    std::uint64_t arena = 0;
    bp_arena_info info{};
    info.struct_bytes = sizeof(info);
    EXPECT_EQ(bp_arena_create(session_, &options, &arena, &info), BP_OK) << bp_last_error();
    EXPECT_EQ(info.pages, 3U);
    EXPECT_EQ(info.units, 5U);
    EXPECT_EQ(info.step, 7U);
    EXPECT_EQ(info.units_per_page, 9U);
    return arena;
  }
  std::uint64_t MakeWeight(std::uint64_t elements) {
    bp_weight_options options{};
    options.struct_bytes = sizeof(options);
    options.blocksize = 64;
    options.elements = elements;
    options.name = "w";
    std::uint64_t weight = 0;
    EXPECT_EQ(bp_weight_create(session_, &options, &weight), BP_OK) << bp_last_error();
    return weight;
  }
  int Dequantize(std::uint64_t weight, std::vector<float>& out, int path, int* used = nullptr) {
    return bp_weight_dequantize(session_, weight, BP_F32, out.data(), 0, 0, path, used);
  }

  const std::uint64_t page_bytes_ = 64U << 10;
  std::vector<std::uint64_t> elements_ = {300, 5, 1 << 20};
  std::vector<std::byte> codes_[2];
  // Written by one of the test and the script, read by the other: their order passes through two mappings of
  // one memory, which the thread sanitizer cannot see.
  std::atomic<std::uint64_t> nonfinite_{0};
  std::atomic<std::uint64_t> step_{0};
  std::atomic<Code> refuse_lease_{Code::kOk};
  std::atomic<int> leases_asked_{0};
  std::atomic<int> domains_mapped_{0};
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<std::uint64_t> first_frame_{7};
  std::atomic<std::uint64_t> frame_offset_{64U << 10};
  std::atomic<std::uint64_t> lease_extent_shift_{0};
  Memory domain_{4 * (64U << 10), true};
  std::unique_ptr<FakeDaemon> daemon_;
  bp_session* session_ = nullptr;
};

}  // namespace bitpager::client
