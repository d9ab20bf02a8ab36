// The daemon's figures of bytes and counts add up at every sample, whoever comes, goes and is killed.
// In-process daemon.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "daemon/observe.h"
#include "tests/support/commands.h"
#include "tests/support/in_process_daemon.h"
#include "tests/support/raw_trainer.h"

namespace bitpager::testing {
namespace {

using daemon::DeviceSnapshot;
using daemon::JobSnapshot;
using daemon::PastJobSnapshot;
using daemon::Snapshot;
using paging::ByReason;

void Add(ByReason& to, const ByReason& more) {
  for (std::size_t i = 0; i < to.size(); ++i) to[i] += more[i];
}

// Everything that only grows, of a device or of a name.
struct Counts {
  std::uint64_t steps = 0, faults = 0, stall_ns = 0, step_ns = 0, nonfinite_blocks = 0;
  ByReason evictions = {}, to_device = {}, to_host = {}, dropped = {};
  bool operator==(const Counts&) const = default;

  template <typename S>
  void Take(const S& s) {
    steps += s.steps;
    faults += s.faults;
    stall_ns += s.stall_ns;
    step_ns += s.step_ns;
    nonfinite_blocks += s.nonfinite_blocks;
    Add(evictions, s.evictions_by_reason);
    Add(to_device, s.moved_by_reason.to_device);
    Add(to_host, s.moved_by_reason.to_host);
    Add(dropped, s.moved_by_reason.dropped);
  }
  [[nodiscard]] bool NotBelow(const Counts& before) const {
    bool grows = steps >= before.steps && faults >= before.faults && stall_ns >= before.stall_ns &&
                 nonfinite_blocks >= before.nonfinite_blocks && step_ns >= before.step_ns;
    for (std::size_t i = 0; i < paging::kReasons; ++i) {
      grows = grows && evictions[i] >= before.evictions[i] && to_device[i] >= before.to_device[i] &&
              to_host[i] >= before.to_host[i] && dropped[i] >= before.dropped[i];
    }
    return grows;
  }
};

// Samples the daemon and checks each sample against itself and against the one before.
class Sampler {
 public:
  explicit Sampler(InProcessDaemon& daemon) : daemon_(daemon) {}

  void Sample() {
    const Snapshot s = daemon::Observe(daemon_.core());
    const DeviceSnapshot& device = s.devices.at(0);
    ExpectBytes(s, device);
    Counts all;
    std::map<std::string, Counts> by_name;
    for (const JobSnapshot& job : s.jobs) {
      all.Take(job);
      by_name[job.name].Take(job);
      ending += job.ending ? 1 : 0;
      ExpectPeaks(job);
    }
    for (const PastJobSnapshot& past : s.past_jobs) {
      all.Take(past);
      by_name[past.name].Take(past);
    }
    Counts told;
    told.Take(device);
    EXPECT_EQ(all, told) << "counts of jobs and past jobs are the device's";
    EXPECT_TRUE(told.NotBelow(before_)) << "a count fell";
    for (const auto& [name, counts] : before_by_name_) {
      EXPECT_TRUE(by_name[name].NotBelow(counts)) << "a count of " << name << " fell";
    }
    EXPECT_EQ(device.histograms.step.count, device.steps);
    EXPECT_NEAR(device.histograms.step.sum_s, static_cast<double>(device.step_ns) / 1e9, 1e-6);
    EXPECT_EQ(device.histograms.fault.count, device.faults);
    EXPECT_LE(device.histograms.request.count, device.requests);
    before_ = told;
    before_by_name_ = by_name;
    ++samples;
  }

  std::uint64_t samples = 0;
  std::uint64_t ending = 0;  // jobs seen that were gone but for frames on their way

