// Shared weights under random operations: numbers never change, figures always sum, nothing is left behind.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "client/wire/text.h"
#include "daemon/observe.h"
#include "tests/support/weight_loader.h"

namespace bitpager::testing {
namespace {

using wire::Code;
using wire::MessageType;
using wire::Op;

constexpr std::uint64_t kPages = 3;

// Jobs' figures sum to the device's exactly; of counters, with those of jobs that are gone.
void ExpectSums(const daemon::Snapshot& seen) {
  const daemon::DeviceSnapshot& device = seen.devices.at(0);
  std::uint64_t host = 0, resident = 0, leased = 0, dirty = 0;
  paging::ByReason evicted{}, loaded{};
  const auto add = [&](const auto& counted) {
    for (std::size_t i = 0; i < paging::kReasons; ++i) {
      evicted[i] += counted.evictions_by_reason[i];
      loaded[i] += counted.moved_by_reason.to_device[i];
    }
  };
  for (const daemon::JobSnapshot& job : seen.jobs) {
    host += job.host_bytes + job.buffer_bytes;
    resident += job.resident_bytes;
    leased += job.leased_bytes;
    dirty += job.dirty_bytes;
    EXPECT_EQ(job.host_by_kind[0] + job.host_by_kind[1], job.host_bytes);
    add(job);
  }
  for (const daemon::PastJobSnapshot& past : seen.past_jobs) add(past);
  EXPECT_EQ(host, device.host_committed_bytes);
  EXPECT_EQ(resident, device.used_bytes);
  EXPECT_EQ(leased, device.leased_bytes);
  EXPECT_EQ(dirty, device.dirty_bytes);
  EXPECT_EQ(evicted, device.evictions_by_reason);
  EXPECT_EQ(loaded, device.moved_by_reason.to_device);
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
    ExpectSums(seen);
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

}  // namespace
}  // namespace bitpager::testing
