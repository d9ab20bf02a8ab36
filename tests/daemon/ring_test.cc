#include <gtest/gtest.h>

#include <random>

#include "tests/support/in_process_daemon.h"
#include "tests/support/raw_trainer.h"

namespace bitpager::testing {
namespace {

using wire::Code;
using wire::Op;

// A session that breaks the protocol beside one that trains: only the first may suffer.
class RingGarbage : public ::testing::Test {
 protected:
  RingGarbage() {
    healthy_ = daemon_.Open("healthy");
    trainer_ = std::make_unique<RawTrainer>(*healthy_, std::vector<std::uint64_t>{10'000, 77});
    EXPECT_TRUE(trainer_->Create().ok());
    bad_ = daemon_.Open("bad");
  }
  ~RingGarbage() override {
    ShadowArena shadow = trainer_->Shadow();
    for (std::uint64_t step = 1; step <= 3; ++step) {
      trainer_->StepOk(step);
      shadow.Step(step);
    }
    trainer_->ExpectParams(shadow);
    daemon_.Settle();
    EXPECT_EQ(daemon_.sessions(), 1U);
    daemon_.CheckInvariants();
  }
  void ExpectEnded(Code code) {
    EXPECT_TRUE(daemon_.TurnUntil([&] { return bad_->failed() != Code::kOk; }));
    EXPECT_EQ(bad_->failed(), code);
    EXPECT_TRUE(bad_->Receive(200).closed);
  }

  InProcessDaemon daemon_;
  std::unique_ptr<RawClient> healthy_;
  std::unique_ptr<RawTrainer> trainer_;
  std::unique_ptr<RawClient> bad_;
};

TEST_F(RingGarbage, UnknownRecordVersionIsAnswered) {
  wire::RequestRecord record;
  record.version = 99;
  bad_->Push(record);
  const auto done = bad_->Wait();
  ASSERT_TRUE(done);
  EXPECT_EQ(RawClient::CodeOf(*done), Code::kUnknownVersion);
  EXPECT_EQ(RawClient::CodeOf(bad_->Run(Op::kNoop, wire::PhaseBody{})), Code::kOk) << "the session lives";
  bad_->HangUp();
}

TEST_F(RingGarbage, UnknownOpIsAnswered) {
  for (const std::uint16_t op :
       {std::uint16_t{0}, static_cast<std::uint16_t>(wire::kOpLast + 1), std::uint16_t{65535}}) {
    wire::RequestRecord record;
    record.version = wire::kWireVersion;
    record.op = static_cast<Op>(op);
    bad_->Push(record);
    const auto done = bad_->Wait();
    ASSERT_TRUE(done);
    EXPECT_EQ(RawClient::CodeOf(*done), Code::kInvalidArgument);
  }
  bad_->HangUp();
}

TEST_F(RingGarbage, ATicketOutOfOrderEndsTheSession) {
  wire::RequestRecord record;
  record.version = wire::kWireVersion;
  record.ticket = 2;
  bad_->PushRaw(record);
  ExpectEnded(Code::kProtocol);
}

TEST_F(RingGarbage, ACursorPastTheRingEndsTheSession) {
  bad_->view().header().request_tail.word.store(wire::kRequestSlots + 1);
  ExpectEnded(Code::kProtocol);
}

TEST_F(RingGarbage, ACursorThatWentBackEndsTheSession) {
  EXPECT_EQ(RawClient::CodeOf(bad_->Run(Op::kNoop, wire::PhaseBody{})), Code::kOk);
  bad_->view().header().request_tail.word.store(0);
  ExpectEnded(Code::kProtocol);
}

TEST_F(RingGarbage, ASegmentFullOfGarbageEndsTheSession) {
  std::mt19937_64 random(7);
  auto* words = reinterpret_cast<std::uint64_t*>(bad_->view().base);
  for (std::size_t i = 0; i < wire::kSegmentBytes / 8; ++i) words[i] = random();
  EXPECT_TRUE(daemon_.TurnUntil([&] { return daemon_.sessions() == 1; }));
}

TEST_F(RingGarbage, ACompletionCursorOfGarbageEndsTheSession) {
  bad_->view().header().completion_head.word.store(12345);
  bad_->Push(RawClient::RecordOf(Op::kNoop, wire::PhaseBody{}));
  ExpectEnded(Code::kProtocol);
}

TEST_F(RingGarbage, ACompletionRingThatIsNeverReadEndsTheSession) {
  for (std::uint32_t i = 0; i < wire::kCompletionSlots + 1; ++i) {
    bad_->Push(RawClient::RecordOf(Op::kNoop, wire::PhaseBody{}));
    daemon_.Turn();
  }
  ExpectEnded(Code::kProtocol);
}

TEST_F(RingGarbage, TicketsWaitUntilReadySaysSo) {
  wire::RequestRecord record;
  record.version = wire::kWireVersion;
  record.ticket = 1;
  record.ready = 5;
  bad_->PushRaw(record);
  daemon_.Settle();
  EXPECT_FALSE(bad_->Pop());
  bad_->view().header().ready.word.store(5);
  EXPECT_TRUE(bad_->Wait());
  EXPECT_EQ(bad_->view().header().done.word.load(), 1U);
  bad_->HangUp();
}

}  // namespace
}  // namespace bitpager::testing
