#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/in_process_daemon.h"
#include "tests/support/raw_trainer.h"

namespace bitpager::testing {
namespace {

using wire::Code;
using wire::Op;

TEST(DeviceFault, EndsEverySessionAndMarksWhatWasHalfWritten) {
  daemon::Settings settings = TestSettings();
  settings.linger_ms = 60'000;
  InProcessDaemon daemon(settings);
  auto first = daemon.Open("first");
  auto second = daemon.Open("second");
  RawTrainer stepping(*first, {12 * 6144});
  RawTrainer quiet(*second, {6144});
  ASSERT_TRUE(stepping.Create().ok());
  ASSERT_TRUE(quiet.Create().ok());
  quiet.StepOk(1);
  first->Push(stepping.Prepare(1));
  daemon.device->fault_at_step = daemon.device->steps + 2;
  daemon.clock.tick_ns = 1'000;
  // Nothing that runs is seen to end any more: only who asks the device learns of it.
  ASSERT_TRUE(daemon.TurnUntil([&] { return first->failed() != Code::kOk; }));
  daemon.clock.tick_ns = 0;
  EXPECT_EQ(first->failed(), Code::kDeviceFault);
  EXPECT_EQ(second->failed(), Code::kDeviceFault);
  EXPECT_EQ(first->view().header().done.word.load(), wire::kDoneReleased) << "its stream goes on";
  EXPECT_TRUE(daemon.Noticed("error", "device fault"));
  daemon.device->fault_at_step = -1;
  daemon.Settle();
  EXPECT_EQ(daemon.sessions(), 0U);
  // What was half written says so; what was whole goes on.
  wire::CreateArenaBody resume;
  resume.resume = wire::Resume::kContinue;
  auto again = daemon.Open("first");
  RawTrainer torn(*again, {12 * 6144});
  EXPECT_EQ(torn.Create(resume).code(), Code::kDeviceFault);
  auto other = daemon.Open("second");
  RawTrainer whole(*other, {6144});
  resume.step = 1;
  EXPECT_TRUE(whole.Create(resume).ok());
}

TEST(DeviceMemory, ARefusedSegmentShrinksTheBudgetAndTheStepGoesOn) {
  InProcessDaemon daemon;
  daemon.device->segments_left = 4;
  auto client = daemon.Open("job");
  RawTrainer trainer(*client, {12 * 6144});
  ASSERT_TRUE(trainer.Create().ok());
  ShadowArena shadow = trainer.Shadow();
  for (std::uint64_t step = 1; step <= 3; ++step) {
    trainer.StepOk(step);
    shadow.Step(step);
  }
  trainer.ExpectParams(shadow);
  EXPECT_LE(daemon.device->segments, 4);
  daemon.CheckInvariants();
}

TEST(DeviceMemory, WithoutRoomForAWindowTheRequestIsRefusedAndNothingHangs) {
  InProcessDaemon daemon;
  daemon.device->segments_left = 1;
  auto client = daemon.Open("job");
  RawTrainer trainer(*client, {12 * 6144});
  ASSERT_TRUE(trainer.Create().ok());
  const wire::CompletionRecord done = trainer.Step(1);
  EXPECT_EQ(RawClient::CodeOf(done), Code::kOutOfMemory) << RawClient::TextIn(done);
  EXPECT_EQ(RawClient::CodeOf(client->Run(Op::kNoop, wire::PhaseBody{})), Code::kOk);
  daemon.CheckInvariants();
}

// Letting go of one waits for what a GPU runs: all at once would hold up everybody.
TEST(Killed, ASessionsMemoryIsLetGoOfOneByOne) {
  InProcessDaemon daemon;
  auto stays = daemon.OpenPatient("stays");
  auto client = daemon.OpenPatient("goes");
  const std::int64_t before = daemon.device->imports;
  std::vector<wire::UniqueFd> files;
  for (int i = 0; i < 5; ++i) {
    files.push_back(MakeMemory(4096));
    ASSERT_TRUE(client->Register(files.back().get(), 4096).ok());
  }
  static_cast<void>(client->MakeBuffer(4096));
  ASSERT_EQ(daemon.device->imports, before + 6);
  client.reset();
  std::int64_t last = daemon.device->imports;
  int turns_with_release = 0;
  const bool all = daemon.TurnUntil([&] {
    EXPECT_LE(last - daemon.device->imports, 1);
    turns_with_release += last != daemon.device->imports ? 1 : 0;
    last = daemon.device->imports;
    return last == before;
  });
  EXPECT_TRUE(all);
  EXPECT_EQ(turns_with_release, 6);
  EXPECT_EQ(daemon.sessions(), 1U);
}

// The device stores a ticket into `done` behind its work, also after the session has failed.
TEST(Failed, ASessionStaysReleasedBehindWorkThatWasUnderWay) {
  InProcessDaemon daemon;
  auto client = daemon.OpenPatient("job");
  RawTrainer trainer(*client, {6144});
  ASSERT_TRUE(trainer.Create().ok());
  daemon.device->hold_signals = true;
  client->Push(trainer.Prepare(1));
  ASSERT_TRUE(daemon.TurnUntil([&] { return daemon.device->held_signals() == 1; }));
  client->view().header().request_tail.word.store(~0ULL);  // what no client writes
  ASSERT_TRUE(daemon.TurnUntil([&] { return client->failed() == Code::kProtocol; }));
  wire::Word& done = client->view().header().done.word;
  EXPECT_EQ(done.load(), wire::kDoneReleased);
  daemon.device->ReleaseSignals();
  EXPECT_EQ(done.load(), 1U);
  daemon.Settle();
  EXPECT_EQ(done.load(), wire::kDoneReleased) << "or a stream that waits for a later ticket waits for ever";
}

// The end of a daemon whose device is slow to end what it runs.
class SlowEnd : public ::testing::Test {
 protected:
  SlowEnd() : client_(daemon_.OpenPatient("job")), trainer_(*client_, {6144}) {
    EXPECT_TRUE(trainer_.Create().ok());
    daemon_.device->hold_compute = true;
    client_->Push(trainer_.Prepare(1));
    EXPECT_TRUE(daemon_.TurnUntil([&] { return daemon_.device->steps == 1; }));
    daemon_.clock.tick_ns = 100'000'000;
    daemon_.dispatcher->RequestStop();
  }
  ~SlowEnd() override {
    daemon_.device->hold_compute = false;
    daemon_.device->fault_at_step = -1;
  }

