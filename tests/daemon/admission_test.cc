#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/support/in_process_daemon.h"
#include "tests/support/raw_trainer.h"

namespace bitpager::testing {
namespace {

using ::testing::HasSubstr;
using wire::Code;
using wire::Op;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// One session with an arena of three tensors and a filled weight; each test spoils one field of a request
// that is valid otherwise.
class Admission : public ::testing::Test {
 protected:
  Admission() : client_(daemon_.Open("job")), trainer_(*client_, {5'000, 256, 700}) {
    EXPECT_TRUE(trainer_.Create().ok());
    other_ = daemon_.Open("job", 1);
    stranger_ = daemon_.Open("other");
    memory_ = client_->MakeBuffer(1U << 20);
    read_only_fd_ = MakeMemory(1U << 20);
    const Reply registered = client_->Register(read_only_fd_.get(), 1U << 20, false);
    EXPECT_TRUE(registered.ok());
    read_only_.id = registered.value(0);
    weight_ = MakeWeight(*client_, false);
    nested_ = MakeWeight(*client_, true);
    Fill(weight_);
    Fill(nested_);
  }
  ~Admission() override {
    // Whatever was refused: the session lives, and a valid step gives what it must.
    ShadowArena shadow = trainer_.Shadow();
    trainer_.StepOk(1);
    shadow.Step(1);
    trainer_.ExpectParams(shadow);
    daemon_.CheckInvariants();
  }

  static constexpr std::uint64_t kWeightElements = 40'000;
  std::uint64_t MakeWeight(RawClient& client, bool nested) {
    wire::CreateWeightBody body;
    wire::CopyText(body.name, nested ? "nested" : "plain");
    body.elements = kWeightElements;
    body.nested = nested ? 1 : 0;
    const Reply reply = client.Ask(wire::MessageType::kCreateWeight, body);
    EXPECT_TRUE(reply.ok()) << reply.text();
    return reply.value(0);
  }
  void Fill(std::uint64_t extent) {
    wire::QuantizeBody body;
    body.extent = extent;
    body.in = memory_.Place();
    FillGradient(memory_.map.At<float>(0), kWeightElements, 3, 3);
    EXPECT_EQ(RawClient::CodeOf(client_->Run(Op::kQuantize, body)), Code::kOk);
  }
  template <typename Body>
  void Expect(Code code, Op op, const Body& body, const std::string& part = "") {
    const wire::CompletionRecord done = client_->Run(op, body);
    EXPECT_EQ(RawClient::CodeOf(done), code) << RawClient::TextIn(done);
    EXPECT_THAT(RawClient::TextIn(done), HasSubstr(part));
  }
  // A valid step, spoiled by `spoil`.
  template <typename Spoil>
  void ExpectStep(Code code, Spoil spoil, const std::string& part = "") {
    wire::RequestRecord record = trainer_.Prepare(1);
    wire::StepBody body;
    std::memcpy(&body, record.body, sizeof(body));
    spoil(body);
    Expect(code, Op::kStep, body, part);
  }

  InProcessDaemon daemon_;
  std::unique_ptr<RawClient> client_, other_, stranger_;
  RawTrainer trainer_;
  RawBuffer memory_, read_only_;
  wire::UniqueFd read_only_fd_;
  std::uint64_t weight_ = 0, nested_ = 0;
};

TEST_F(Admission, StepChecksItsExtent) {
  ExpectStep(Code::kNotFound, [](auto& b) { b.extent = 0; });
  ExpectStep(Code::kNotFound, [](auto& b) { b.extent = ~0ULL; });
  ExpectStep(
      Code::kInvalidArgument, [&](auto& b) { b.extent = weight_; }, "quantized weight");
  RawTrainer theirs(*other_, {5'000, 256, 700});
  ASSERT_TRUE(theirs.Create().ok());
  ExpectStep(
      Code::kNotFound, [&](auto& b) { b.extent = theirs.extent(); }, "another session");
  RawTrainer foreign(*stranger_, {5'000, 256, 700});
  ASSERT_TRUE(foreign.Create().ok());
  ExpectStep(Code::kNotFound, [&](auto& b) { b.extent = foreign.extent(); });
}

TEST_F(Admission, StepChecksItsTable) {
  ExpectStep(
      Code::kNotFound, [](auto& b) { b.table.buffer = 77; }, "step table");
  ExpectStep(Code::kNotFound, [](auto& b) { b.table.buffer = 0; });
  ExpectStep(
      Code::kInvalidArgument, [](auto& b) { b.table.offset = 4; }, "multiple of 8");
  ExpectStep(Code::kOutOfRange, [&](auto& b) { b.table.offset = trainer_.buffer().map.bytes() - 8; });
  ExpectStep(Code::kOutOfRange, [](auto& b) { b.table.offset = ~0ULL; });
  ExpectStep(Code::kOutOfRange, [](auto& b) { b.table.offset = ~0ULL - 7; });
  ExpectStep(Code::kInvalidArgument, [](auto& b) { b.entries = 0; });
  ExpectStep(Code::kInvalidArgument, [](auto& b) { b.entries = 4; });
  ExpectStep(Code::kInvalidArgument, [](auto& b) { b.entries = ~0U; });
  ExpectStep(Code::kInvalidArgument, [](auto& b) { b.groups = 0; });
  ExpectStep(Code::kInvalidArgument, [](auto& b) { b.groups = ~0U; });
  ExpectStep(Code::kInvalidArgument, [](auto& b) { b.on_nonfinite = static_cast<wire::OnNonFinite>(2); });
}

TEST_F(Admission, StepChecksItsGroups) {
  for (const double bad : {kNan, std::numeric_limits<double>::infinity()}) {
    ExpectStep(
        Code::kInvalidArgument, [&](auto&) { trainer_.group().lr = bad; }, "group 0");
    ExpectStep(Code::kInvalidArgument, [&](auto&) { trainer_.group().beta1 = bad; });
    ExpectStep(Code::kInvalidArgument, [&](auto&) { trainer_.group().beta2 = bad; });
    ExpectStep(Code::kInvalidArgument, [&](auto&) { trainer_.group().eps = bad; });
    ExpectStep(Code::kInvalidArgument, [&](auto&) { trainer_.group().weight_decay = bad; });
  }
  ExpectStep(Code::kInvalidArgument, [&](auto&) { trainer_.group().beta1 = 1.0; });
  ExpectStep(Code::kInvalidArgument, [&](auto&) { trainer_.group().beta2 = -0.1; });
  ExpectStep(Code::kInvalidArgument, [&](auto&) { trainer_.group().eps = -1; });
}

TEST_F(Admission, StepChecksItsEntries) {
  ExpectStep(
      Code::kInvalidArgument, [&](auto&) { trainer_.entry(2).tensor = 3; }, "tensor 3");
  ExpectStep(
      Code::kInvalidArgument, [&](auto&) { trainer_.entry(1).tensor = 0; }, "ascend");
  ExpectStep(
      Code::kInvalidArgument, [&](auto&) { trainer_.entry(0).tensor = 1; }, "ascend");
  ExpectStep(Code::kInvalidArgument, [&](auto&) { trainer_.entry(2).tensor = ~0U; });
  ExpectStep(
      Code::kInvalidArgument, [&](auto&) { trainer_.entry(1).group = 1; }, "group 1 of 1");
  ExpectStep(Code::kInvalidArgument, [&](auto&) { trainer_.entry(1).step = 0; });
  ExpectStep(Code::kInvalidArgument, [&](auto&) { trainer_.entry(0).param_dtype = wire::DType::kU8; });
  ExpectStep(Code::kInvalidArgument,
             [&](auto&) { trainer_.entry(0).grad_dtype = static_cast<wire::DType>(200); });
  ExpectStep(
      Code::kNotFound, [&](auto&) { trainer_.entry(0).param.buffer = 99; }, "parameter");
  ExpectStep(
      Code::kNotFound, [&](auto&) { trainer_.entry(0).grad.buffer = 0; }, "gradient");
  ExpectStep(Code::kOutOfRange,
             [&](auto&) { trainer_.entry(2).param.offset = trainer_.buffer().map.bytes() - 4; });
  ExpectStep(Code::kOutOfRange, [&](auto&) { trainer_.entry(2).grad.offset = ~0ULL - 3; });
  ExpectStep(
      Code::kInvalidArgument, [&](auto&) { trainer_.entry(1).param.offset += 2; }, "multiple of 4");
  ExpectStep(
      Code::kInvalidArgument, [&](auto&) { trainer_.entry(1).grad.offset += 1; }, "multiple of 4");
  ExpectStep(
      Code::kInvalidArgument, [&](auto&) { trainer_.entry(1).param = read_only_.Place(); }, "read-only");
}

TEST_F(Admission, StepReadsGradientsFromReadOnlyMemory) {
  ExpectStep(Code::kOk, [&](auto& b) {
    b.entries = 1;
    trainer_.entry(0).grad = read_only_.Place();
    trainer_.entry(0).param = memory_.Place();
    trainer_.group() = {0, 0, 0, 0, 0};
  });
  // The states of tensor 0 moved on zero gradients only: they are zero still.
}

TEST_F(Admission, DequantizeChecksEachField) {
  wire::DequantizeBody valid;
  valid.extent = weight_;
  valid.out = memory_.Place();
  valid.elements = kWeightElements;
  Expect(Code::kOk, Op::kDequantize, valid);
  auto expect = [&](Code code, auto spoil, const std::string& part = "") {
    wire::DequantizeBody body = valid;
    spoil(body);
    Expect(code, Op::kDequantize, body, part);
  };
  expect(Code::kNotFound, [](auto& b) { b.extent = 12345; });
  expect(
      Code::kInvalidArgument, [&](auto& b) { b.extent = trainer_.extent(); }, "optimizer arena");
  expect(Code::kNotFound, [](auto& b) { b.out.buffer = 12345; });
  expect(Code::kOutOfRange, [&](auto& b) { b.out.offset = memory_.map.bytes() - 4 * kWeightElements + 4; });
  expect(Code::kInvalidArgument, [](auto& b) { b.out.offset = 2; });
  expect(
      Code::kInvalidArgument, [&](auto& b) { b.out = read_only_.Place(); }, "read-only");
  expect(Code::kOutOfRange, [](auto& b) { b.first_element = 32; });
  expect(Code::kOutOfRange, [](auto& b) { b.first_element = 64; });
  expect(Code::kOutOfRange, [](auto& b) { b.first_element = kWeightElements; });
  expect(Code::kOutOfRange, [](auto& b) { b.first_element = ~0ULL - 63; });
  expect(Code::kOutOfRange, [](auto& b) { b.elements = 0; });
  expect(Code::kOutOfRange, [](auto& b) { b.elements = ~0ULL; });
  expect(Code::kInvalidArgument, [](auto& b) { b.out_dtype = wire::DType::kU8; });
  expect(Code::kInvalidArgument, [](auto& b) { b.out_dtype = static_cast<wire::DType>(9); });
  const std::uint64_t empty = MakeWeight(*client_, false);
  expect(
      Code::kInvalidArgument, [&](auto& b) { b.extent = empty; }, "holds nothing yet");
}

TEST_F(Admission, QuantizeChecksEachField) {
  wire::QuantizeBody valid;
  valid.extent = weight_;
  valid.in = memory_.Place();
  Expect(Code::kOk, Op::kQuantize, valid);
  auto expect = [&](Code code, auto spoil) {
    wire::QuantizeBody body = valid;
    spoil(body);
    Expect(code, Op::kQuantize, body);
  };
  expect(Code::kNotFound, [](auto& b) { b.extent = 12345; });
  expect(Code::kInvalidArgument, [&](auto& b) { b.extent = trainer_.extent(); });
  expect(Code::kNotFound, [](auto& b) { b.in.buffer = 12345; });
  expect(Code::kOutOfRange, [&](auto& b) { b.in.offset = memory_.map.bytes(); });
  expect(Code::kInvalidArgument, [](auto& b) { b.in.offset = 1; });
  expect(Code::kInvalidArgument, [](auto& b) { b.in_dtype = wire::DType::kU8; });
  daemon_.device->refuse_scratch = true;
  expect(Code::kOutOfMemory, [&](auto& b) { b.extent = nested_; });
  expect(Code::kOk, [](auto&) {});  // only double quantization needs scratch
  ExpectStep(Code::kOutOfMemory, [](auto&) {});
  daemon_.device->refuse_scratch = false;
  expect(Code::kOk, [](auto&) {});
}

TEST_F(Admission, PackedMovesCheckEachField) {
  for (const bool nested : {false, true}) {
    wire::PackedBody valid;
    valid.extent = nested ? nested_ : weight_;
    valid.packed = memory_.Place(0);
    valid.absmax = memory_.Place(64 << 10);
    if (nested) valid.absmax2 = memory_.Place(128 << 10);
    Expect(Code::kOk, Op::kMovePacked, valid);
    auto expect = [&](Code code, auto spoil) {
      wire::PackedBody body = valid;
      spoil(body);
      Expect(code, Op::kMovePacked, body);
    };
    expect(Code::kNotFound, [](auto& b) { b.extent = 0; });
    expect(Code::kInvalidArgument, [&](auto& b) { b.extent = trainer_.extent(); });
    expect(Code::kInvalidArgument, [](auto& b) { b.into_pages = 2; });
    expect(Code::kNotFound, [](auto& b) { b.packed.buffer = 0; });
    expect(Code::kNotFound, [](auto& b) { b.absmax.buffer = 0; });
    expect(Code::kOutOfRange, [&](auto& b) { b.packed.offset = memory_.map.bytes() - 100; });
    expect(Code::kOutOfRange, [&](auto& b) { b.absmax.offset = memory_.map.bytes() - 4; });
    expect(Code::kInvalidArgument, [&](auto& b) { b.packed = read_only_.Place(); });
    expect(Code::kInvalidArgument, [&](auto& b) { b.absmax = read_only_.Place(); });
    if (nested) {
      expect(Code::kNotFound, [](auto& b) { b.absmax2.buffer = 0; });
      expect(Code::kInvalidArgument, [](auto& b) { b.absmax2.offset += 1; });
    } else {
      expect(Code::kInvalidArgument, [](auto& b) { b.absmax.offset += 1; });
    }
  }
}

TEST_F(Admission, StateMovesCheckEachField) {
  wire::StatesBody valid;
  valid.extent = trainer_.extent();
  valid.tensor = 0;
  for (std::uint64_t k = 0; k < 2; ++k) {
    valid.planes[k] = memory_.Place(k * 64 << 10);
    valid.absmax[k] = memory_.Place((128 + k * 64) << 10);
  }
  Expect(Code::kOk, Op::kMoveStates, valid);
  auto expect = [&](Code code, auto spoil) {
    wire::StatesBody body = valid;
    spoil(body);
    Expect(code, Op::kMoveStates, body);
  };
  expect(Code::kNotFound, [](auto& b) { b.extent = 0; });
  expect(Code::kInvalidArgument, [&](auto& b) { b.extent = weight_; });
  expect(Code::kInvalidArgument, [](auto& b) { b.tensor = 3; });
  expect(Code::kInvalidArgument, [](auto& b) { b.tensor = ~0U; });
  expect(Code::kInvalidArgument, [](auto& b) { b.into_pages = 9; });
  for (int k = 0; k < 2; ++k) {
    expect(Code::kNotFound, [k](auto& b) { b.planes[k].buffer = 0; });
    expect(Code::kNotFound, [k](auto& b) { b.absmax[k].buffer = 0; });
    expect(Code::kOutOfRange, [&](auto& b) { b.planes[k].offset = memory_.map.bytes() - 10; });
    expect(Code::kOutOfRange, [&](auto& b) { b.absmax[k].offset = memory_.map.bytes() - 4; });
    expect(Code::kInvalidArgument, [k](auto& b) { b.absmax[k].offset += 2; });
    expect(Code::kInvalidArgument, [&](auto& b) { b.planes[k] = read_only_.Place(); });
  }
}

TEST_F(Admission, HintsCheckEachField) {
  Expect(Code::kOk, Op::kPrefetch, wire::PrefetchBody{trainer_.extent(), 0, 0});
  Expect(Code::kNotFound, Op::kPrefetch, wire::PrefetchBody{0, 0, 0});
  Expect(Code::kOutOfRange, Op::kPrefetch, wire::PrefetchBody{trainer_.extent(), 1'000, 0});
  Expect(Code::kOutOfRange, Op::kPrefetch, wire::PrefetchBody{trainer_.extent(), 0, ~0ULL});
  Expect(Code::kOutOfRange, Op::kPrefetch, wire::PrefetchBody{trainer_.extent(), ~0ULL, 2});
  for (std::uint32_t phase = 0; phase <= 4; ++phase) {
    Expect(Code::kOk, Op::kPhase, wire::PhaseBody{static_cast<wire::Phase>(phase), 0});
  }
  Expect(Code::kInvalidArgument, Op::kPhase, wire::PhaseBody{static_cast<wire::Phase>(5), 0});
  Expect(Code::kNotFound, Op::kLease, wire::LeaseBody{0});
  Expect(Code::kInvalidArgument, Op::kLease, wire::LeaseBody{trainer_.extent()});
}

TEST_F(Admission, PrefetchMakesResident) {
  EXPECT_EQ(daemon_.core().pager.Usage({1})->resident_by_kind[0], 0U);
  ExpectStep(Code::kOk, [&](auto& b) {  // gives pages a content, on zero gradients
    b.entries = 1;
    trainer_.entry(0).grad = read_only_.Place();
    trainer_.entry(0).param = memory_.Place();
    trainer_.group() = {0, 0, 0, 0, 0};
  });
  wire::EvictBody evict;
  wire::CopyText(evict.job, "job");
  EXPECT_TRUE(client_->Ask(wire::MessageType::kEvict, evict).ok());
  daemon_.Settle();
  EXPECT_EQ(daemon_.core().pager.Usage({1})->resident_frames, 0U);
  Expect(Code::kOk, Op::kPrefetch, wire::PrefetchBody{trainer_.extent(), 0, 0});
  daemon_.Settle();
  EXPECT_GT(daemon_.core().pager.Usage({1})->resident_by_kind[0], 0U);
}

TEST_F(Admission, StatesLeaveInAPhaseThatSaysSoAndReturnInBackward) {
  ExpectStep(Code::kOk, [&](auto& b) {  // gives pages a content, on zero gradients
    b.entries = 1;
    trainer_.entry(0).grad = read_only_.Place();
    trainer_.entry(0).param = memory_.Place();
    trainer_.group() = {0, 0, 0, 0, 0};
  });
  const auto resident = [&] {
    daemon_.Settle();
    return daemon_.core().pager.Usage({1})->resident_by_kind[0];
  };
  const std::uint64_t all = resident();
  EXPECT_GT(all, 0U);
  Expect(Code::kOk, Op::kPhase, wire::PhaseBody{wire::Phase::kForward, 0});
  EXPECT_EQ(resident(), all);
  Expect(Code::kOk, Op::kPhase, wire::PhaseBody{wire::Phase::kLeave, 0});
  EXPECT_EQ(resident(), 0U);
  Expect(Code::kOk, Op::kPhase, wire::PhaseBody{wire::Phase::kBackward, 0});
  EXPECT_EQ(resident(), all);
}

TEST_F(Admission, ArenasAndWeightsCheckEachField) {
  auto arena = [&](Code code, auto spoil, const std::string& part = "") {
    wire::CreateArenaBody body;
    wire::CopyText(body.optimizer, "second");
    body.tensors = 2;
    body.table = memory_.Place();
    memory_.map.At<std::uint64_t>(0)[0] = 1000;
    memory_.map.At<std::uint64_t>(0)[1] = 1;
    spoil(body);
    const Reply reply = client_->Ask(wire::MessageType::kCreateArena, body);
    EXPECT_EQ(reply.code(), code) << reply.text();
    EXPECT_THAT(reply.text(), HasSubstr(part));
  };
  arena(Code::kInvalidArgument, [](auto& b) { b.optimizer[0] = '\0'; });
  arena(Code::kInvalidArgument, [](auto& b) { std::memset(b.optimizer, 'x', sizeof(b.optimizer)); });
  arena(Code::kInvalidArgument, [](auto& b) { b.rule = static_cast<wire::Rule>(9); });
  arena(Code::kInvalidArgument, [](auto& b) { b.bits = static_cast<wire::StateBits>(16); });
  arena(Code::kInvalidArgument, [](auto& b) { b.evictable = 2; });
  arena(Code::kInvalidArgument, [](auto& b) { b.resume = static_cast<wire::Resume>(2); });
  arena(Code::kInvalidArgument, [](auto& b) { b.tensors = 0; });
  arena(Code::kInvalidArgument, [](auto& b) { b.tensors = wire::kMaxTensors + 1; });
  arena(Code::kOutOfRange, [](auto& b) { b.tensors = wire::kMaxTensors; });
  arena(Code::kNotFound, [](auto& b) { b.table.buffer = 0; });
  arena(Code::kInvalidArgument, [](auto& b) { b.table.offset = 4; });
  arena(
      Code::kInvalidArgument, [&](auto&) { memory_.map.At<std::uint64_t>(0)[1] = 0; }, "tensor 1");
  arena(Code::kInvalidArgument, [&](auto&) { memory_.map.At<std::uint64_t>(0)[1] = ~0ULL; });
  arena(
      Code::kBudgetExceeded, [&](auto&) { memory_.map.At<std::uint64_t>(0)[1] = 1ULL << 47; }, "bytes");
  auto weight = [&](Code code, auto spoil) {
    wire::CreateWeightBody body;
    body.elements = 1000;
    spoil(body);
    const Reply reply = client_->Ask(wire::MessageType::kCreateWeight, body);
    EXPECT_EQ(reply.code(), code) << reply.text();
  };
  weight(Code::kInvalidArgument, [](auto& b) { b.type = static_cast<wire::QuantType>(2); });
  weight(Code::kInvalidArgument, [](auto& b) { b.nested = 2; });
  weight(Code::kInvalidArgument, [](auto& b) { std::memset(b.name, 'x', sizeof(b.name)); });
  weight(Code::kInvalidArgument, [](auto& b) { b.elements = 0; });
  weight(Code::kInvalidArgument, [](auto& b) { b.elements = ~0ULL; });
  for (const std::uint32_t blocksize : {0U, 1U, 16U, 33U, 96U, 8192U, ~0U}) {
    weight(Code::kInvalidArgument, [&](auto& b) { b.blocksize = blocksize; });
  }
  for (const std::uint32_t blocksize : {32U, 64U, 4096U}) {
    weight(Code::kOk, [&](auto& b) { b.blocksize = blocksize; });
  }
}

TEST_F(Admission, BuffersCheckEachField) {
  auto create = [&](std::uint64_t bytes) {
    return client_->Ask(wire::MessageType::kCreateBuffer, wire::CreateBufferBody{bytes}).code();
  };
  EXPECT_EQ(create(0), Code::kInvalidArgument);
  EXPECT_EQ(create(~0ULL), Code::kInvalidArgument);
  EXPECT_EQ(create(1ULL << 45), Code::kBudgetExceeded);
  const wire::UniqueFd memory = MakeMemory(8192);
  EXPECT_EQ(client_->Register(memory.get(), 8193).code(), Code::kOutOfRange);
  EXPECT_EQ(client_->Register(memory.get(), 0).code(), Code::kInvalidArgument);
  const wire::UniqueFd sparse = MakeMemory(1ULL << 43);
  EXPECT_EQ(client_->Register(sparse.get(), 1ULL << 43).code(), Code::kQuotaExceeded) << "of addresses";
  EXPECT_EQ(client_->Register(memory.get(), 8192, true, true).code(), Code::kInvalidArgument)
      << "announced as sealed, but is not";
  int pipe_ends[2];
  ASSERT_EQ(::pipe(pipe_ends), 0);
  EXPECT_EQ(client_->Register(pipe_ends[0], 8192).code(), Code::kInvalidArgument);
  ::close(pipe_ends[0]);
  ::close(pipe_ends[1]);
  EXPECT_EQ(client_->Ask(wire::MessageType::kRegisterBuffer, wire::RegisterBufferBody{8192}).code(),
            Code::kInvalidArgument);
  EXPECT_EQ(client_->Ask(wire::MessageType::kReleaseBuffer, wire::ReleaseBufferBody{4711}).code(),
            Code::kNotFound);
  daemon_.device->refuse_imports = true;
  EXPECT_EQ(client_->Register(memory.get(), 8192).code(), Code::kOutOfMemory);
  EXPECT_EQ(create(4096), Code::kOutOfMemory);
  daemon_.device->refuse_imports = false;
  const Reply registered = client_->Register(memory.get(), 8192);
  ASSERT_TRUE(registered.ok());
  EXPECT_TRUE(
      client_->Ask(wire::MessageType::kReleaseBuffer, wire::ReleaseBufferBody{registered.value(0)}).ok());
}

}  // namespace
}  // namespace bitpager::testing
