// Arenas, weights, leases and buffers through the C ABI, against a scripted daemon: what lies in the slab,
// what comes back, what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <cstddef>
#include <cstring>
#include <limits>
#include <numeric>
#include <thread>
#include <vector>

#include "client/bitpager.h"
#include "client/wire/text.h"
#include "quant/weight_layout.h"
#include "tests/client/fake_daemon.h"

namespace bitpager::client {
namespace {

using testing::FakeDaemon;
using ::testing::HasSubstr;
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

// The tensors of one step over `params` and `grads`.
std::vector<bp_step_tensor> Tensors(std::vector<std::vector<float>>& params,
                                    const std::vector<std::vector<float>>& grads) {
  std::vector<bp_step_tensor> tensors(params.size());
  for (std::size_t i = 0; i < params.size(); ++i) {
    tensors[i].tensor = static_cast<std::uint32_t>(i);
    tensors[i].group = static_cast<std::uint32_t>(i % 2);
    tensors[i].step = 1;
    tensors[i].param = params[i].data();
    tensors[i].grad = grads[i].data();
  }
  return tensors;
}

constexpr bp_group kGroups[2] = {{0.5, 0.9, 0.999, 1e-8, 0}, {0.25, 0.9, 0.999, 1e-8, 0}};
constexpr bp_step_options kStepOptions = {sizeof(bp_step_options), 0, 42, 0, 0};

TEST_F(Handles, UsageOfOldAndNewCallers) {
  bp_usage usage{};
  usage.struct_bytes = sizeof(usage);
  ASSERT_EQ(bp_get_usage(session_, &usage), BP_OK) << bp_last_error();
  EXPECT_EQ(usage.resident_bytes, 1000U);
  EXPECT_EQ(usage.job_peak_host_bytes, 1023U);
  usage = {};
  usage.struct_bytes = offsetof(bp_usage, peak_resident_bytes);  // a caller of before there were peaks
  ASSERT_EQ(bp_get_usage(session_, &usage), BP_OK) << bp_last_error();
  EXPECT_EQ(usage.shared_bytes, 1019U);
  EXPECT_EQ(usage.peak_resident_bytes, 0U);
  usage.struct_bytes = offsetof(bp_usage, disk_bytes);
  EXPECT_EQ(bp_get_usage(session_, &usage), BP_OK) << bp_last_error();
  usage.struct_bytes = offsetof(bp_usage, peak_host_bytes);
  EXPECT_EQ(bp_get_usage(session_, &usage), BP_INVALID_ARGUMENT) << "no caller's";
  EXPECT_EQ(bp_reset_peaks(session_), BP_OK) << bp_last_error();
  EXPECT_EQ(bp_reset_peaks(nullptr), BP_INVALID_ARGUMENT);
}

TEST_F(Handles, StepTakesCallersOfBeforeStepsHadParts) {
  const std::uint64_t arena = MakeArena();
  const bp_step_tensor tensor{};  // at no address
  bp_step_options options = kStepOptions;
  options.struct_bytes = offsetof(bp_step_options, continues);
  EXPECT_EQ(bp_step(session_, arena, &tensor, 1, kGroups, 1, &options, nullptr), BP_INVALID_ARGUMENT);
  EXPECT_THAT(bp_last_error(), ::testing::Not(::testing::HasSubstr("struct_bytes")));
  options.struct_bytes = offsetof(bp_step_options, step);
  EXPECT_EQ(bp_step(session_, arena, &tensor, 1, kGroups, 1, &options, nullptr), BP_INVALID_ARGUMENT);
  EXPECT_THAT(bp_last_error(), ::testing::HasSubstr("struct_bytes"));
}

TEST_F(Handles, StepOnAStreamTakesOldAndNewCallers) {
  const std::uint64_t arena = MakeArena();
  const bp_step_tensor tensor{};
  bp_stream_step_options options{};
  const auto step = [&] {
    return bp_step_async(session_, arena, &tensor, 1, kGroups, 1, &options, nullptr, nullptr);
  };
  options.step = 1;
  for (const std::size_t bytes : {sizeof(options), offsetof(bp_stream_step_options, follows)}) {
    options.struct_bytes = static_cast<std::uint32_t>(bytes);
    EXPECT_EQ(step(), BP_UNSUPPORTED) << bp_last_error() << ": this device has no streams";
  }
  options.struct_bytes = offsetof(bp_stream_step_options, params);
  EXPECT_EQ(step(), BP_INVALID_ARGUMENT) << "no caller's";
}

TEST_F(Handles, StepStagesParametersAndGradientsAndBringsParametersBack) {
  const std::uint64_t arena = MakeArena();
  std::vector<std::vector<float>> params;
  std::vector<std::vector<float>> grads;
  for (const std::uint64_t n : elements_) {
    params.emplace_back(n, 10.0F);
    grads.emplace_back(n);
    std::iota(grads.back().begin(), grads.back().end(), 1.0F);
  }
  const std::vector<bp_step_tensor> tensors = Tensors(params, grads);
  bp_step_result result{};
  result.struct_bytes = sizeof(result);
  for (int round = 1; round <= 2; ++round) {
    ASSERT_EQ(bp_step(session_, arena, tensors.data(), 3, kGroups, 2, &kStepOptions, &result), BP_OK)
        << bp_last_error();
    for (std::size_t t = 0; t < 3; ++t) {
      const float lr = t % 2 == 0 ? 0.5F : 0.25F;
      for (std::size_t e = 0; e < elements_[t]; ++e) {
        float expected = 10.0F;
        for (int r = 0; r < round; ++r) expected -= lr * grads[t][e];
        ASSERT_EQ(params[t][e], expected) << t << " " << e;
      }
    }
  }
  EXPECT_EQ(step_, 42U);
  EXPECT_EQ(result.loaded_pages, 22U);
  EXPECT_EQ(result.first_nonfinite_tensor, std::numeric_limits<std::uint32_t>::max());
  EXPECT_EQ(daemon_->buffers(), 1U) << "one slab, reused";
}

TEST_F(Handles, StepWithNonFiniteBlocksStillUpdatesTheOthers) {
  const std::uint64_t arena = MakeArena();
  std::vector<std::vector<float>> params = {std::vector<float>(300, 1.0F)};
  const std::vector<std::vector<float>> grads = {std::vector<float>(300, 2.0F)};
  nonfinite_ = 4;
  bp_step_result result{};
  result.struct_bytes = sizeof(result);
  const std::vector<bp_step_tensor> tensors = Tensors(params, grads);
  EXPECT_EQ(bp_step(session_, arena, tensors.data(), 1, kGroups, 2, &kStepOptions, &result), BP_NON_FINITE);
  EXPECT_STREQ(bp_last_error(), "tensor 1 held NaN");
  EXPECT_EQ(params[0][0], 0.0F);
  EXPECT_EQ(result.nonfinite_blocks, 4U);
  EXPECT_EQ(result.first_nonfinite_tensor, 1U);
}

TEST_F(Handles, StepRefusesWhatIsWrongBeforeAnythingIsSent) {
  const std::uint64_t arena = MakeArena();
  std::vector<std::vector<float>> params = {std::vector<float>(300), std::vector<float>(5)};
  const std::vector<std::vector<float>> grads = params;
  const std::uint64_t before = daemon_->requests();
  const auto refused = [&](auto change, const char* text) {
    std::vector<bp_step_tensor> tensors = Tensors(params, grads);
    change(tensors);
    EXPECT_EQ(bp_step(session_, arena, tensors.data(), tensors.size(), kGroups, 2, &kStepOptions, nullptr),
              BP_INVALID_ARGUMENT);
    EXPECT_THAT(bp_last_error(), HasSubstr(text));
  };
  refused([](auto& t) { std::swap(t[0], t[1]); }, "does not ascend");
  refused([](auto& t) { t[1].tensor = 0; }, "does not ascend");
  refused([](auto& t) { t[1].tensor = 3; }, "past the arena's 3 tensors");
  refused([](auto& t) { t[0].group = 2; }, "group 2 does not exist");
  refused([](auto& t) { t[0].step = 0; }, "counts from 1");
  refused([](auto& t) { t[0].param = nullptr; }, "param is null");
  refused([](auto& t) { t[0].grad = nullptr; }, "grad is null");
  refused([](auto& t) { t[0].grad_dtype = BP_U8; }, "fp32, fp16 or bf16");
  refused([](auto& t) { t[0].param_dtype = 9; }, "no bp_dtype");
  refused([](auto& t) { t.clear(); }, "needs tensors");
  std::vector<bp_step_tensor> tensors = Tensors(params, grads);
  bp_step_options options = kStepOptions;
  options.struct_bytes = 4;
  EXPECT_EQ(bp_step(session_, arena, tensors.data(), 2, kGroups, 2, &options, nullptr), BP_INVALID_ARGUMENT);
  EXPECT_EQ(bp_step(session_, arena + 1, tensors.data(), 2, kGroups, 2, &kStepOptions, nullptr),
            BP_NOT_FOUND);
  EXPECT_EQ(bp_step(nullptr, arena, tensors.data(), 2, kGroups, 2, &kStepOptions, nullptr),
            BP_INVALID_ARGUMENT);
  EXPECT_EQ(daemon_->requests(), before);
}

TEST_F(Handles, StatesGoInAndComeBack) {
  const std::uint64_t arena = MakeArena();
  std::vector<unsigned char> in[2] = {std::vector<unsigned char>(300, 3), std::vector<unsigned char>(300, 4)};
  std::vector<unsigned char> out[2] = {std::vector<unsigned char>(300), std::vector<unsigned char>(300)};
  float absmax[2][2] = {};
  float* const absmaxes[2] = {absmax[0], absmax[1]};
  void* const ins[2] = {in[0].data(), in[1].data()};
  void* const outs[2] = {out[0].data(), out[1].data()};
  ASSERT_EQ(bp_arena_states(session_, arena, 0, 1, 9, ins, absmaxes), BP_OK) << bp_last_error();
  ASSERT_EQ(bp_arena_states(session_, arena, 0, 0, 0, outs, absmaxes), BP_OK) << bp_last_error();
  EXPECT_EQ(in[0], out[0]);
  EXPECT_EQ(in[1], out[1]);
  EXPECT_EQ(bp_arena_states(session_, arena, 3, 0, 0, outs, absmaxes), BP_OUT_OF_RANGE);
  EXPECT_EQ(bp_arena_states(session_, arena, 0, 0, 0, outs, nullptr), BP_INVALID_ARGUMENT);
}

TEST_F(Handles, DequantizeByRequestComesInPieces) {
  constexpr std::uint64_t kElements = (8ULL << 20) + 1000;
  const std::uint64_t weight = MakeWeight(kElements);
  std::vector<float> out(kElements);
  int used = -1;
  ASSERT_EQ(Dequantize(weight, out, BP_PATH_REQUEST, &used), BP_OK) << bp_last_error();
  EXPECT_EQ(used, BP_PATH_REQUEST);
  for (std::uint64_t i = 0; i < kElements; i += 999) ASSERT_EQ(out[i], static_cast<float>(i));
  EXPECT_EQ(out.back(), static_cast<float>(kElements - 1));
}

TEST_F(Handles, ALeaseIsAskedOnceReadInPlaceAndForgottenWhenRevoked) {
  const std::uint64_t weight = MakeWeight(1000);
  std::vector<float> out(1000);
  int used = -1;
  for (int i = 0; i < 5; ++i)
    ASSERT_EQ(Dequantize(weight, out, BP_PATH_AUTO, &used), BP_OK) << bp_last_error();
  EXPECT_EQ(used, BP_PATH_LEASE);
  for (std::size_t i = 0; i < 1000; ++i) ASSERT_EQ(out[i], static_cast<float>(i / 64 + 1));
  EXPECT_EQ(leases_asked_, 1);
  EXPECT_EQ(domains_mapped_, 1);
  wire::LeaseSlot& slot = daemon_->view().leases()[5];
  EXPECT_EQ(slot.in_use.load(), 0U);
  slot.revoke.store(generation_);
  ASSERT_EQ(Dequantize(weight, out, BP_PATH_LEASE), BP_OK) << bp_last_error();
  EXPECT_EQ(leases_asked_, 2);
  EXPECT_EQ(domains_mapped_, 1) << "the mapping is kept";
}

TEST_F(Handles, ARefusedLeaseFallsBackOnlyWhenLeftToChoose) {
  const std::uint64_t weight = MakeWeight(1000);
  std::vector<float> out(1000);
  int used = -1;
  refuse_lease_ = Code::kNotResident;
  EXPECT_EQ(Dequantize(weight, out, BP_PATH_LEASE, &used), BP_NOT_RESIDENT);
  refuse_lease_ = Code::kFull;
  EXPECT_EQ(Dequantize(weight, out, BP_PATH_LEASE, &used), BP_FULL);
  EXPECT_EQ(Dequantize(weight, out, BP_PATH_AUTO, &used), BP_OK);
  EXPECT_EQ(used, BP_PATH_REQUEST);
  EXPECT_EQ(out[999], 999.0F);
  const int asked = leases_asked_;
  for (int i = 0; i < 10; ++i) ASSERT_EQ(Dequantize(weight, out, BP_PATH_AUTO), BP_OK);
  EXPECT_EQ(leases_asked_, asked) << "a refusal is not asked for again at once";
}

TEST_F(Handles, AnImpossibleLeaseIsRefused) {
  const std::uint64_t weight = MakeWeight(1000);
  std::vector<float> out(1000);
  frame_offset_ = domain_.bytes - page_bytes_ + 1;
  EXPECT_EQ(Dequantize(weight, out, BP_PATH_LEASE), BP_PROTOCOL);
  frame_offset_ = ~0ULL;
  EXPECT_EQ(Dequantize(weight, out, BP_PATH_AUTO), BP_PROTOCOL);
  frame_offset_ = page_bytes_;
  first_frame_ = wire::kLeaseFrames;
  EXPECT_EQ(Dequantize(weight, out, BP_PATH_LEASE), BP_PROTOCOL);
  first_frame_ = 7;
  lease_extent_shift_ = 1;
  EXPECT_EQ(Dequantize(weight, out, BP_PATH_LEASE), BP_PROTOCOL);
  lease_extent_shift_ = 0;
  EXPECT_EQ(Dequantize(weight, out, BP_PATH_LEASE), BP_OK) << bp_last_error();
}

TEST_F(Handles, BuffersAreMappedAndReleased) {
  std::uint64_t buffer = 0;
  void* data = nullptr;
  ASSERT_EQ(bp_buffer_create(session_, 10'000, &buffer, &data), BP_OK) << bp_last_error();
  std::memset(data, 7, 10'000);
  EXPECT_EQ(bp_buffer_release(session_, buffer), BP_OK);
  EXPECT_EQ(bp_buffer_release(session_, buffer), BP_NOT_FOUND);
  EXPECT_EQ(bp_buffer_create(session_, 0, &buffer, &data), BP_INVALID_ARGUMENT);
  EXPECT_EQ(bp_buffer_register(session_, -1, 100, &buffer), BP_INVALID_ARGUMENT);
  const Memory file(8192, false);
  EXPECT_EQ(bp_buffer_register(session_, file.fd.get(), 8193, &buffer), BP_OUT_OF_RANGE);
  EXPECT_THAT(bp_last_error(), HasSubstr("the file has 8192 bytes, 8193 are to be registered"));
  EXPECT_EQ(bp_buffer_register(session_, file.fd.get(), 8192, &buffer), BP_OK) << bp_last_error();
}

TEST_F(Handles, CallsOfOtherThreadsEndWithTheSession) {
  std::atomic<int> started{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      int code = BP_OK;
      while (code == BP_OK || code == BP_NOT_FOUND) {
        code = i % 2 == 0 ? bp_noop(session_) : bp_weight_drop(session_, 4'000'000'000);
        ++started;
      }
    });
  }
  while (started < 40) std::this_thread::yield();
  bp_disconnect(session_);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(bp_noop(session_), BP_INVALID_ARGUMENT);
  EXPECT_STREQ(bp_last_error(), "this session was disconnected");
  EXPECT_EQ(bp_arena_drop(session_, 1), BP_INVALID_ARGUMENT);
  std::uint64_t buffer = 0;
  void* at = nullptr;
  EXPECT_EQ(bp_buffer_create(session_, 4096, &buffer, &at), BP_INVALID_ARGUMENT);
  bp_disconnect(session_);
}

TEST(CApi, RefusesNullsAndWrongSizes) {
  EXPECT_EQ(bp_connect(nullptr, nullptr), BP_INVALID_ARGUMENT);
  bp_session* session = nullptr;
  bp_connect_options options{};
  EXPECT_EQ(bp_connect(&options, &session), BP_INVALID_ARGUMENT);
  EXPECT_THAT(bp_last_error(), HasSubstr("struct_bytes 0; set it to sizeof(bp_connect_options)"));
  bp_disconnect(nullptr);
  EXPECT_EQ(bp_noop(nullptr), BP_INVALID_ARGUMENT);
  EXPECT_EQ(bp_quant_map(5, nullptr), BP_INVALID_ARGUMENT);
  EXPECT_EQ(bp_dynamic_map(1, nullptr), BP_INVALID_ARGUMENT);
}

TEST(CApi, LongerStructsPassOnlyWhenTheirNewFieldsAreZero) {
  struct Longer {
    bp_connect_options known;
    std::uint64_t later;
  } longer{};
  longer.known.struct_bytes = sizeof(longer);
  longer.known.socket = "/nonexistent";
  bp_session* session = nullptr;
  EXPECT_EQ(bp_connect(&longer.known, &session), BP_UNREACHABLE);
  longer.later = 1;
  EXPECT_EQ(bp_connect(&longer.known, &session), BP_UNSUPPORTED);
}

TEST(CApi, QuantizesAndDequantizesInProcess) {
  std::vector<float> in(1000);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i % 17) - 8.0F;
  std::vector<unsigned char> packed(500);
  std::vector<float> absmax(16);
  std::vector<float> out(1000);
  ASSERT_EQ(bp_quantize_4bit(BP_NF4, BP_F32, in.data(), 1000, 64, packed.data(), absmax.data(), 0), BP_OK);
  ASSERT_EQ(bp_dequantize_4bit(BP_NF4, BP_F32, packed.data(), absmax.data(), 1000, 64, out.data(), 0), BP_OK);
  for (std::size_t i = 0; i < in.size(); ++i) EXPECT_NEAR(out[i], in[i], 1.3F);
  EXPECT_EQ(absmax[0], 8.0F);
  EXPECT_EQ(bp_quantize_4bit(BP_NF4, BP_F32, in.data(), 1000, 63, packed.data(), absmax.data(), 0),
            BP_INVALID_ARGUMENT);
  EXPECT_EQ(bp_quantize_4bit(7, BP_F32, in.data(), 1000, 64, packed.data(), absmax.data(), 0),
            BP_INVALID_ARGUMENT);
  float map[256];
  ASSERT_EQ(bp_dynamic_map(1, map), BP_OK);
  std::vector<unsigned char> codes(1000);
  ASSERT_EQ(bp_quantize_blockwise(map, BP_F32, in.data(), 1000, 256, codes.data(), absmax.data(), 1), BP_OK);
  ASSERT_EQ(bp_dequantize_blockwise(map, BP_F32, codes.data(), absmax.data(), 1000, 256, out.data(), 1),
            BP_OK);
  for (std::size_t i = 0; i < in.size(); ++i) EXPECT_NEAR(out[i], in[i], 0.1F);
}

TEST(CApi, NamesVersionsAndCodes) {
  EXPECT_EQ(bp_abi_version(), BP_ABI_VERSION);
  EXPECT_STREQ(bp_version(), "0.1.0");
  EXPECT_STREQ(bp_code_name(BP_QUOTA_EXCEEDED), "quota_exceeded");
  EXPECT_STREQ(bp_code_name(12345), "unknown");
}

}  // namespace
}  // namespace bitpager::client