  InProcessDaemon daemon_;
  std::unique_ptr<RawClient> client_;
  RawTrainer trainer_;
};

TEST_F(SlowEnd, WaitsForWhatRunsOnMemoryOfSessions) {
  daemon_.core().notify = [&](const daemon::Notice& notice) {
    if (notice.text.find("requests still run") != std::string::npos) daemon_.device->hold_compute = false;
    daemon_.notices.push_back(notice);
  };
  EXPECT_TRUE(daemon_.dispatcher->Run());
  EXPECT_TRUE(daemon_.Noticed("error", "requests still run"));
  EXPECT_EQ(client_->failed(), Code::kDraining) << "its client was told before";
  EXPECT_EQ(client_->view().header().done.word.load(), wire::kDoneReleased);
}

TEST_F(SlowEnd, SaysThatNothingMayBeFreedUnderADeviceThatNeverEnds) {
  EXPECT_FALSE(daemon_.dispatcher->Run());
  EXPECT_TRUE(daemon_.Noticed("error", "did not end what it runs"));
  EXPECT_EQ(client_->failed(), Code::kDraining);
  EXPECT_EQ(daemon_.device->imports, 1) << "the memory that it works on is mapped";
}

TEST_F(SlowEnd, DoesNotWaitForADeviceThatFailed) {
  daemon_.device->fault_at_step = 0;
  ASSERT_TRUE(daemon_.TurnUntil([&] { return client_->failed() == Code::kDeviceFault; }));
  daemon_.clock.tick_ns = 1;
  EXPECT_FALSE(daemon_.dispatcher->Run()) << "on a clock on which no limit is ever reached";
}

TEST(DeviceMemory, GoesBackWhenNobodyNeedsIt) {
  InProcessDaemon daemon;
  auto stays = daemon.OpenPatient("stays");
  RawTrainer small(*stays, {2 * 6144});
  ASSERT_TRUE(small.Create().ok());
  small.StepOk(1);
  {
    auto client = daemon.OpenPatient("job");
    RawTrainer trainer(*client, {8 * 6144});
    ASSERT_TRUE(trainer.Create().ok());
    trainer.StepOk(1);
  }
  daemon.Settle();
  EXPECT_EQ(daemon.device->segments, 10) << "kept for a job that comes right after";
  daemon.clock.AdvanceMs(2'001);
  daemon.Settle();
  EXPECT_EQ(daemon.device->segments, 2) << "what the other job has stays";
  daemon.CheckInvariants();
  RawTrainer more(*stays, {8 * 6144});
  wire::CreateArenaBody named;
  wire::CopyText(named.optimizer, "more");
  ASSERT_TRUE(more.Create(named).ok());
  more.StepOk(1);
  EXPECT_EQ(daemon.device->segments, 10);
}

TEST(DeviceMemory, ThatWasRefusedIsAskedForAgainByItself) {
  InProcessDaemon daemon;
  daemon.device->segments_left = 4;
  auto client = daemon.OpenPatient("job");
  RawTrainer trainer(*client, {12 * 6144});
  ASSERT_TRUE(trainer.Create().ok());
  ShadowArena shadow = trainer.Shadow();
  std::uint64_t step = 0;
  const auto steps = [&] {
    for (int i = 0; i < 2; ++i) {
      trainer.StepOk(++step);
      shadow.Step(step);
    }
  };
  steps();
  EXPECT_EQ(daemon.device->segments, 4);
  daemon.clock.AdvanceMs(1'001);
  daemon.Settle();
  steps();
  EXPECT_EQ(daemon.device->segments, 4) << "refused once more, and nothing broke";
  daemon.device->segments_left = 100;
  daemon.clock.AdvanceMs(1'001);
  daemon.Settle();
  steps();
  EXPECT_EQ(daemon.device->segments, 4) << "the second wait is longer";
  daemon.clock.AdvanceMs(1'000);
  daemon.Settle();
  steps();
  EXPECT_EQ(daemon.device->segments, 12);
  trainer.ExpectParams(shadow);
  daemon.CheckInvariants();
}

// Registered memory that its owner shrinks: the daemon must live, and only that session end.
class Shrunk : public ::testing::Test {
 protected:
  Shrunk() : healthy_(daemon_.Open("healthy")), client_(daemon_.Open("job")) {
    trainer_ = std::make_unique<RawTrainer>(*healthy_, std::vector<std::uint64_t>{9'000});
    EXPECT_TRUE(trainer_->Create().ok());
    fd_ = MakeMemory(kBytes);
    const Reply reply = client_->Register(fd_.get(), kBytes);
    EXPECT_TRUE(reply.ok()) << reply.text();
    memory_ = reply.value(0);
  }
  ~Shrunk() override {
    ShadowArena shadow = trainer_->Shadow();
    for (std::uint64_t step = 1; step <= 2; ++step) {
      trainer_->StepOk(step);
      shadow.Step(step);
    }
    trainer_->ExpectParams(shadow);
  }
  static constexpr std::uint64_t kBytes = 1U << 20;

  InProcessDaemon daemon_;
  std::unique_ptr<RawClient> healthy_, client_;
  std::unique_ptr<RawTrainer> trainer_;
  wire::UniqueFd fd_;
  std::uint64_t memory_ = 0;
};

TEST_F(Shrunk, GradientsEndTheSession) {
  RawTrainer trainer(*client_, {9'000});
  ASSERT_TRUE(trainer.Create().ok());
  const wire::RequestRecord record = trainer.Prepare(1);
  trainer.entry(0).grad = {memory_, 0};
  ASSERT_EQ(::ftruncate(fd_.get(), 0), 0);
  client_->Push(record);
  const auto done = client_->Wait();
  ASSERT_TRUE(done);
  EXPECT_EQ(RawClient::CodeOf(*done), Code::kOutOfRange) << RawClient::TextIn(*done);
  EXPECT_TRUE(daemon_.TurnUntil([&] { return daemon_.sessions() == 1; }));
  EXPECT_EQ(client_->failed(), Code::kOutOfRange);
}

TEST_F(Shrunk, ATableIsRefused) {
  RawTrainer trainer(*client_, {9'000});
  ASSERT_TRUE(trainer.Create().ok());
  wire::RequestRecord record = trainer.Prepare(1);
  wire::StepBody body;
  std::memcpy(&body, record.body, sizeof(body));
  body.table = {memory_, 0};
  std::memcpy(record.body, &body, sizeof(body));
  ASSERT_EQ(::ftruncate(fd_.get(), 0), 0);
  client_->Push(record);
  const auto done = client_->Wait();
  ASSERT_TRUE(done);
  EXPECT_NE(RawClient::CodeOf(*done), Code::kOk);
}

TEST_F(Shrunk, TheOutputOfADequantizeEndsTheSession) {
  wire::CreateWeightBody create;
  create.elements = 50'000;
  const Reply made = client_->Ask(wire::MessageType::kCreateWeight, create);
  ASSERT_TRUE(made.ok());
  wire::QuantizeBody quantize;
  quantize.extent = made.value(0);
  quantize.in = {memory_, 0};
  ASSERT_EQ(RawClient::CodeOf(client_->Run(Op::kQuantize, quantize)), Code::kOk);
  ASSERT_EQ(::ftruncate(fd_.get(), 4096), 0);
  wire::DequantizeBody body;
  body.extent = made.value(0);
  body.out = {memory_, 0};
  body.elements = 50'000;
  EXPECT_EQ(RawClient::CodeOf(client_->Run(Op::kDequantize, body)), Code::kOutOfRange);
  EXPECT_TRUE(daemon_.TurnUntil([&] { return daemon_.sessions() == 1; }));
}

}  // namespace
}  // namespace bitpager::testing
