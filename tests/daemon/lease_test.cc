#include <gtest/gtest.h>

#include "kernels/local.h"
#include "tests/support/in_process_daemon.h"
#include "tests/support/raw_trainer.h"

namespace bitpager::testing {
namespace {

using wire::Code;
using wire::MessageType;
using wire::Op;

constexpr std::uint64_t kElements = 60'000;  // two pages and a bit

class LeaseTest : public ::testing::Test {
 protected:
  LeaseTest() : client_(daemon_.OpenPatient("job")), memory_(client_->MakeBuffer(1U << 20)) {
    extent_ = Make(*client_, memory_);
  }
  ~LeaseTest() override {
    daemon_.Settle();
    daemon_.CheckInvariants();
  }
  static std::uint64_t Make(RawClient& client, RawBuffer& memory) {
    wire::CreateWeightBody body;
    body.elements = kElements;
    const Reply reply = client.Ask(MessageType::kCreateWeight, body);
    EXPECT_TRUE(reply.ok()) << reply.text();
    static std::uint64_t made = 0;  // no two hold the same
    FillGradient(memory.map.At<float>(0), kElements, ++made, 1);
    wire::QuantizeBody quantize;
    quantize.extent = reply.value(0);
    quantize.in = memory.Place();
    EXPECT_EQ(RawClient::CodeOf(client.Run(Op::kQuantize, quantize)), Code::kOk);
    return reply.value(0);
  }
  wire::LeaseSlot& Slot(const wire::CompletionRecord& granted) {
    return client_->view().leases()[granted.values[0]];
  }
  void Evict() {
    wire::EvictBody body;
    wire::CopyText(body.job, "job");
    EXPECT_TRUE(client_->Ask(MessageType::kEvict, body).ok());
    daemon_.Turn();
  }
  // A read of the whole weight, as a stream that still works asks for it. The client's last request.
  wire::RequestRecord AskNotReady(std::uint64_t weight) {
    wire::DequantizeBody body;
    body.extent = weight;
    body.out = memory_.Place();
    body.elements = kElements;
    wire::RequestRecord record = RawClient::RecordOf(Op::kDequantize, body);
    record.ticket = client_->last_ticket() + 1;
    record.ready = record.ticket + 100;
    client_->PushRaw(record);
    return record;
  }
  std::uint64_t Leased() { return daemon_.core().pager.Usage({1})->leased_frames; }

