// What the daemon tells of itself: counts that outlive their jobs, faults, savings, the page map, and the
// parts that figures are made of. In-process daemon.
#include "daemon/observe.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/support/commands.h"
#include "tests/support/figures.h"
#include "tests/support/in_process_daemon.h"
#include "tests/support/raw_trainer.h"

namespace bitpager::testing {
namespace {

using daemon::PastJobSnapshot;
using daemon::Snapshot;
using paging::ByReason;
using paging::Reason;

std::uint64_t Of(const ByReason& counts, Reason reason) {
  return counts[static_cast<std::size_t>(reason)];
}

TEST(PastJobs, GoOnCountingUnderTheirName) {
  InProcessDaemon daemon(RoomyTestSettings());
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
  InProcessDaemon daemon(RoomyTestSettings());
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
  InProcessDaemon daemon(RoomyTestSettings());
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
  InProcessDaemon daemon(RoomyTestSettings());
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