 private:
  // A sample may miss a job's greatest moment, and never shows more than it.
  void ExpectPeaks(const JobSnapshot& job) {
    auto& [resident, host] = peaks_[job.id];
    resident = std::max({resident, job.resident_bytes, job.peak_resident_bytes});
    host = std::max({host, job.host_bytes, job.peak_host_bytes});
    EXPECT_EQ(job.peak_resident_bytes, resident) << "a peak fell, or is below what was there";
    EXPECT_EQ(job.peak_host_bytes, host);
  }
  void ExpectBytes(const Snapshot& s, const DeviceSnapshot& device) {
    std::uint64_t resident = 0, of_kinds = 0, host = 0, host_of_kinds = 0, leased = 0, dirty = 0, buffers = 0;
    for (const JobSnapshot& job : s.jobs) {
      resident += job.resident_bytes;
      of_kinds += job.resident_by_kind[0] + job.resident_by_kind[1];
      host += job.host_bytes;
      host_of_kinds += job.host_by_kind[0] + job.host_by_kind[1];
      leased += job.leased_bytes;
      dirty += job.dirty_bytes;
      buffers += job.buffer_bytes;
      std::uint64_t of_extents = 0;
      for (const daemon::ExtentSnapshot& extent : job.extents) of_extents += extent.resident_bytes;
      EXPECT_LE(of_extents, job.resident_bytes);
    }
    EXPECT_EQ(resident, device.used_bytes);
    EXPECT_EQ(of_kinds, device.used_bytes);
    EXPECT_EQ(host + buffers, device.host_committed_bytes);
    EXPECT_EQ(host_of_kinds, host);
    EXPECT_EQ(leased, device.leased_bytes);
    EXPECT_EQ(dirty, device.dirty_bytes);
    EXPECT_EQ(device.own_bytes, daemon_.core().pager.allocated_frames() * kTestPageBytes);
    EXPECT_LE(device.used_bytes, device.own_bytes);
  }

  InProcessDaemon& daemon_;
  Counts before_;
  std::map<std::uint64_t, std::pair<std::uint64_t, std::uint64_t>> peaks_;  // by job
  std::map<std::string, Counts> before_by_name_;
};

// One client with its arena, at work or not.
struct Client {
  std::unique_ptr<RawClient> line;
  std::unique_ptr<RawTrainer> trainer;
  std::uint64_t step = 0;
  std::uint64_t done = 0;
};

class Load {
 public:
  explicit Load(std::uint64_t seed) : daemon(RoomyTestSettings()), sampler(daemon), rng_(seed) {}

  // So many at least; more where the device is slow and little has come of them.
  void Run(int operations) {
    for (int i = 0; (i < operations || !DidMuch()) && i < 50 * operations; ++i) {
      if (::testing::Test::HasFailure()) break;
      const std::uint64_t what = Below(100);
      if (clients_.size() < 2 || (what < 6 && clients_.size() < 5)) {
        Join();
      } else if (what < 12) {
        Leave(Below(clients_.size()), what < 9);
      } else if (what < 40) {
        Step(clients_[Below(clients_.size())]);
      } else if (what < 44) {
        Ask(wire::MessageType::kEvict, EvictOf(NameOf(Below(3))));
      } else if (what < 47) {
        Ask(wire::MessageType::kLimit,
            LimitOf(NameOf(Below(3)), Below(2) == 0 ? ~0ULL : (4 + Below(8)) * kTestPageBytes));
      } else {
        Turn();
      }
    }
    while (!clients_.empty()) Leave(0, true);
    for (int i = 0; i < 200; ++i) Turn();
    daemon.Settle();
    sampler.Sample();
  }

  InProcessDaemon daemon;
  Sampler sampler;

