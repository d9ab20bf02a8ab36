// Arenas, buffers and usage through the C ABI, against a scripted daemon: what lies in the slab, what comes
// back, what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstring>
#include <limits>
#include <numeric>
#include <thread>
#include <vector>

#include "tests/client/handles_fixture.h"

namespace bitpager::client {
namespace {

using ::testing::HasSubstr;

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
  EXPECT_EQ(result.launch_ns, 9000U);
  EXPECT_EQ(result.first_nonfinite_tensor, std::numeric_limits<std::uint32_t>::max());
  EXPECT_EQ(daemon_->buffers(), 1U) << "one slab, reused";
  result = {};
  result.struct_bytes = offsetof(bp_step_result, launch_ns);  // a caller of before there was one
  ASSERT_EQ(bp_step(session_, arena, tensors.data(), 3, kGroups, 2, &kStepOptions, &result), BP_OK)
      << bp_last_error();
  EXPECT_EQ(result.loaded_pages, 22U);
  EXPECT_EQ(result.launch_ns, 0U);
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

}  // namespace
}  // namespace bitpager::client
