// Equal weights are held once: what is equal, who pays, what writing and dying change, and that no number
// ever changes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "daemon/observe.h"
#include "tests/support/weight_loader.h"

namespace bitpager::testing {
namespace {

using ::testing::HasSubstr;
using wire::Code;
using wire::MessageType;
using wire::Op;

constexpr std::uint64_t kElements = kLoaderElements;
constexpr std::uint64_t kPages = 3;

daemon::Settings Roomy() {
  daemon::Settings settings = TestSettings();
  settings.pager.device_frames = 64;
  return settings;
}

class SharedBase : public ::testing::Test {
 protected:
  explicit SharedBase(const daemon::Settings& settings = Roomy()) : daemon_(settings) {}
  ~SharedBase() override {
    daemon_.Settle();
    daemon_.CheckInvariants();
  }
  std::uint64_t Held() { return daemon_.core().pager.used_host_frames(); }
  const daemon::JobSnapshot& Job(const std::string& name) {
    snapshot_ = daemon::Observe(daemon_.core());
    for (const daemon::JobSnapshot& job : snapshot_.jobs) {
      if (job.name == name) return job;
    }
    ADD_FAILURE() << "no job " << name;
    return snapshot_.jobs.front();
  }
  // What a daemon that shares nothing makes of it.
  static std::vector<float> Alone(std::uint64_t seed, const wire::CreateWeightBody& body = Loader::Plain()) {
    daemon::Settings settings = Roomy();
    settings.share_weights = false;
    InProcessDaemon daemon(settings);
    Loader loader(daemon, "alone");
    return loader.Read(loader.Load(seed, body), body.elements);
  }

