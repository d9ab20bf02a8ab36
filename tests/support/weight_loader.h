// A raw client that fills, reads, leases and drops quantized weights of one size. In-process daemons; one
// thread.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/support/in_process_daemon.h"
#include "tests/support/shadow_arena.h"

namespace bitpager::testing {

inline constexpr std::uint64_t kLoaderElements = 60'000;  // three pages

// A client with room for one tensor in and one out.
struct Loader {
  Loader(InProcessDaemon& daemon, const std::string& job, std::uint32_t rank = 0, std::uint32_t uid = 1000)
      : client(daemon.Open(job, rank, {uid, uid, 1})), memory(client->MakeBuffer(kLoaderElements * 8)) {}

  static wire::CreateWeightBody Plain() {
    wire::CreateWeightBody body;
    body.elements = kLoaderElements;
    return body;
  }
  std::uint64_t Create(const wire::CreateWeightBody& body = Plain()) {
    const Reply reply = client->Ask(wire::MessageType::kCreateWeight, body);
    EXPECT_TRUE(reply.ok()) << reply.text();
    return reply.value(0);
  }
  void Write(std::uint64_t seed) const { FillGradient(memory.map.At<float>(0), kLoaderElements, seed, 1); }
  wire::Code Fill(std::uint64_t weight) {
    wire::QuantizeBody body;
    body.extent = weight;
    body.in = memory.Place();
    const auto done = client->Run(wire::Op::kQuantize, body);
    said = RawClient::TextIn(done);
    return RawClient::CodeOf(done);
  }
  std::uint64_t Load(std::uint64_t seed, const wire::CreateWeightBody& body = Plain()) {
    const std::uint64_t weight = Create(body);
    Write(seed);
    EXPECT_EQ(Fill(weight), wire::Code::kOk) << said;
    return weight;
  }
  std::vector<float> Read(std::uint64_t weight, std::uint64_t elements = kLoaderElements) {
    wire::DequantizeBody body;
    body.extent = weight;
    body.out = memory.Place(kLoaderElements * 4);
    body.elements = elements;
    const auto done = client->Run(wire::Op::kDequantize, body);
    EXPECT_EQ(RawClient::CodeOf(done), wire::Code::kOk) << RawClient::TextIn(done);
    const float* const at = memory.map.At<float>(kLoaderElements * 4);
    return {at, at + elements};
  }
  void Drop(std::uint64_t weight) {
    EXPECT_TRUE(client->Ask(wire::MessageType::kDropExtent, wire::DropExtentBody{weight}).ok());
  }
  wire::CompletionRecord Lease(std::uint64_t weight) {
    return client->Run(wire::Op::kLease, wire::LeaseBody{weight});
  }

  std::unique_ptr<RawClient> client;
  RawBuffer memory;
  std::string said;
};

}  // namespace bitpager::testing