 private:
  [[nodiscard]] bool DidMuch() {
    const Snapshot s = daemon::Observe(daemon.core());
    return s.devices[0].steps > 200 && s.devices[0].faults > 20 && s.totals.sessions_lost > 10 &&
           sampler.samples > 1500;
  }
  std::uint64_t Below(std::uint64_t n) { return rng_() % n; }
  static std::string NameOf(std::uint64_t n) { return "job" + std::to_string(n); }
  void Turn() {
    daemon.Turn();
    sampler.Sample();
  }
  void Join() {
    Client client;
    client.line = daemon.Connect();
    client.line->turn = [this] { Turn(); };
    if (!client.line->Hello(RawClient::HelloBodyOf(NameOf(Below(3)), ++rank_)).ok()) return;
    const std::uint64_t pages = 1 + Below(24);
    client.trainer = std::make_unique<RawTrainer>(*client.line, std::vector<std::uint64_t>{pages * 6144});
    if (!client.trainer->Create().ok()) return;
    clients_.push_back(std::move(client));
  }
  void Leave(std::size_t i, bool killed) {
    if (killed) {
      clients_[i].line->HangUp();
    } else {
      EXPECT_TRUE(clients_[i].line->AskBare(wire::MessageType::kDetach).ok());
    }
    clients_.erase(clients_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  // Pushed and not waited for, as far as its rings hold it.
  void Step(Client& client) {
    while (client.line->Pop()) ++client.done;
    if (client.line->failed() != wire::Code::kOk || client.step - client.done > 3) return;
    client.line->Push(client.trainer->Prepare(++client.step));
  }
  template <typename Body>
  void Ask(wire::MessageType type, const Body& body) {
    auto line = daemon.Connect();
    line->turn = [this] { Turn(); };
    static_cast<void>(line->Ask(type, body));
    line->HangUp();
  }

  std::mt19937_64 rng_;
  std::vector<Client> clients_;
  std::uint32_t rank_ = 0;
};

TEST(Figures, AddUpAtEverySampleWhileJobsComeAndGoAndAreKilled) {
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    Load load(seed);
    load.Run(1500);
    EXPECT_GT(load.sampler.samples, 1500U);
    const Snapshot s = daemon::Observe(load.daemon.core());
    EXPECT_GT(s.devices[0].steps, 100U) << "the load did nothing";
    EXPECT_GT(s.devices[0].faults, 10U);
    EXPECT_GT(s.totals.sessions_lost, 5U);
    EXPECT_TRUE(s.jobs.empty());
    EXPECT_FALSE(s.past_jobs.empty());
    EXPECT_EQ(s.devices[0].used_bytes, 0U);
    load.daemon.CheckInvariants();
  }
}

// Of an optimizer whose states have two widths: one step, two requests.
TEST(Figures, CountAStepInPartsOnce) {
  InProcessDaemon daemon(RoomyTestSettings());
  auto client = daemon.Open("job");
  RawTrainer first(*client, {6144});
  RawTrainer second(*client, {6144});
  ASSERT_TRUE(first.Create().ok());
  wire::CreateArenaBody other;
  wire::CopyText(other.optimizer, "other");
  ASSERT_TRUE(second.Create(other).ok());
  for (std::uint64_t step = 1; step <= 3; ++step) {
    first.StepOk(step);
    wire::RequestRecord record = second.Prepare(step);
    auto* const body = reinterpret_cast<wire::StepBody*>(record.body);
    body->continues = 1;
    client->Push(record);
    const auto done = client->Wait();
    ASSERT_TRUE(done && RawClient::CodeOf(*done) == wire::Code::kOk);
  }
  const Snapshot s = daemon::Observe(daemon.core());
  ASSERT_EQ(s.jobs.size(), 1U);
  EXPECT_EQ(s.jobs[0].steps, 3U);
  EXPECT_EQ(s.devices[0].steps, 3U);
}

TEST(Figures, CountFramesOfAJobThatIsGone) {
  InProcessDaemon daemon(RoomyTestSettings());
  Sampler sampler(daemon);
  auto client = daemon.Open("job");
  RawTrainer trainer(*client, {8 * 6144});
  ASSERT_TRUE(trainer.Create().ok());
  trainer.StepOk(1);
  daemon.Settle();
  auto line = daemon.Connect();
  daemon.device->hold_copies = true;
  ASSERT_TRUE(line->Ask(wire::MessageType::kEvict, EvictOf("job")).ok());
  daemon.Turn();
  client->HangUp();
  for (int i = 0; i < 5; ++i) {
    daemon.Turn();
    sampler.Sample();
  }
  const Snapshot s = daemon::Observe(daemon.core());
  ASSERT_EQ(s.jobs.size(), 1U);
  EXPECT_TRUE(s.jobs[0].ending);
  EXPECT_EQ(s.jobs[0].name, "job");
  EXPECT_EQ(s.jobs[0].resident_bytes, 8 * kTestPageBytes);
  EXPECT_EQ(s.jobs[0].steps, 1U);
  EXPECT_TRUE(s.past_jobs.empty());
  daemon.device->hold_copies = false;
  daemon.Settle();
  sampler.Sample();
  EXPECT_TRUE(daemon::Observe(daemon.core()).jobs.empty());
  EXPECT_GT(sampler.ending, 0U);
}

}  // namespace
}  // namespace bitpager::testing