  InProcessDaemon daemon_;
  daemon::Snapshot snapshot_;
};

TEST_F(SharedBase, EqualWeightsOfTwoJobsAreHeldOnce) {
  Loader a(daemon_, "a");
  Loader b(daemon_, "b");
  const std::uint64_t in_a = a.Load(1);
  EXPECT_EQ(Job("a").shared_bytes, 0U);
  const std::uint64_t in_b = b.Load(1);
  EXPECT_NE(in_a, in_b);
  daemon_.Settle();
  EXPECT_EQ(Held(), kPages);
  EXPECT_EQ(Job("a").shared_bytes, kPages * kTestPageBytes);
  EXPECT_EQ(Job("b").shared_bytes, kPages * kTestPageBytes);
  EXPECT_EQ(Job("b").extents.at(0).uses, 2U);
  const std::uint64_t resident = Job("a").resident_bytes + Job("b").resident_bytes;
  EXPECT_EQ(resident, snapshot_.devices.at(0).used_bytes);
  EXPECT_EQ(Job("a").host_bytes + Job("b").host_bytes, kPages * kTestPageBytes);
  const std::vector<float> alone = Alone(1);
  EXPECT_EQ(a.Read(in_a), alone);
  EXPECT_EQ(b.Read(in_b), alone);
}

TEST_F(SharedBase, UsageTellsWhatIsShared) {
  Loader a(daemon_, "a");
  Loader b(daemon_, "b");
  a.Load(1), b.Load(1);
  const Reply usage = b.client->AskBare(MessageType::kUsage);
  ASSERT_TRUE(usage.ok());
  EXPECT_EQ(usage.value(static_cast<std::size_t>(wire::UsageValue::kSharedBytes)), kPages * kTestPageBytes);
  EXPECT_EQ(usage.value(static_cast<std::size_t>(wire::UsageValue::kWeightBytes)), kTestPageBytes)
      << "its part of three pages is one";
}

TEST_F(SharedBase, WhatDiffersAnywhereIsNotShared) {
  Loader a(daemon_, "a");
  Loader b(daemon_, "b");
  std::uint64_t pages = 0;
  const auto load = [&](Loader& loader, const wire::CreateWeightBody& body) {
    pages += daemon_.core().registry.FindExtent({loader.Load(1, body)})->pages;
  };
  load(a, Loader::Plain());
  wire::CreateWeightBody other = Loader::Plain();
  other.type = wire::QuantType::kFP4;
  load(b, other);
  other = Loader::Plain();
  other.blocksize = 128;
  load(b, other);
  other = Loader::Plain();
  other.nested = 1;
  load(b, other);
  other = Loader::Plain();
  other.elements = kElements - 1;
  load(b, other);
  // The same but for the very last element.
  const std::uint64_t weight = b.Create();
  b.Write(1);
  b.memory.map.At<float>(0)[kElements - 1] += 1.0F;
  EXPECT_EQ(b.Fill(weight), Code::kOk);
  pages += kPages;
  daemon_.Settle();
  EXPECT_EQ(Job("a").shared_bytes, 0U);
  EXPECT_EQ(Held(), pages);
  EXPECT_NE(b.Read(weight), Alone(1));
}

TEST_F(SharedBase, DoubleQuantizedWeightsAreSharedWithTheirOffset) {
  Loader a(daemon_, "a");
  Loader b(daemon_, "b");
  wire::CreateWeightBody nested = Loader::Plain();
  nested.nested = 1;
  const std::uint64_t in_a = a.Load(1, nested);
  const std::uint64_t in_b = b.Load(1, nested);
  EXPECT_EQ(Held(), 2U);
  EXPECT_EQ(Job("b").shared_bytes, 2 * kTestPageBytes);
  EXPECT_EQ(a.Read(in_a), b.Read(in_b));
  EXPECT_EQ(b.Read(in_b), Alone(1, nested));
}

TEST_F(SharedBase, ASmallWeightIsSharedToo) {
  Loader a(daemon_, "a");
  Loader b(daemon_, "b");
  wire::CreateWeightBody small = Loader::Plain();
  small.elements = 65;
  a.Load(1, small);
  const std::uint64_t in_b = b.Load(1, small);
  EXPECT_EQ(Held(), 1U);
  EXPECT_EQ(b.Read(in_b, 65), Alone(1, small));
}

TEST_F(SharedBase, UsersShareNothingWithEachOther) {
  Loader a(daemon_, "a");
  Loader stranger(daemon_, "b", 0, 1001);
  a.Load(1), stranger.Load(1);
  daemon_.Settle();
  EXPECT_EQ(Held(), 2 * kPages);
}

TEST_F(SharedBase, RanksOfOneJobAndOneSessionShareToo) {
  Loader a(daemon_, "a", 0);
  Loader rank(daemon_, "a", 1);
  const std::uint64_t one = a.Load(1);
  const std::uint64_t two = rank.Load(1);
  const std::uint64_t three = rank.Load(1);
  daemon_.Settle();
  EXPECT_EQ(Held(), kPages);
  EXPECT_EQ(Job("a").shared_bytes, kPages * kTestPageBytes);
  EXPECT_EQ(Job("a").resident_bytes, kPages * kTestPageBytes);
  // Each by a lease of its own, also in one session.
  for (const auto& [loader, weight] : {std::pair{&a, one}, {&rank, two}, {&rank, three}}) {
    const auto granted = loader->Lease(weight);
    ASSERT_EQ(RawClient::CodeOf(granted), Code::kOk);
    EXPECT_EQ(loader->client->view().leases()[granted.values[0]].extent, weight);
  }
  rank.Drop(two);
  EXPECT_EQ(rank.Read(three), Alone(1));
  EXPECT_EQ(RawClient::CodeOf(rank.Lease(three)), Code::kOk);
}

TEST_F(SharedBase, ImportedBytesEqualQuantizedOnes) {
  Loader a(daemon_, "a");
  Loader b(daemon_, "b");
  const std::uint64_t in_a = a.Load(1);
  RawBuffer planes = a.client->MakeBuffer(1U << 20);
  wire::PackedBody body;
  body.extent = in_a;
  body.packed = planes.Place();
  body.absmax = planes.Place(512U << 10);
  ASSERT_EQ(RawClient::CodeOf(a.client->Run(Op::kMovePacked, body)), Code::kOk);
  RawBuffer copy = b.client->MakeBuffer(1U << 20);
  std::memcpy(copy.map.base(), planes.map.base(), 1U << 20);
  body.extent = b.Create();
  body.packed = copy.Place();
  body.absmax = copy.Place(512U << 10);
  body.into_pages = 1;
  ASSERT_EQ(RawClient::CodeOf(b.client->Run(Op::kMovePacked, body)), Code::kOk);
  EXPECT_EQ(Held(), kPages);
  EXPECT_EQ(b.Read(body.extent), a.Read(in_a));
}

TEST_F(SharedBase, WritingTakesPagesOfItsOwn) {
  Loader a(daemon_, "a");
  Loader b(daemon_, "b");
  const std::uint64_t in_a = a.Load(1);
  const std::uint64_t in_b = b.Load(1);
  ASSERT_EQ(Held(), kPages);
  const auto lease = b.Lease(in_b);
  ASSERT_EQ(RawClient::CodeOf(lease), Code::kOk);
  b.Write(2);
  ASSERT_EQ(b.Fill(in_b), Code::kOk) << b.said;
  daemon_.Settle();
  EXPECT_EQ(Held(), 2 * kPages);
  EXPECT_EQ(Job("a").shared_bytes, 0U);
  EXPECT_EQ(a.Read(in_a), Alone(1));
  EXPECT_EQ(b.Read(in_b), Alone(2));
  const wire::LeaseSlot& slot = b.client->view().leases()[lease.values[0]];
  EXPECT_GE(slot.revoke.load(), lease.values[1]) << "it would show the old pages";
  b.Write(1);
  ASSERT_EQ(b.Fill(in_b), Code::kOk);
  EXPECT_EQ(Held(), kPages) << "the same again";
  a.Write(3);
  ASSERT_EQ(a.Fill(in_a), Code::kOk);
  EXPECT_EQ(b.Read(in_b), Alone(1)) << "the first loader's writing is no different";
}

TEST_F(SharedBase, CanBeTurnedOffForOneWeight) {
  Loader a(daemon_, "a");
  Loader b(daemon_, "b");
  wire::CreateWeightBody own = Loader::Plain();
  own.unshared = 1;
  a.Load(1), b.Load(1, own), b.Load(1, own);
  EXPECT_EQ(Held(), 3 * kPages);
  own.unshared = 2;
  EXPECT_EQ(b.client->Ask(MessageType::kCreateWeight, own).code(), Code::kInvalidArgument);
}

TEST_F(SharedBase, GoesWithItsLastUser) {
  auto a = std::make_unique<Loader>(daemon_, "a");
  auto b = std::make_unique<Loader>(daemon_, "b");
  auto c = std::make_unique<Loader>(daemon_, "c");
  a->Load(1), b->Load(1);
  const std::uint64_t in_c = c->Load(1);
  a.reset();
  daemon_.Settle();
  EXPECT_EQ(Held(), kPages);
  EXPECT_EQ(c->Read(in_c), Alone(1));
  b.reset();
  daemon_.Settle();
  EXPECT_EQ(Held(), kPages);
  EXPECT_EQ(Job("c").shared_bytes, 0U);
  EXPECT_EQ(Job("c").host_bytes, kPages * kTestPageBytes);
  c->Drop(in_c);
  daemon_.Settle();
  EXPECT_EQ(Held(), 0U);
}

TEST_F(SharedBase, ALoaderThatDiesWhileItFillsLeavesNothing) {
  auto a = std::make_unique<Loader>(daemon_, "a");
  const std::uint64_t in_a = a->Create();
  a->Write(1);
  daemon_.device->hold_compute = true;
  a->client->Push(RawClient::RecordOf(Op::kQuantize, wire::QuantizeBody{in_a, a->memory.Place(), {}, {}}));
  for (int i = 0; i < 5; ++i) daemon_.Turn();
  a.reset();
  for (int i = 0; i < 5; ++i) daemon_.Turn();
  daemon_.device->hold_compute = false;
  daemon_.Settle();
  EXPECT_EQ(Held(), 0U);
  Loader b(daemon_, "b");
  EXPECT_EQ(b.Read(b.Load(1)), Alone(1));
}

// The first loader, or the second, dies while its weight is hashed for the second's sake.
class Dying : public SharedBase, public ::testing::WithParamInterface<int> {};
TEST_P(Dying, WhileAWeightSettlesChangesNothingForOthers) {
  auto a = std::make_unique<Loader>(daemon_, "a");
  auto b = std::make_unique<Loader>(daemon_, "b");
  const std::uint64_t in_a = a->Load(1);
  const std::uint64_t in_b = b->Create();
  b->Write(1);
  b->client->Push(RawClient::RecordOf(Op::kQuantize, wire::QuantizeBody{in_b, b->memory.Place(), {}, {}}));
  // So many turns into it.
  for (int i = 0; i < GetParam() / 2; ++i) daemon_.Turn();
  const bool first = GetParam() % 2 == 0;
  (first ? a : b).reset();
  daemon_.Settle();
  EXPECT_EQ(Held(), kPages);
  if (first) {
    const auto filled = b->client->Pop();
    ASSERT_TRUE(filled) << "its filling was completed";
    EXPECT_EQ(RawClient::CodeOf(*filled), Code::kOk);
  }
  EXPECT_EQ((first ? b : a)->Read(first ? in_b : in_a), Alone(1));
  Loader c(daemon_, "c");
  c.Load(1);
  daemon_.Settle();
  EXPECT_EQ(Held(), kPages);
}
INSTANTIATE_TEST_SUITE_P(Turns, Dying, ::testing::Range(0, 40));

TEST_F(SharedBase, ALeaseOfAllOfThemIsOneOfThePages) {
  Loader a(daemon_, "a");
  Loader b(daemon_, "b");
  const std::uint64_t in_a = a.Load(1);
  const std::uint64_t in_b = b.Load(1);
  const auto by_a = a.Lease(in_a);
  const auto by_b = b.Lease(in_b);
  ASSERT_EQ(RawClient::CodeOf(by_a), Code::kOk);
  ASSERT_EQ(RawClient::CodeOf(by_b), Code::kOk);
  EXPECT_EQ(Job("a").leased_bytes + Job("b").leased_bytes, kPages * kTestPageBytes);
  const wire::LeaseSlot& slot_a = a.client->view().leases()[by_a.values[0]];
  const wire::LeaseSlot& slot_b = b.client->view().leases()[by_b.values[0]];
  for (std::uint64_t i = 0; i < kPages; ++i) {
    EXPECT_EQ(a.client->view().lease_frames()[slot_a.first_frame + i].offset,
              b.client->view().lease_frames()[slot_b.first_frame + i].offset);
  }
  b.Drop(in_b);
  daemon_.Settle();
  EXPECT_EQ(slot_a.revoke.load(), 0U) << "the other's lease goes on";
  EXPECT_EQ(Job("a").leased_bytes, kPages * kTestPageBytes);
}

TEST_F(SharedBase, IsMergedWhileTheFirstLoaderHasItLeased) {
  Loader a(daemon_, "a");
  Loader b(daemon_, "b");
  const std::uint64_t in_a = a.Load(1);
  const auto lease = a.Lease(in_a);
  ASSERT_EQ(RawClient::CodeOf(lease), Code::kOk);
  b.Load(1);
  EXPECT_EQ(Held(), kPages);
  EXPECT_EQ(a.client->view().leases()[lease.values[0]].revoke.load(), 0U);
}

class SharingOff : public SharedBase {
 protected:
  SharingOff() : SharedBase(Off()) {}
  static daemon::Settings Off() {
    daemon::Settings settings = Roomy();
    settings.share_weights = false;
    return settings;
  }
};
TEST_F(SharingOff, HoldsEachWeightForItself) {
  Loader a(daemon_, "a");
  Loader b(daemon_, "b");
  a.Load(1), b.Load(1);
  EXPECT_EQ(Held(), 2 * kPages);
  EXPECT_EQ(Job("b").shared_bytes, 0U);
}

// Host memory for one base of eight weights and one weight more, beside the clients' buffers.
class JustFits : public SharedBase {
 protected:
  static constexpr std::uint64_t kWeights = 8;
  JustFits() : SharedBase(Tight()) {}
  static daemon::Settings Tight() {
    daemon::Settings settings = TestSettings();
    settings.pager.host_frames = (kWeights + 1) * kPages;
    settings.host_budget_bytes = settings.pager.host_frames * kTestPageBytes + 2 * kElements * 8;
    return settings;
  }
};
TEST_F(JustFits, ASecondJobNeverHoldsMoreThanOneWeightTwice) {
  Loader a(daemon_, "a");
  Loader b(daemon_, "b");
  std::vector<std::uint64_t> weights;
  for (std::uint64_t i = 0; i < kWeights; ++i) a.Load(i);
  for (std::uint64_t i = 0; i < kWeights; ++i) weights.push_back(b.Load(i));
  EXPECT_EQ(Held(), kWeights * kPages);
  for (std::uint64_t i = 0; i < kWeights; ++i) EXPECT_EQ(b.Read(weights[i]), Alone(i));
}
TEST_F(JustFits, WritingThatHasNoRoomIsRefusedAndChangesNothing) {
  Loader a(daemon_, "a");
  Loader b(daemon_, "b");
  for (std::uint64_t i = 0; i < kWeights; ++i) a.Load(i);
  const std::uint64_t in_b = b.Load(0);
  b.Create();  // the room that was left
  b.Write(99);
  EXPECT_EQ(b.Fill(in_b), Code::kBudgetExceeded);
  EXPECT_THAT(b.said, HasSubstr("shared weight"));
  EXPECT_EQ(b.Read(in_b), Alone(0));
}

TEST(ContentHash, IsSha256) {
  // FIPS 180-4, "abc".
  daemon::ContentHash hash;
  const char text[] = {'a', 'b', 'c'};
  hash.Add(std::as_bytes(std::span(text)).first(1));
  hash.Add(std::as_bytes(std::span(text)).subspan(1));
  const daemon::Digest digest = hash.Finish();
  EXPECT_EQ(digest[0], 0xBA);
  EXPECT_EQ(digest[1], 0x78);
  EXPECT_EQ(digest[31], 0xAD);
}

}  // namespace
}  // namespace bitpager::testing