  InProcessDaemon daemon_;
  std::unique_ptr<RawClient> client_;
  RawBuffer memory_;
  std::uint64_t extent_ = 0;
};

TEST_F(LeaseTest, GivesFramesThatHoldTheWeight) {
  const wire::CompletionRecord granted = client_->Run(Op::kLease, wire::LeaseBody{extent_});
  ASSERT_EQ(RawClient::CodeOf(granted), Code::kOk) << RawClient::TextIn(granted);
  const wire::LeaseSlot& slot = Slot(granted);
  EXPECT_EQ(slot.generation.load(), granted.values[1]);
  EXPECT_EQ(slot.extent, extent_);
  EXPECT_EQ(Leased(), slot.frames);
  const wire::LeaseFrame first = client_->view().lease_frames()[slot.first_frame];
  const Reply mapped = client_->Ask(MessageType::kMapDomain, wire::MapDomainBody{first.mapping});
  ASSERT_TRUE(mapped.ok()) << mapped.text();
  ASSERT_EQ(mapped.fds.size(), 1U);
  EXPECT_EQ(SharedMap(mapped.fds[0].get(), mapped.value(0), true).base(), nullptr) << "read-only";
  const SharedMap domain(mapped.fds[0].get(), mapped.value(0), false);
  ASSERT_NE(domain.base(), nullptr);
  std::vector<const std::byte*> pages;
  for (std::uint64_t i = 0; i < slot.frames; ++i) {
    pages.push_back(domain.base() + client_->view().lease_frames()[slot.first_frame + i].offset);
  }
  kernels::PagedWeight weight;
  weight.layout = *quant::MakeWeightLayout(64, false, kTestPageBytes);
  weight.pages = pages;
  weight.elements = kElements;
  std::vector<float> in_place(kElements);
  ASSERT_TRUE(kernels::DequantizePages(weight, 0, kElements, wire::DType::kF32, in_place.data()).ok());
  wire::DequantizeBody request;
  request.extent = extent_;
  request.out = memory_.Place();
  request.elements = kElements;
  ASSERT_EQ(RawClient::CodeOf(client_->Run(Op::kDequantize, request)), Code::kOk);
  EXPECT_EQ(std::memcmp(in_place.data(), memory_.map.base(), kElements * 4), 0);
}

// A stream that is not there yet: what it asked for comes meanwhile.
TEST_F(LeaseTest, PagesOfAReadComeBeforeItsStreamIsReady) {
  Evict();
  daemon_.Settle();
  const auto usage = [&] { return *daemon_.core().pager.Usage({1}); };
  ASSERT_EQ(usage().resident_frames, 0U);
  const wire::RequestRecord record = AskNotReady(extent_);
  daemon_.Settle();
  EXPECT_EQ(usage().resident_frames, usage().pages) << "they wait for the stream";
  const std::uint64_t loaded = usage().loaded_pages;
  client_->view().header().ready.word.store(record.ready);
  const auto done = client_->Wait();
  ASSERT_TRUE(done);
  EXPECT_EQ(RawClient::CodeOf(*done), Code::kOk);
  EXPECT_EQ(usage().loaded_pages, loaded);
}

TEST_F(LeaseTest, AReadThatWillBeRefusedIsToldWhenItsStreamIsReady) {
  const wire::RequestRecord record = AskNotReady(extent_ + 1000);
  daemon_.Settle();
  EXPECT_FALSE(client_->Pop());
  client_->view().header().ready.word.store(record.ready);
  const auto done = client_->Wait();
  ASSERT_TRUE(done);
  EXPECT_EQ(RawClient::CodeOf(*done), Code::kNotFound);
}

TEST_F(LeaseTest, IsKeptWhileItIsReadThoughRevoked) {
  const wire::CompletionRecord granted = client_->Run(Op::kLease, wire::LeaseBody{extent_});
  ASSERT_EQ(RawClient::CodeOf(granted), Code::kOk);
  wire::LeaseSlot& slot = Slot(granted);
  slot.in_use.store(granted.values[1]);
  EXPECT_EQ(slot.revoke.load(), 0U);
  Evict();
  for (int i = 0; i < 20; ++i) daemon_.Turn();
  EXPECT_GE(slot.revoke.load(), granted.values[1]);
  EXPECT_GT(Leased(), 0U);
  EXPECT_GT(daemon_.core().pager.Usage({1})->resident_frames, 0U) << "its frames may still be read";
  slot.in_use.store(0);
  daemon_.Settle();
  EXPECT_EQ(Leased(), 0U);
  EXPECT_EQ(daemon_.core().pager.Usage({1})->resident_frames, 0U);
}

TEST_F(LeaseTest, IsRefusedWhileItIsRevoked) {
  const wire::CompletionRecord granted = client_->Run(Op::kLease, wire::LeaseBody{extent_});
  ASSERT_EQ(RawClient::CodeOf(granted), Code::kOk);
  Slot(granted).in_use.store(granted.values[1]);
  Evict();
  EXPECT_EQ(RawClient::CodeOf(client_->Run(Op::kLease, wire::LeaseBody{extent_})), Code::kFull);
  Slot(granted).in_use.store(0);
  daemon_.Settle();
  EXPECT_EQ(RawClient::CodeOf(client_->Run(Op::kLease, wire::LeaseBody{extent_})), Code::kOk)
      << "loaded anew, then leased";
}

TEST_F(LeaseTest, EndsWithItsExtent) {
  const wire::CompletionRecord granted = client_->Run(Op::kLease, wire::LeaseBody{extent_});
  ASSERT_EQ(RawClient::CodeOf(granted), Code::kOk);
  Slot(granted).in_use.store(granted.values[1]);
  EXPECT_TRUE(client_->Ask(MessageType::kDropExtent, wire::DropExtentBody{extent_}).ok());
  daemon_.Settle();
  EXPECT_GE(Slot(granted).revoke.load(), granted.values[1]);
  EXPECT_EQ(Leased(), 0U);
  EXPECT_EQ(daemon_.core().pager.used_host_frames(), 0U);
}

TEST_F(LeaseTest, EndsWithItsSession) {
  const wire::CompletionRecord granted = client_->Run(Op::kLease, wire::LeaseBody{extent_});
  ASSERT_EQ(RawClient::CodeOf(granted), Code::kOk);
  Slot(granted).in_use.store(granted.values[1]);  // killed while it reads
  client_->HangUp();
  daemon_.Settle();
  EXPECT_EQ(daemon_.sessions(), 0U);
  EXPECT_EQ(daemon_.core().pager.used_host_frames(), 0U);
  EXPECT_EQ(daemon_.core().pager.free_frames(), 16U);
}

TEST_F(LeaseTest, BeyondTheReserveIsFull) {
  std::vector<std::uint64_t> extents{extent_};
  int full = 0;
  for (int i = 0; i < 8; ++i) extents.push_back(Make(*client_, memory_));
  for (const std::uint64_t extent : extents) {
    const Code code = RawClient::CodeOf(client_->Run(Op::kLease, wire::LeaseBody{extent}));
    EXPECT_TRUE(code == Code::kFull || code == Code::kNotResident || code == Code::kOk)
        << static_cast<int>(code);
    if (code != Code::kOk) ++full;
  }
  EXPECT_GT(full, 0);
  EXPECT_LE(Leased(), 14U) << "one window of the 16 frames is never leased";
  // A request still works beside the leases.
  wire::DequantizeBody request;
  request.extent = extents.back();
  request.out = memory_.Place();
  request.elements = kElements;
  EXPECT_EQ(RawClient::CodeOf(client_->Run(Op::kDequantize, request)), Code::kOk);
}

TEST_F(LeaseTest, GivesWayToAnotherJob) {
  const wire::CompletionRecord granted = client_->Run(Op::kLease, wire::LeaseBody{extent_});
  ASSERT_EQ(RawClient::CodeOf(granted), Code::kOk);
  auto other = daemon_.Open("other");
  RawTrainer trainer(*other, {30 * 6144});
  ASSERT_TRUE(trainer.Create().ok());
  ShadowArena shadow = trainer.Shadow();
  for (std::uint64_t step = 1; step <= 2; ++step) {
    trainer.StepOk(step);
    shadow.Step(step);
  }
  trainer.ExpectParams(shadow);
}

// A holder that was stopped in the middle of a read.
class OverdueLease : public LeaseTest {
 protected:
  OverdueLease() {
    // All but one window of the 16 frames: four weights of three pages.
    for (int i = 0; i < 3; ++i) extents_.push_back(Make(*client_, memory_));
    extents_.push_back(extent_);
    for (const std::uint64_t extent : extents_) {
      const wire::CompletionRecord granted = client_->Run(Op::kLease, wire::LeaseBody{extent});
      EXPECT_EQ(RawClient::CodeOf(granted), Code::kOk) << RawClient::TextIn(granted);
      Slot(granted).in_use.store(granted.values[1]);
      slots_.push_back(&Slot(granted));
    }
    EXPECT_EQ(Leased(), 12U);
    daemon_.CheckInvariants();
  }
  void LetGo() {
    for (wire::LeaseSlot* slot : slots_) slot->in_use.store(0);
  }
  void GoOverdue() {
    Evict();
    daemon_.clock.AdvanceMs(daemon_.core().settings.lease_return_ms - 1);
    daemon_.Turn();
    EXPECT_FALSE(daemon_.Noticed("error", "does not give"));
    daemon_.clock.AdvanceMs(2);
    EXPECT_GT(daemon_.Turn(), 0);
    daemon_.CheckInvariants();
  }
  std::vector<std::uint64_t> extents_;
  std::vector<wire::LeaseSlot*> slots_;
};

TEST_F(OverdueLease, IsNamedOnce) {
  GoOverdue();
  for (int i = 0; i < 10; ++i) {
    daemon_.clock.AdvanceMs(1'000);
    daemon_.Turn();
  }
  int notices = 0;
  for (const daemon::Notice& notice : daemon_.notices) {
    if (notice.name != "error") continue;
    ++notices;
    EXPECT_EQ(notice.job, "job");
    EXPECT_EQ(notice.bytes, 3 * kTestPageBytes);
    EXPECT_NE(notice.text.find("uid 1000"), std::string::npos) << notice.text;
  }
  EXPECT_EQ(notices, 4);
  EXPECT_EQ(Leased(), 12U) << "still counted";
}

TEST_F(OverdueLease, OthersWorkWithWhatIsLeft) {
  auto other = daemon_.OpenPatient("other");
  RawTrainer trainer(*other, {30 * 6144});
  ASSERT_TRUE(trainer.Create().ok());
  ShadowArena shadow = trainer.Shadow();
  other->Push(trainer.Prepare(1));  // more than is free: asks for the leases
  daemon_.Turn();
  daemon_.clock.AdvanceMs(60'000);
  std::optional<wire::CompletionRecord> done;
  ASSERT_TRUE(daemon_.TurnUntil([&] { return (done = other->Pop()).has_value(); }));
  EXPECT_EQ(RawClient::CodeOf(*done), Code::kOk) << RawClient::TextIn(*done);
  EXPECT_TRUE(daemon_.Noticed("error", "does not give"));
  shadow.Step(1);
  trainer.ExpectParams(shadow);
  daemon_.CheckInvariants();
  LetGo();
  daemon_.Settle();
  trainer.StepOk(2);
  shadow.Step(2);
  trainer.ExpectParams(shadow);
  EXPECT_LT(Leased(), 12U) << "what was asked for came back";
}

TEST_F(OverdueLease, IsToldToWhoeverDoesNotFitBesideIt) {
  GoOverdue();
  // 16 frames less 12: two windows.
  auto first = daemon_.OpenPatient("first");
  auto second = daemon_.OpenPatient("second");
  auto third = daemon_.Connect();
  const Reply refused = third->Hello(RawClient::HelloBodyOf("third"));
  EXPECT_EQ(refused.code(), Code::kBudgetExceeded);
  EXPECT_NE(refused.text().find("leases that are not given back (job 'job')"), std::string::npos)
      << refused.text();
  LetGo();
  daemon_.Settle();
  EXPECT_TRUE(third->Hello(RawClient::HelloBodyOf("third")).ok());
}

TEST_F(OverdueLease, RequestsThatCouldNeverStartAreRefusedWithTheReason) {
  daemon_.device->segments_left =
      2;  // besides what exists: frames that the budget has and the device has not
  auto other = daemon_.OpenPatient("other");
  RawTrainer trainer(*other, {30 * 6144});
  ASSERT_TRUE(trainer.Create().ok());
  GoOverdue();
  daemon_.device->segments_left = 0;
  std::optional<wire::CompletionRecord> done;
  other->Push(trainer.Prepare(1));
  ASSERT_TRUE(daemon_.TurnUntil([&] { return (done = other->Pop()).has_value(); }));
  EXPECT_EQ(RawClient::CodeOf(*done), Code::kOutOfMemory) << RawClient::TextIn(*done);
  EXPECT_NE(RawClient::TextIn(*done).find("does not give"), std::string::npos) << RawClient::TextIn(*done);
  LetGo();
  daemon_.device->segments_left = 100;
  daemon_.Settle();
  ShadowArena shadow = trainer.Shadow();
  trainer.StepOk(1);
  shadow.Step(1);
  trainer.ExpectParams(shadow);
}

TEST_F(LeaseTest, ADomainIsMappedByItsOwnUserOnly) {
  const wire::CompletionRecord granted = client_->Run(Op::kLease, wire::LeaseBody{extent_});
  ASSERT_EQ(RawClient::CodeOf(granted), Code::kOk);
  const std::uint64_t mapping = client_->view().lease_frames()[Slot(granted).first_frame].mapping;
  auto stranger = daemon_.Open("job", 0, {2000, 2000, 1});
  const Reply refused = stranger->Ask(MessageType::kMapDomain, wire::MapDomainBody{mapping});
  EXPECT_EQ(refused.code(), Code::kNotFound);
  EXPECT_TRUE(refused.fds.empty());
  EXPECT_EQ(RawClient::CodeOf(stranger->Run(Op::kLease, wire::LeaseBody{extent_})), Code::kNotFound);
  for (const std::uint64_t bad : {std::uint64_t{0}, std::uint64_t{1}, mapping + 1, ~std::uint64_t{0}}) {
    EXPECT_EQ(client_->Ask(MessageType::kMapDomain, wire::MapDomainBody{bad}).code(), Code::kNotFound);
  }
}

}  // namespace
}  // namespace bitpager::testing
