// What residency and company may change, and what they may not: never the numbers, never beyond a quota.
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "tests/process/trainer.h"
#include "tests/support/daemon_process.h"

namespace bitpager::testing {
namespace {

constexpr std::uint64_t kPage = 16U << 10;
constexpr std::uint64_t kWindow = 4;

std::vector<std::string> Flags(std::uint64_t device_pages) {
  return {"--device-budget", std::to_string(device_pages * kPage),
          "--host-budget",   "64MiB",
          "--page-size",     "16KiB",
          "--window-pages",  std::to_string(kWindow),
          "--threads",       "1",
          "--poison-frames"};
}

struct Outcome {
  std::vector<float> params;
  std::vector<std::uint8_t> states;
  std::uint64_t pages = 0;
  std::uint64_t evicted = 0;          // pages that left the device
  std::vector<std::uint64_t> loaded;  // of each step
  std::vector<std::uint64_t> stored;
};

constexpr std::uint64_t kSteps = 20;

Outcome Train(wire::Rule rule, std::uint64_t device_pages) {
  Outcome out;
  DaemonProcess daemon(Flags(device_pages));
  auto session = daemon.Open("job");
  Trainer trainer(session, {300'001, 17, 70'000, 256, 9'000, 1, 120'000}, rule);
  const wire::Status made = trainer.Create();
  EXPECT_TRUE(made.ok()) << made.message();
  if (!made.ok()) return out;
  out.pages = trainer.arena().info().pages;
  for (std::uint64_t step = 1; step <= kSteps; ++step) {
    const wire::Status said = trainer.Step(step);
    EXPECT_TRUE(said.ok()) << said.message();
    out.loaded.push_back(trainer.result.loaded_pages);
    out.stored.push_back(trainer.result.stored_pages);
  }
  const auto usage = session->GetUsage();
  EXPECT_TRUE(usage.ok());
  out.evicted = (usage->stored_bytes + usage->dropped_bytes) / kPage;
  out.params = trainer.Params();
  auto states = trainer.States();
  EXPECT_TRUE(states.ok()) << states.status().message();
  if (states.ok()) out.states = *states;
  return out;
}

class Residency : public ::testing::TestWithParam<wire::Rule> {};

TEST_P(Residency, NeverChangesNumbers) {
  const Outcome whole = Train(GetParam(), 512);
  ASSERT_GT(whole.pages, 40U);
  EXPECT_EQ(whole.evicted, 0U);
  const std::uint64_t budgets[] = {whole.pages, whole.pages / 2, std::max(whole.pages / 10, kWindow),
                                   kWindow};
  for (const std::uint64_t budget : budgets) {
    SCOPED_TRACE(std::to_string(budget) + " of " + std::to_string(whole.pages) + " pages");
    const Outcome paged = Train(GetParam(), budget);
    ASSERT_EQ(paged.params.size(), whole.params.size());
    EXPECT_EQ(std::memcmp(paged.params.data(), whole.params.data(), whole.params.size() * 4), 0);
    EXPECT_EQ(paged.states, whole.states);
    if (budget >= whole.pages) continue;
    EXPECT_GT(paged.evicted, 0U);
    // With R of P pages resident a step moves P - R each way; the first two steps settle.
    for (std::size_t step = 2; step < kSteps; ++step) {
      EXPECT_LE(paged.loaded[step], whole.pages - budget + kWindow) << "step " << step + 1;
      EXPECT_LE(paged.stored[step], whole.pages - budget + kWindow) << "step " << step + 1;
      EXPECT_GE(paged.loaded[step] + kWindow, whole.pages - budget) << "or the budget was exceeded";
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Rules, Residency, ::testing::Values(wire::Rule::kAdam, wire::Rule::kLion),
                         [](const auto& rule) { return rule.param == wire::Rule::kAdam ? "Adam" : "Lion"; });

// Trains a job until told to stop.
int TrainUntil(const DaemonProcess& daemon, const std::string& job, std::uint64_t elements,
               std::uint64_t device_quota) {
  client::ConnectOptions options = daemon.ConnectOptionsOf(job);
  options.device_quota_bytes = device_quota;
  auto session = client::Session::Connect(options);
  if (!session.ok()) return 1;
  Trainer trainer(*session, {elements});
  if (!trainer.Create().ok()) return 2;
  for (std::uint64_t step = 1;; ++step) {
    if (!trainer.Step(step).ok()) return 3;
  }
}

TEST(Sharing, EqualJobsGetEqualShares) {
  DaemonProcess daemon(Flags(96));
  // 100 and 160 pages: each wants all of it.
  Child one([&] { return TrainUntil(daemon, "one", 100 * 6144, 0); });
  Child two([&] { return TrainUntil(daemon, "two", 160 * 6144, 0); });
  ASSERT_TRUE(WaitUntil(
      [&] {
        const auto status = daemon.Status();
        return status && status->jobs.size() == 2 && status->jobs[0].steps > 10 && status->jobs[1].steps > 10;
      },
      Millis(30'000)));
  double sum[2] = {0, 0};
  for (int look = 0; look < 50; ++look) {
    const auto status = daemon.Status();
    ASSERT_TRUE(status);
    for (std::size_t job = 0; job < 2; ++job) {
      sum[job] += static_cast<double>(status->jobs[job].resident_bytes);
      EXPECT_GE(status->jobs[job].resident_bytes, kWindow * kPage);
    }
    EXPECT_LE(status->devices.at(0).used_bytes, 96 * kPage);
    std::this_thread::sleep_for(Millis(10));
  }
  EXPECT_NEAR(sum[0] / sum[1], 1.0, 0.1);
}

TEST(Sharing, AQuotaIsNeverExceeded) {
  DaemonProcess daemon(Flags(96));
  constexpr std::uint64_t kQuota = 20 * kPage;
  Child limited([&] { return TrainUntil(daemon, "limited", 100 * 6144, kQuota); });
  Child other([&] { return TrainUntil(daemon, "other", 100 * 6144, 0); });
  ASSERT_TRUE(WaitUntil(
      [&] {
        const auto status = daemon.Status();
        return status && status->jobs.size() == 2 && status->jobs[0].steps > 5 && status->jobs[1].steps > 5;
      },
      Millis(30'000)));
  std::uint64_t most = 0;
  for (int look = 0; look < 200; ++look) {
    const auto status = daemon.Status();
    ASSERT_TRUE(status);
    for (const daemon::JobSnapshot& job : status->jobs) {
      if (job.name == "limited") most = std::max(most, job.resident_bytes);
    }
    std::this_thread::sleep_for(Millis(3));
  }
  EXPECT_LE(most, kQuota);
  EXPECT_GT(most, kQuota / 2);
}

}  // namespace
}  // namespace bitpager::testing
