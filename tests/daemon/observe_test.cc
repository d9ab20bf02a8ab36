// What the daemon tells of itself: figures that add up at every sample, counts that outlive their jobs,
// events. In-process daemon.
#include "daemon/observe.h"

#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <numeric>
#include <random>

#include "tests/support/in_process_daemon.h"
#include "tests/support/raw_trainer.h"

namespace bitpager::testing {
namespace {

using daemon::DeviceSnapshot;
using daemon::JobSnapshot;
using daemon::PastJobSnapshot;
using daemon::Snapshot;
using paging::ByReason;
using paging::Reason;

std::uint64_t Of(const ByReason& counts, Reason reason) {
  return counts[static_cast<std::size_t>(reason)];
}
std::uint64_t SumOf(const ByReason& counts) {
  return std::accumulate(counts.begin(), counts.end(), std::uint64_t{0});
}
void Add(ByReason& to, const ByReason& more) {
  for (std::size_t i = 0; i < to.size(); ++i) to[i] += more[i];
}

// Buffers count against the host budget, and are not what is tested.
daemon::Settings Roomy() {
  daemon::Settings settings = TestSettings();
  settings.host_budget_bytes = std::uint64_t{1} << 30;
  return settings;
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

wire::EvictBody EvictOf(const std::string& job) {
  wire::EvictBody body;
  wire::CopyText(body.job, job);
  return body;
}
wire::LimitBody LimitOf(const std::string& job, std::uint64_t device_bytes) {
  wire::LimitBody body;
  wire::CopyText(body.job, job);
  body.device_quota_bytes = device_bytes;
  return body;
}

class Load {
 public:
  explicit Load(std::uint64_t seed) : daemon(Roomy()), sampler(daemon), rng_(seed) {}

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
  InProcessDaemon daemon(Roomy());
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
  InProcessDaemon daemon(Roomy());
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

TEST(PastJobs, GoOnCountingUnderTheirName) {
  InProcessDaemon daemon(Roomy());
  for (int run = 0; run < 3; ++run) {
    auto client = daemon.Open("llm");
    RawTrainer trainer(*client, {20 * 6144});
    ASSERT_TRUE(trainer.Create().ok());
    for (std::uint64_t step = 1; step <= 4; ++step) trainer.StepOk(step);
    client->HangUp();
    daemon.Settle();
  }
  const Snapshot s = daemon::Observe(daemon.core());
  ASSERT_EQ(s.past_jobs.size(), 1U);
  const PastJobSnapshot& past = s.past_jobs[0];
  EXPECT_EQ(past.name, "llm");
  EXPECT_EQ(past.uid, 1000U);
  EXPECT_EQ(past.device, "cpu-0");
  EXPECT_EQ(past.jobs, 3U);
  EXPECT_EQ(past.steps, 12U);
  EXPECT_EQ(s.totals.steps, 12U);
  EXPECT_GT(past.faults, 0U);
  EXPECT_GT(SumOf(past.moved_by_reason.to_device), 0U);
  EXPECT_EQ(s.totals.loaded_bytes, SumOf(past.moved_by_reason.to_device));
  EXPECT_GT(Of(past.evictions_by_reason, Reason::kClosing), 0U);
}

TEST(PastJobs, OldNamesFoldIntoOneThatLosesNothing) {
  daemon::PastJobs past;
  constexpr std::uint64_t kJobs = 200;
  for (std::uint64_t i = 1; i <= kJobs; ++i) {
    past.Leave({i}, {"job" + std::to_string(i), 1000, {i, 1, 2, 3}, {}});
    EXPECT_EQ(past.ending().size(), 1U);
    paging::EndedJob ended{{i}, {}};
    ended.usage.traffic.evicted[6] = i;
    past.Ended(ended);
    EXPECT_TRUE(past.ending().empty());
  }
  EXPECT_EQ(past.past().size(), daemon::PastJobs::kNames + 1);
  EXPECT_EQ(past.past().front().name, "");
  EXPECT_EQ(past.past().front().jobs, kJobs - daemon::PastJobs::kNames);
  EXPECT_EQ(past.past().back().name, "job200");
  std::uint64_t steps = 0, evicted = 0, jobs = 0;
  for (const daemon::PastJob& one : past.past()) {
    steps += one.counters.steps;
    evicted += one.traffic.evicted[6];
    jobs += one.jobs;
  }
  EXPECT_EQ(steps, kJobs * (kJobs + 1) / 2);
  EXPECT_EQ(evicted, steps);
  EXPECT_EQ(jobs, kJobs);
  past.Leave({kJobs + 1}, {"job150", 1000, {}, {}});
  past.Ended({{kJobs + 1}, {}});
  EXPECT_EQ(past.past().size(), daemon::PastJobs::kNames + 1) << "a name that is known takes no new entry";
  EXPECT_EQ(past.past().back().name, "job150");
  past.Leave({kJobs + 2}, {"job150", 2000, {}, {}});
  past.Ended({{kJobs + 2}, {}});
  EXPECT_EQ(past.past().back().uid, 2000U) << "another user's is another";
  past.Ended({{77777}, {}});
}

TEST(Faults, AreWaitsForPagesThatWereNotThere) {
  InProcessDaemon daemon(Roomy());
  auto client = daemon.Open("job");
  RawTrainer small(*client, {4 * 6144});
  ASSERT_TRUE(small.Create().ok());
  small.StepOk(1);
  const std::uint64_t first = daemon::Observe(daemon.core()).totals.faults;
  EXPECT_GT(first, 0U);
  for (std::uint64_t step = 2; step <= 6; ++step) small.StepOk(step);
  EXPECT_EQ(daemon::Observe(daemon.core()).totals.faults, first) << "everything is resident";
  auto line = daemon.Connect();
  ASSERT_TRUE(line->Ask(wire::MessageType::kEvict, EvictOf("job")).ok());
  daemon.Settle();
  small.StepOk(7);
  const Snapshot s = daemon::Observe(daemon.core());
  EXPECT_GT(s.totals.faults, first);
  EXPECT_EQ(s.jobs[0].faults, s.totals.faults);
  EXPECT_EQ(s.devices[0].histograms.step.count, 7U);
  EXPECT_EQ(s.devices[0].histograms.stall.count, 7U);
}

TEST(Saved, IsWhatOthersTakeLessWhatWeTake) {
  InProcessDaemon daemon(Roomy());
  auto client = daemon.Open("job");
  RawTrainer adam(*client, {8 * 6144});
  ASSERT_TRUE(adam.Create().ok());
  EXPECT_EQ(daemon::Observe(daemon.core()).jobs[0].saved_bytes.states_32bit,
            8 * 6144 * 8 - 8 * kTestPageBytes);
  auto other = daemon.Open("tiny");
  RawTrainer lion(*other, {10}, wire::Rule::kLion);
  ASSERT_TRUE(lion.Create().ok());
  EXPECT_EQ(daemon::Observe(daemon.core()).jobs[1].saved_bytes.states_32bit, 0U)
      << "a page for ten elements saves nothing";
  wire::CreateWeightBody weight;
  weight.type = wire::QuantType::kNF4;
  weight.blocksize = 64;
  weight.elements = 1 << 20;
  const Reply made = other->Ask(wire::MessageType::kCreateWeight, weight);
  ASSERT_TRUE(made.ok()) << made.text();
  EXPECT_EQ(daemon::Observe(daemon.core()).jobs[1].saved_bytes.weights_16bit,
            (2U << 20) - made.value(1) * kTestPageBytes);
}

TEST(PageMap, CountsEveryPageOfEveryJobInSeparateCells) {
  InProcessDaemon daemon(Roomy());
  std::vector<std::unique_ptr<RawClient>> clients;
  std::vector<std::unique_ptr<RawTrainer>> trainers;
  const std::vector<std::uint64_t> pages = {40, 7, 90};
  for (std::size_t i = 0; i < pages.size(); ++i) {
    clients.push_back(daemon.Open("job" + std::to_string(i)));
    trainers.push_back(
        std::make_unique<RawTrainer>(*clients.back(), std::vector<std::uint64_t>{pages[i] * 6144}));
    ASSERT_TRUE(trainers.back()->Create().ok());
    trainers.back()->StepOk(1);
  }
  auto idle = daemon.Open("idle");
  daemon.Settle();
  for (const std::uint64_t cells : {1U, 3U, 5U, 64U, 1024U}) {
    const daemon::DevicePages map = daemon::ObservePages(daemon.core(), cells);
    EXPECT_EQ(map.pages, 137U);
    EXPECT_EQ(map.jobs, (std::vector<std::string>{"job0", "job1", "job2"}));
    EXPECT_LE(map.cells.size(), std::max<std::uint64_t>(cells, pages.size()));
    std::vector<std::uint64_t> seen(pages.size());
    std::uint64_t resident = 0;
    std::uint32_t job = 0;
    for (const daemon::PageCell& cell : map.cells) {
      EXPECT_GE(cell.job, job) << "in order of jobs";
      job = cell.job;
      const std::uint64_t there = cell.counts.resident + cell.counts.streaming + cell.counts.host;
      EXPECT_LE(there, map.pages_per_cell);
      seen[job] += there;
      resident += cell.counts.resident;
    }
    EXPECT_EQ(seen, pages) << "all were written, so each is somewhere";
    EXPECT_EQ(resident, daemon.core().pager.Usage().used_frames);
  }
}

// ---- events

class Told : public ::testing::Test {
 protected:
  Told() : client_(daemon_.OpenPatient("job")), trainer_(*client_, {8 * 6144}) {
    EXPECT_TRUE(trainer_.Create().ok());
    trainer_.StepOk(1);
    daemon_.Settle();
    daemon_.notices.clear();
  }
  std::vector<daemon::Notice> Named(const std::string& name) {
    std::vector<daemon::Notice> out;
    for (const daemon::Notice& notice : daemon_.notices) {
      if (notice.name == name) out.push_back(notice);
    }
    return out;
  }
  InProcessDaemon daemon_{Roomy()};
  std::unique_ptr<RawClient> client_;
  RawTrainer trainer_;
};

TEST_F(Told, ABurstOfEvictionsIsOneEvent) {
  auto line = daemon_.Connect();
  ASSERT_TRUE(line->Ask(wire::MessageType::kEvict, EvictOf("job")).ok());
  daemon_.Settle();
  EXPECT_TRUE(Named("evict").empty()) << "it may go on";
  daemon_.clock.AdvanceMs(201);
  EXPECT_GT(daemon_.Turn(), 0);
  ASSERT_EQ(Named("evict").size(), 1U);
  EXPECT_EQ(Named("evict")[0].job, "job");
  EXPECT_EQ(Named("evict")[0].bytes, 8 * kTestPageBytes);
  EXPECT_EQ(Named("evict")[0].text, "command");
  EXPECT_EQ(daemon::Observe(daemon_.core()).jobs[0].last_event, "evict");
  daemon_.clock.AdvanceMs(10'000);
  daemon_.Turn();
  EXPECT_EQ(Named("evict").size(), 1U);
}

TEST_F(Told, AStepsOwnStreamingIsNoEvent) {
  auto other = daemon_.OpenPatient("streams");
  RawTrainer wide(*other, {60 * 6144});
  ASSERT_TRUE(wide.Create().ok());
  for (std::uint64_t step = 1; step <= 2; ++step) wide.StepOk(step);
  daemon_.clock.AdvanceMs(6'000);
  daemon_.Turn();
  daemon_.notices.clear();
  const std::uint64_t before = SumOf(daemon::Observe(daemon_.core()).devices[0].evictions_by_reason);
  for (std::uint64_t step = 3; step <= 8; ++step) {
    wide.StepOk(step);
    daemon_.clock.AdvanceMs(1'000);
    daemon_.Turn();
  }
  EXPECT_GT(SumOf(daemon::Observe(daemon_.core()).devices[0].evictions_by_reason), before + 200);
  EXPECT_TRUE(Named("evict").empty());
}

TEST_F(Told, PagesThatALimitTakesAreAnEvent) {
  auto line = daemon_.Connect();
  ASSERT_TRUE(line->Ask(wire::MessageType::kLimit, LimitOf("job", 3 * kTestPageBytes)).ok());
  daemon_.Settle();
  daemon_.clock.AdvanceMs(201);
  daemon_.Turn();
  ASSERT_EQ(Named("limit").size(), 1U);
  EXPECT_EQ(Named("limit")[0].bytes, 3 * kTestPageBytes);
  ASSERT_EQ(Named("evict").size(), 1U);
  EXPECT_EQ(Named("evict")[0].bytes, 5 * kTestPageBytes);
  EXPECT_EQ(Named("evict")[0].text, "limit");
}

TEST_F(Told, NonFiniteGradientsNameStepAndTensorAndDoNotFlood) {
  for (std::uint64_t step = 2; step <= 40; ++step) {
    const wire::RequestRecord record = trainer_.Prepare(step);
    auto* grad = reinterpret_cast<float*>(trainer_.buffer().map.base() + trainer_.entry(0).grad.offset);
    grad[300] = std::numeric_limits<float>::quiet_NaN();
    client_->Push(record);
    ASSERT_TRUE(client_->Wait());
  }
  ASSERT_EQ(Named("nonfinite").size(), 1U);
  EXPECT_NE(Named("nonfinite")[0].text.find("1 blocks"), std::string::npos) << Named("nonfinite")[0].text;
  EXPECT_NE(Named("nonfinite")[0].text.find("tensor 0"), std::string::npos);
  daemon_.clock.AdvanceMs(1'001);
  const wire::RequestRecord record = trainer_.Prepare(41);
  reinterpret_cast<float*>(trainer_.buffer().map.base() + trainer_.entry(0).grad.offset)[300] =
      std::numeric_limits<float>::infinity();
  client_->Push(record);
  ASSERT_TRUE(client_->Wait());
  ASSERT_EQ(Named("nonfinite").size(), 2U);
  EXPECT_NE(Named("nonfinite")[1].text.find("38 times before"), std::string::npos)
      << Named("nonfinite")[1].text;
  EXPECT_EQ(daemon::Observe(daemon_.core()).jobs[0].nonfinite_blocks, 40U);
}

TEST_F(Told, ComingGoingAndRefusals) {
  auto second = daemon_.OpenPatient("second");
  ASSERT_EQ(Named("attach").size(), 1U);
  EXPECT_EQ(Named("attach")[0].text, "raw");
  EXPECT_EQ(second->Ask(wire::MessageType::kCreateBuffer, wire::CreateBufferBody{1U << 30}).code(),
            wire::Code::kBudgetExceeded);
  ASSERT_EQ(Named("error").size(), 1U);
  EXPECT_EQ(Named("error")[0].job, "second");
  EXPECT_TRUE(second->AskBare(wire::MessageType::kDetach).ok());
  daemon_.Settle();
  ASSERT_EQ(Named("detach").size(), 1U);
  client_->HangUp();
  daemon_.Settle();
  ASSERT_EQ(Named("killed").size(), 1U);
  EXPECT_EQ(Named("killed")[0].bytes, 8 * kTestPageBytes);
}

TEST(Pressure, RatioGrowsFromTwiceTheWatermarkToIt) {
  constexpr std::uint64_t kMiB = 1U << 20;
  EXPECT_EQ(daemon::Pressure::Ratio(4 * kMiB, kMiB), 0);
  EXPECT_EQ(daemon::Pressure::Ratio(2 * kMiB, kMiB), 0);
  EXPECT_EQ(daemon::Pressure::Ratio(kMiB + kMiB / 2, kMiB), 0.5);
  EXPECT_EQ(daemon::Pressure::Ratio(kMiB, kMiB), 1);
  EXPECT_EQ(daemon::Pressure::Ratio(0, kMiB), 1);
  EXPECT_EQ(daemon::Pressure::Ratio(0, 0), 0) << "nothing is kept free";
}

TEST(LinkMeter, TellsTheBestStretchAndNoMoreThanTheLinkDid) {
  daemon::LinkMeter meter;
  constexpr std::uint64_t kMiB = 1U << 20;
  meter.Issued(4 * kMiB, 1'000'000'000);
  meter.Ended(4 * kMiB, 1'001'000'000);
  EXPECT_EQ(meter.bytes_per_s(), 0U) << "too few bytes to tell";
  EXPECT_TRUE(meter.idle());
  meter.Issued(8 * kMiB, 2'000'000'000);
  meter.Issued(8 * kMiB, 0);
  meter.Ended(8 * kMiB, 2'004'000'000);
  EXPECT_EQ(meter.bytes_per_s(), 8 * kMiB * 250);
  meter.Ended(8 * kMiB, 2'006'000'000);
  const std::uint64_t best = meter.bytes_per_s();
  EXPECT_EQ(best, static_cast<std::uint64_t>(16.0 * kMiB * 1e9 / 6e6));
  meter.Issued(16 * kMiB, 3'000'000'000);
  meter.Ended(16 * kMiB, 3'100'000'000);
  EXPECT_EQ(meter.bytes_per_s(), best) << "a slow stretch says nothing of the link";
}

TEST(Histogram, CountsEachObservationOnce) {
  daemon::Histogram histogram;
  histogram.Observe(0);
  histogram.Observe(10'000);
  histogram.Observe(10'001);
  histogram.Observe(3'000'000);
  histogram.Observe(~std::uint64_t{0} >> 1);
  EXPECT_EQ(histogram.count(), 5U);
  EXPECT_EQ(histogram.counts().front(), 2U) << "a bound is in its bucket";
  EXPECT_EQ(histogram.counts()[1], 1U);
  EXPECT_EQ(histogram.counts()[8], 1U);
  EXPECT_EQ(histogram.counts().back(), 1U);
}

}  // namespace
}  // namespace bitpager::testing
