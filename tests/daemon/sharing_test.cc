// Equal weights are held once: what is equal, who pays, what writing and dying change, and that no number
// ever changes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <random>

#include "daemon/observe.h"
#include "tests/support/in_process_daemon.h"
#include "tests/support/shadow_arena.h"

namespace bitpager::testing {
namespace {

using ::testing::HasSubstr;
using wire::Code;
using wire::MessageType;
using wire::Op;

constexpr std::uint64_t kElements = 60'000;  // three pages
constexpr std::uint64_t kPages = 3;

// A client with room for one tensor in and one out.
struct Loader {
  Loader(InProcessDaemon& daemon, const std::string& job, std::uint32_t rank = 0, std::uint32_t uid = 1000)
      : client(daemon.Open(job, rank, {uid, uid, 1})), memory(client->MakeBuffer(kElements * 8)) {}

  static wire::CreateWeightBody Plain() {
    wire::CreateWeightBody body;
    body.elements = kElements;
    return body;
  }
  std::uint64_t Create(const wire::CreateWeightBody& body = Plain()) {
    const Reply reply = client->Ask(MessageType::kCreateWeight, body);
    EXPECT_TRUE(reply.ok()) << reply.text();
    return reply.value(0);
  }
  void Write(std::uint64_t seed) const { FillGradient(memory.map.At<float>(0), kElements, seed, 1); }
  Code Fill(std::uint64_t weight) {
    wire::QuantizeBody body;
    body.extent = weight;
    body.in = memory.Place();
    const auto done = client->Run(Op::kQuantize, body);
    said = RawClient::TextIn(done);
    return RawClient::CodeOf(done);
  }
  std::uint64_t Load(std::uint64_t seed, const wire::CreateWeightBody& body = Plain()) {
    const std::uint64_t weight = Create(body);
    Write(seed);
    EXPECT_EQ(Fill(weight), Code::kOk) << said;
    return weight;
  }
  std::vector<float> Read(std::uint64_t weight, std::uint64_t elements = kElements) {
    wire::DequantizeBody body;
    body.extent = weight;
    body.out = memory.Place(kElements * 4);
    body.elements = elements;
    const auto done = client->Run(Op::kDequantize, body);
    EXPECT_EQ(RawClient::CodeOf(done), Code::kOk) << RawClient::TextIn(done);
    const float* const at = memory.map.At<float>(kElements * 4);
    return {at, at + elements};
  }
  void Drop(std::uint64_t weight) {
    EXPECT_TRUE(client->Ask(MessageType::kDropExtent, wire::DropExtentBody{weight}).ok());
  }
  wire::CompletionRecord Lease(std::uint64_t weight) {
    return client->Run(Op::kLease, wire::LeaseBody{weight});
  }

  std::unique_ptr<RawClient> client;
  RawBuffer memory;
  std::string said;
};

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
  a.Load(1);
  std::uint64_t pages = kPages;
  wire::CreateWeightBody other = Loader::Plain();
  other.type = wire::QuantType::kFP4;
  b.Load(1, other), pages += kPages;
  other = Loader::Plain();
  other.blocksize = 128;
  b.Load(1, other), pages += daemon_.core().registry.FindExtent({b.Load(1, other)})->pages;
  other = Loader::Plain();
  other.nested = 1;
  b.Load(1, other), pages += kPages;
  other = Loader::Plain();
  other.elements = kElements - 1;
  b.Load(1, other), pages += kPages;
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
  EXPECT_EQ(Held(), kPages);
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
  EXPECT_EQ((first ? b : a)->Read(first ? in_b : in_a), Alone(1));
  if (first) {
    EXPECT_TRUE(b->client->Pop()) << "its filling was completed";
  }
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

// Loads, reads, writes, leases, evictions, quotas and deaths in any order, at a budget of few windows.
class RandomSharing : public ::testing::TestWithParam<int> {};
TEST_P(RandomSharing, NeverChangesANumber) {
  constexpr std::uint64_t kContents = 3;
  daemon::Settings settings = TestSettings();
  settings.pager.device_frames = 20;
  std::vector<std::vector<float>> contents;
  InProcessDaemon alone([&] {
    daemon::Settings off = settings;
    off.share_weights = false;
    return off;
  }());
  {
    Loader loader(alone, "alone");
    for (std::uint64_t i = 0; i < kContents; ++i) contents.push_back(loader.Read(loader.Load(i)));
  }
  InProcessDaemon daemon(settings);
  std::mt19937_64 random(static_cast<std::uint64_t>(GetParam()));
  const auto below = [&](std::uint64_t n) { return random() % n; };
  struct Client {
    std::unique_ptr<Loader> loader;
    std::map<std::uint64_t, std::uint64_t> weights;  // its content
  };
  std::map<std::uint64_t, Client> clients;
  std::uint64_t least_held = ~std::uint64_t{0};
  for (int i = 0; i < 400 && !::testing::Test::HasFailure(); ++i) {
    const std::uint64_t number = below(4);
    Client& client = clients[number];
    if (client.loader == nullptr) {
      client.loader = std::make_unique<Loader>(daemon, "job" + std::to_string(number));
      continue;
    }
    Loader& loader = *client.loader;
    auto some = client.weights.begin();
    if (!client.weights.empty())
      std::advance(some, static_cast<std::ptrdiff_t>(below(client.weights.size())));
    const bool any = some != client.weights.end();
    const std::uint64_t what = below(20);
    const std::uint64_t content = below(kContents);
    if (what < 6 && client.weights.size() < 4) {
      client.weights[loader.Load(content)] = content;
    } else if (what < 12 && any) {
      EXPECT_EQ(loader.Read(some->first), contents[some->second]);
    } else if (what < 14 && any) {
      loader.Write(content);
      EXPECT_EQ(loader.Fill(some->first), Code::kOk) << loader.said;
      some->second = content;
    } else if (what < 15 && any) {
      loader.Drop(some->first);
      client.weights.erase(some);
    } else if (what < 17 && any) {
      static_cast<void>(loader.Lease(some->first));
    } else if (what < 18) {
      wire::EvictBody body;
      wire::CopyText(body.job, "job" + std::to_string(number));
      EXPECT_TRUE(loader.client->Ask(MessageType::kEvict, body).ok());
    } else if (what < 19 && any) {
      // Dies in the middle of something.
      loader.client->Push(RawClient::RecordOf(
          Op::kQuantize, wire::QuantizeBody{some->first, loader.memory.Place(), wire::DType::kF32, {}}));
      for (std::uint64_t turns = below(12); turns > 0; --turns) daemon.Turn();
      client = {};
    }
    daemon.CheckInvariants();
    const daemon::Snapshot seen = daemon::Observe(daemon.core());
    std::uint64_t host = 0;
    for (const daemon::JobSnapshot& job : seen.jobs) host += job.host_bytes + job.buffer_bytes;
    EXPECT_EQ(host, seen.host_committed_bytes);
    std::uint64_t weights = 0;
    for (const auto& [n, each] : clients) weights += each.weights.size();
    if (weights > 6) least_held = std::min(least_held, daemon.core().pager.used_host_frames());
  }
  EXPECT_LE(least_held, 4 * kPages) << "seven weights or more, of three contents";
  clients.clear();
  daemon.Settle();
  EXPECT_EQ(daemon.core().pager.used_host_frames(), 0U);
  EXPECT_EQ(daemon.jobs(), 0U);
}
INSTANTIATE_TEST_SUITE_P(Seeds, RandomSharing, ::testing::Range(1, 13));

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
