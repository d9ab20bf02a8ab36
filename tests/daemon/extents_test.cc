#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>

#include "client/wire/text.h"
#include "tests/support/in_process_daemon.h"
#include "tests/support/raw_trainer.h"

namespace bitpager::testing {
namespace {

using ::testing::HasSubstr;
using wire::Code;

wire::CreateArenaBody ContinueAt(std::uint64_t step, std::uint64_t layout_hash = 0) {
  wire::CreateArenaBody body;
  body.resume = wire::Resume::kContinue;
  body.step = step;
  body.layout_hash = layout_hash;
  return body;
}

// A session of job "job" that trained three steps and went, and what it kept.
class Kept : public ::testing::Test {
 protected:
  static daemon::Settings Lingering() {
    daemon::Settings settings = TestSettings();
    settings.linger_ms = 10'000;
    return settings;
  }
  Kept() {
    auto client = daemon_.Open("job");
    RawTrainer trainer(*client, {20'000, 99});
    EXPECT_TRUE(trainer.Create().ok());
    for (std::uint64_t step = 1; step <= 3; ++step) {
      trainer.StepOk(step);
      shadow_.Step(step);
    }
    params_.assign(trainer.params(), trainer.params() + 20'099);
    EXPECT_TRUE(client->AskBare(wire::MessageType::kDetach).ok());
    daemon_.Settle();
  }

  InProcessDaemon daemon_{Lingering()};
  ShadowArena shadow_{wire::Rule::kAdam, {20'000, 99}, kTestHyper};
  std::vector<float> params_;
};

TEST_F(Kept, StatesGoOnAsTheyWere) {
  auto client = daemon_.Open("job");
  RawTrainer trainer(*client, {20'000, 99});
  const Reply reply = trainer.Create(ContinueAt(3));
  ASSERT_TRUE(reply.ok()) << reply.text();
  EXPECT_EQ(reply.value(3), 3U);
  trainer.SetParams(params_.data());
  trainer.StepOk(4);
  shadow_.Step(4);
  trainer.ExpectParams(shadow_);
}

// The daemon hears of the successor before it hears of the predecessor's end.
TEST_F(Kept, ASuccessorThatKeepsNothingFindsWhatItsPredecessorKept) {
  auto successor = daemon_.Connect();
  {
    auto predecessor = daemon_.Open("job");
    RawTrainer trainer(*predecessor, {20'000, 99});
    ASSERT_TRUE(trainer.Create(ContinueAt(3)).ok());
    trainer.SetParams(params_.data());
    trainer.StepOk(4);
    shadow_.Step(4);
    params_.assign(trainer.params(), trainer.params() + 20'099);
  }
  wire::HelloBody hello = RawClient::HelloBodyOf("job");
  hello.linger_ms = 0;
  ASSERT_TRUE(successor->Hello(hello).ok());
  daemon_.Settle();
  ASSERT_EQ(daemon_.sessions(), 1U);
  {
    RawTrainer trainer(*successor, {20'000, 99});
    const Reply reply = trainer.Create(ContinueAt(4));
    ASSERT_TRUE(reply.ok()) << reply.text();
    trainer.SetParams(params_.data());
    trainer.StepOk(5);
    shadow_.Step(5);
    trainer.ExpectParams(shadow_);
  }
  successor.reset();
  daemon_.Settle();
  EXPECT_EQ(daemon_.jobs(), 0U) << "it asked to keep nothing";
}

TEST_F(Kept, AnotherStepIsRefusedNamingBoth) {
  auto client = daemon_.Open("job");
  RawTrainer trainer(*client, {20'000, 99});
  const Reply reply = trainer.Create(ContinueAt(2));
  EXPECT_EQ(reply.code(), Code::kStepMismatch);
  EXPECT_THAT(reply.text(), HasSubstr("step 3"));
  EXPECT_THAT(reply.text(), HasSubstr("step 2"));
  EXPECT_TRUE(trainer.Create(ContinueAt(3)).ok()) << "nothing was lost by the refusal";
}

TEST_F(Kept, AnotherLayoutIsRefused) {
  auto client = daemon_.Open("job");
  RawTrainer fewer(*client, {20'000});
  EXPECT_EQ(fewer.Create(ContinueAt(3)).code(), Code::kLayoutMismatch);
  RawTrainer same(*client, {20'000, 99});
  EXPECT_EQ(same.Create(ContinueAt(3, 77)).code(), Code::kLayoutMismatch);
  RawTrainer lion(*client, {20'000, 99}, wire::Rule::kLion);
  EXPECT_EQ(lion.Create(ContinueAt(3)).code(), Code::kLayoutMismatch);
  RawTrainer other_sizes(*client, {10'000, 99});
  EXPECT_EQ(other_sizes.Create(ContinueAt(3)).code(), Code::kLayoutMismatch)
      << "a hash that was not changed does not make other sizes fit";
}

TEST_F(Kept, AnotherUserDoesNotFindThem) {
  auto client = daemon_.Open("job", 0, {2000, 2000, 1});
  RawTrainer trainer(*client, {20'000, 99});
  EXPECT_EQ(trainer.Create(ContinueAt(3)).code(), Code::kNotFound);
}

TEST_F(Kept, AnotherRankDoesNotFindThem) {
  auto client = daemon_.Open("job", 1);
  RawTrainer trainer(*client, {20'000, 99});
  EXPECT_EQ(trainer.Create(ContinueAt(3)).code(), Code::kNotFound);
}

TEST_F(Kept, FreshStartsAtZero) {
  auto client = daemon_.Open("job");
  RawTrainer trainer(*client, {20'000, 99});
  const Reply reply = trainer.Create();
  ASSERT_TRUE(reply.ok()) << reply.text();
  EXPECT_EQ(reply.value(3), 0U);
  ShadowArena shadow = trainer.Shadow();
  trainer.StepOk(1);
  shadow.Step(1);
  trainer.ExpectParams(shadow);
}

TEST_F(Kept, ARefusedFreshStartLosesNothing) {
  auto client = daemon_.Open("job");
  {
    RawTrainer huge(*client, {50 * 6144});  // its buffer leaves too little of the host for its pages
    const RawBuffer rest = client->MakeBuffer(60 * kTestPageBytes);
    const Reply reply = huge.Create();
    EXPECT_EQ(reply.code(), Code::kBudgetExceeded) << reply.text();
    EXPECT_TRUE(
        client->Ask(wire::MessageType::kReleaseBuffer, wire::ReleaseBufferBody{huge.buffer().id}).ok());
    EXPECT_TRUE(client->Ask(wire::MessageType::kReleaseBuffer, wire::ReleaseBufferBody{rest.id}).ok());
  }
  RawTrainer stays(*client, {40 * 6144});  // more than the device holds
  wire::CreateArenaBody fixed;
  fixed.evictable = 0;
  EXPECT_EQ(stays.Create(fixed).code(), Code::kBudgetExceeded);
  EXPECT_TRUE(
      client->Ask(wire::MessageType::kReleaseBuffer, wire::ReleaseBufferBody{stays.buffer().id}).ok());
  RawTrainer trainer(*client, {20'000, 99});
  const Reply kept = trainer.Create(ContinueAt(3));
  ASSERT_TRUE(kept.ok()) << kept.text();
  trainer.SetParams(params_.data());
  trainer.StepOk(4);
  shadow_.Step(4);
  trainer.ExpectParams(shadow_);
}

TEST_F(Kept, AFreshStartTakesTheirPlaceWhereThereIsRoomForOneOnly) {
  auto client = daemon_.Open("job");
  wire::LimitBody limit;
  wire::CopyText(limit.job, "job");
  limit.host_quota_bytes = 4 * kTestPageBytes + (1U << 18);
  ASSERT_TRUE(client->Ask(wire::MessageType::kLimit, limit).ok());
  RawTrainer trainer(*client, {20'000, 99});
  const Reply reply = trainer.Create();
  EXPECT_TRUE(reply.ok()) << reply.text();
  EXPECT_EQ(reply.value(3), 0U);
}

// ---- buffers

// Pages of memory behind a file.
std::uint64_t HeldBytes(int fd) {
  struct stat info {};
  EXPECT_EQ(::fstat(fd, &info), 0);
  return static_cast<std::uint64_t>(info.st_blocks) * 512;
}

TEST(Buffers, MemoryOfAReleasedOneIsGoneThoughItsClientKeepsTheFile) {
  InProcessDaemon daemon;
  auto client = daemon.Open("job");
  Reply made = client->Ask(wire::MessageType::kCreateBuffer, wire::CreateBufferBody{1U << 20});
  ASSERT_TRUE(made.ok());
  const SharedMap map(made.fds[0].get(), 1U << 20);
  std::memset(map.base(), 1, 1U << 20);
  EXPECT_EQ(HeldBytes(made.fds[0].get()), 1U << 20);
  ASSERT_TRUE(client->Ask(wire::MessageType::kReleaseBuffer, wire::ReleaseBufferBody{made.value(0)}).ok());
  daemon.Settle();
  EXPECT_EQ(HeldBytes(made.fds[0].get()), 0U);
  EXPECT_EQ(*map.base(), std::byte{0}) << "a client that reads on reads zeros, and does not crash";
  EXPECT_EQ(daemon.device->imports, 0);
}

TEST(Buffers, OneInUseKeepsItsMemoryUntilTheWorkIsDone) {
  InProcessDaemon daemon;
  auto client = daemon.Open("job");
  RawTrainer trainer(*client, {20'000});
  ASSERT_TRUE(trainer.Create().ok());
  ShadowArena shadow = trainer.Shadow();
  daemon.device->hold_compute = true;
  client->Push(trainer.Prepare(1));
  ASSERT_TRUE(daemon.TurnUntil([&] { return daemon.device->steps > 0; }));
  ASSERT_TRUE(
      client->Ask(wire::MessageType::kReleaseBuffer, wire::ReleaseBufferBody{trainer.buffer().id}).ok());
  for (int i = 0; i < 20; ++i) daemon.Turn();
  shadow.Step(1);
  EXPECT_TRUE(std::any_of(trainer.params(), trainer.params() + 20'000, [](float p) { return p != 0; }));
  daemon.device->hold_compute = false;
  daemon.Settle();
  EXPECT_EQ(std::count(trainer.params(), trainer.params() + 20'000, 0.0F), 20'000);
}

TEST(Buffers, ThoseOfASessionThatEndedStayWithTheirClient) {
  InProcessDaemon daemon;
  auto client = daemon.Open("job");
  const RawBuffer buffer = client->MakeBuffer(4096);
  *buffer.map.At<int>(0) = 7;
  ASSERT_TRUE(client->AskBare(wire::MessageType::kDetach).ok());
  daemon.Settle();
  EXPECT_EQ(*buffer.map.At<int>(0), 7) << "parameters live there";
}

TEST_F(Kept, TheyGoWhenTheirTimeIsOver) {
  EXPECT_GT(daemon_.core().pager.used_host_frames(), 0U);
  daemon_.clock.AdvanceMs(9'000);
  daemon_.Settle();
  EXPECT_EQ(daemon_.jobs(), 1U);
  daemon_.clock.AdvanceMs(1'001);
  EXPECT_GT(daemon_.Turn(), 0) << "or the loop would sleep over the frames that came free";
  daemon_.Settle();
  EXPECT_EQ(daemon_.jobs(), 0U);
  EXPECT_EQ(daemon_.core().pager.used_host_frames(), 0U);
  EXPECT_EQ(daemon_.core().pager.free_frames(), 16U);
  EXPECT_TRUE(daemon_.Noticed("expired"));
}

TEST_F(Kept, AReturnStopsTheirClock) {
  auto client = daemon_.Open("job");
  daemon_.clock.AdvanceMs(100);
  client->view().header().heartbeat.word.store(1);
  for (int i = 2; i < 200; ++i) {
    daemon_.clock.AdvanceMs(100);
    client->view().header().heartbeat.word.store(static_cast<std::uint64_t>(i));
    daemon_.Turn();
  }
  EXPECT_EQ(daemon_.sessions(), 1U);
  RawTrainer trainer(*client, {20'000, 99});
  EXPECT_TRUE(trainer.Create(ContinueAt(3)).ok());
}

TEST(Extents, OneKeyIsInUseOnce) {
  InProcessDaemon daemon;
  auto first = daemon.Open("job");
  auto second = daemon.Open("job");
  RawTrainer one(*first, {1'000});
  RawTrainer two(*second, {1'000});
  ASSERT_TRUE(one.Create().ok());
  EXPECT_EQ(two.Create().code(), Code::kAlreadyExists);
  EXPECT_EQ(two.Create(ContinueAt(0)).code(), Code::kAlreadyExists);
  EXPECT_EQ(one.Create().code(), Code::kAlreadyExists) << "also in its own session";
  wire::CreateArenaBody named;
  wire::CopyText(named.optimizer, "other");
  EXPECT_TRUE(two.Create(named).ok());
  auto other_rank = daemon.Open("job", 1);
  RawTrainer three(*other_rank, {1'000});
  EXPECT_TRUE(three.Create().ok());
  auto other_uid = daemon.Open("job", 0, {2000, 2000, 1});
  RawTrainer four(*other_uid, {1'000});
  EXPECT_TRUE(four.Create().ok());
  one.StepOk(1);
}

TEST(Extents, AreDroppedOnlyWhenNothingIsOutstanding) {
  InProcessDaemon daemon;
  auto client = daemon.Open("job");
  RawTrainer trainer(*client, {20'000});
  ASSERT_TRUE(trainer.Create().ok());
  const wire::DropExtentBody drop{trainer.extent()};
  wire::RequestRecord record = trainer.Prepare(1);
  record.ticket = 1;
  record.ready = 9;  // not yet
  client->PushRaw(record);
  EXPECT_EQ(client->Ask(wire::MessageType::kDropExtent, drop).code(), Code::kInvalidArgument);
  client->view().header().ready.word.store(9);
  ASSERT_TRUE(client->Wait());
  EXPECT_TRUE(client->Ask(wire::MessageType::kDropExtent, drop).ok());
  EXPECT_EQ(client->Ask(wire::MessageType::kDropExtent, drop).code(), Code::kNotFound);
  daemon.Settle();
  EXPECT_EQ(daemon.core().pager.used_host_frames(), 0U);
}

// Frames that wait to be given back may pass through other hands first; what their last owner stored stays.
TEST(Extents, MemoryThatComesBackLateIsNotTakenFromItsNextOwner) {
  InProcessDaemon daemon;
  const auto make = [&](std::uint32_t rank, std::uint64_t pages) {
    auto client = daemon.Open("job", rank);
    auto trainer = std::make_unique<RawTrainer>(*client, std::vector<std::uint64_t>{pages * 6144});
    EXPECT_TRUE(trainer->Create().ok());
    return std::pair{std::move(client), std::move(trainer)};
  };
  const auto drop = [&](const auto& owner) {
    EXPECT_TRUE(
        owner.first->Ask(wire::MessageType::kDropExtent, wire::DropExtentBody{owner.second->extent()}).ok());
    daemon.Turn();
  };
  const auto first = make(0, 1);
  const auto wide = make(1, 8);
  daemon.device->hold_decommit = true;
  drop(first);  // under way, so that all others wait
  daemon.Turn();
  drop(wide);
  const auto left = make(2, 3);  // the first one's frame and two of the wide one's
  const auto inner = make(3, 2);
  drop(inner);
  const auto last = make(4, 2);  // where `inner` was
  ShadowArena shadow = last.second->Shadow();
  last.second->StepOk(1);
  shadow.Step(1);
  wire::EvictBody evict;
  wire::CopyText(evict.job, "job");
  ASSERT_TRUE(last.first->Ask(wire::MessageType::kEvict, evict).ok());
  ASSERT_TRUE(daemon.TurnUntil([&] {
    const auto usage = daemon.core().pager.Usage(wire::JobId{1});
    return usage && usage->resident_frames == 0 && usage->stored_pages == 2;
  }));
  daemon.device->hold_decommit = false;
  daemon.Settle();
  last.second->StepOk(2);
  shadow.Step(2);
  last.second->ExpectParams(shadow);
}

TEST(Extents, AreDroppedBehindHints) {
  InProcessDaemon daemon;
  auto client = daemon.Open("job");
  RawTrainer trainer(*client, {20'000});
  ASSERT_TRUE(trainer.Create().ok());
  client->Push(RawClient::RecordOf(wire::Op::kPrefetch, wire::PrefetchBody{trainer.extent(), 0, 0}));
  client->Push(RawClient::RecordOf(wire::Op::kPhase, wire::PhaseBody{}));
  const wire::DropExtentBody drop{trainer.extent()};
  const Reply reply = client->Ask(wire::MessageType::kDropExtent, drop);
  EXPECT_TRUE(reply.ok()) << reply.text();
  daemon.Settle();
  daemon.CheckInvariants();
}

TEST(Extents, ForeignOnesAreNotDropped) {
  InProcessDaemon daemon;
  auto owner = daemon.Open("job");
  auto other = daemon.Open("job", 1);
  RawTrainer trainer(*owner, {20'000});
  ASSERT_TRUE(trainer.Create().ok());
  EXPECT_EQ(other->Ask(wire::MessageType::kDropExtent, wire::DropExtentBody{trainer.extent()}).code(),
            Code::kNotFound);
  trainer.StepOk(1);
}

TEST(Quotas, HostBytesAreRefusedWithTheBytes) {
  InProcessDaemon daemon;
  auto client = daemon.Connect();
  wire::HelloBody hello = RawClient::HelloBodyOf("job");
  hello.host_quota_bytes = 20 * kTestPageBytes;
  ASSERT_TRUE(client->Hello(hello).ok());
  RawBuffer slab = client->MakeBuffer(10 * kTestPageBytes);
  const Reply reply =
      client->Ask(wire::MessageType::kCreateBuffer, wire::CreateBufferBody{11 * kTestPageBytes});
  EXPECT_EQ(reply.code(), Code::kQuotaExceeded);
  EXPECT_THAT(reply.text(), HasSubstr(std::to_string(11 * kTestPageBytes)));
  EXPECT_THAT(reply.text(), HasSubstr(std::to_string(10 * kTestPageBytes)));
  // 6144 elements a page: 11 pages of states.
  const Reply arena = client->CreateArena({}, {11 * 6144}, slab);
  EXPECT_EQ(arena.code(), Code::kQuotaExceeded) << arena.text();
  EXPECT_TRUE(client->CreateArena({}, {10 * 6144}, slab).ok());
  EXPECT_TRUE(client->Ask(wire::MessageType::kReleaseBuffer, wire::ReleaseBufferBody{slab.id}).ok());
}

TEST(Quotas, TheHostBudgetIsRefusedWithTheBytes) {
  InProcessDaemon daemon;
  auto client = daemon.Open("job");
  RawBuffer slab = client->MakeBuffer(56 * kTestPageBytes);
  const Reply reply = client->CreateArena({}, {201 * 6144}, slab);
  EXPECT_EQ(reply.code(), Code::kBudgetExceeded);
  EXPECT_THAT(reply.text(), HasSubstr(std::to_string(201 * kTestPageBytes)));
  EXPECT_THAT(reply.text(), HasSubstr(std::to_string(200 * kTestPageBytes)));
  EXPECT_TRUE(client->CreateArena({}, {200 * 6144}, slab).ok());
}

TEST(Quotas, DeviceBytesOfPagesThatStayAreRefusedWithTheBytes) {
  InProcessDaemon daemon;
  auto client = daemon.Open("job");
  RawTrainer trainer(*client, {40 * 6144});
  wire::CreateArenaBody body;
  body.evictable = 0;
  const Reply reply = trainer.Create(body);
  EXPECT_EQ(reply.code(), Code::kBudgetExceeded);
  EXPECT_THAT(reply.text(), HasSubstr("bytes"));
  EXPECT_TRUE(trainer.Create().ok()) << "the same, paged";
}

TEST(Quotas, ADeviceQuotaUnderOneWindowIsRefused) {
  InProcessDaemon daemon;
  auto client = daemon.Connect();
  wire::HelloBody hello = RawClient::HelloBodyOf("job");
  hello.device_quota_bytes = kTestPageBytes;
  const Reply reply = client->Hello(hello);
  EXPECT_EQ(reply.code(), Code::kInvalidArgument);
  EXPECT_THAT(reply.text(), HasSubstr("window"));
  EXPECT_EQ(daemon.jobs(), 0U);
}

TEST(Quotas, ABudgetUnderOneWindowTakesNoJob) {
  daemon::Settings settings = TestSettings();
  settings.pager.device_frames = 1;
  InProcessDaemon daemon(settings);
  auto client = daemon.Connect();
  const Reply reply = client->Hello(RawClient::HelloBodyOf("job"));
  EXPECT_EQ(reply.code(), Code::kBudgetExceeded);
  EXPECT_THAT(reply.text(), HasSubstr("bytes"));
  EXPECT_EQ(daemon.jobs(), 0U);
}

TEST(Quotas, EveryJobKeepsOneWindow) {
  InProcessDaemon daemon;  // 16 frames, windows of 2
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 8; ++i) clients.push_back(daemon.Open("job" + std::to_string(i)));
  auto ninth = daemon.Connect();
  EXPECT_EQ(ninth->Hello(RawClient::HelloBodyOf("ninth")).code(), Code::kBudgetExceeded);
}

TEST(Quotas, ADeviceQuotaIsNeverExceeded) {
  InProcessDaemon daemon;
  auto client = daemon.Connect();
  wire::HelloBody hello = RawClient::HelloBodyOf("job");
  hello.device_quota_bytes = 5 * kTestPageBytes;
  ASSERT_TRUE(client->Hello(hello).ok());
  RawTrainer trainer(*client, {20 * 6144});
  ASSERT_TRUE(trainer.Create().ok());
  ShadowArena shadow = trainer.Shadow();
  std::uint64_t most = 0;
  for (std::uint64_t step = 1; step <= 4; ++step) {
    client->Push(trainer.Prepare(step));
    std::optional<wire::CompletionRecord> done;
    ASSERT_TRUE(daemon.TurnUntil([&] {
      most = std::max(most, daemon.core().pager.Usage({1})->resident_frames);
      return (done = client->Pop()).has_value();
    }));
    EXPECT_EQ(RawClient::CodeOf(*done), Code::kOk);
    shadow.Step(step);
  }
  EXPECT_LE(most, 5U);
  EXPECT_GE(most, 2U);
  trainer.ExpectParams(shadow);
}

}  // namespace
}  // namespace bitpager::testing
