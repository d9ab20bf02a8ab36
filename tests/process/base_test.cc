// One frozen base in several processes: held once, whoever of them is killed and when; the same numbers at
// every budget.
#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "client/client.h"
#include "client/weight.h"
#include "tests/support/daemon_process.h"
#include "tests/support/shadow_arena.h"

namespace bitpager::testing {
namespace {

constexpr std::uint64_t kPage = 16U << 10;
constexpr std::uint64_t kWeights = 6;
constexpr std::uint64_t kElements = 150'000;  // 6 pages, 5 when double-quantized
constexpr std::uint64_t kBasePages = kWeights / 2 * (6 + 5);

std::vector<std::string> Flags(std::uint64_t device_pages, std::vector<std::string> more = {}) {
  std::vector<std::string> flags{"--device-budget", std::to_string(device_pages * kPage),
                                 "--host-budget",   "64MiB",
                                 "--page-size",     "16KiB",
                                 "--window-pages",  "4",
                                 "--threads",       "1",
                                 "--poison-frames"};
  flags.insert(flags.end(), more.begin(), more.end());
  return flags;
}

// A job's weights, all loaded, and what they decode to.
struct Model {
  std::shared_ptr<client::Session> session;
  std::vector<std::unique_ptr<client::Weight>> weights;

  bool Load(const DaemonProcess& daemon, const std::string& job, bool share = true) {
    auto opened = client::Session::Connect(daemon.ConnectOptionsOf(job));
    if (!opened.ok()) return false;
    session = std::move(*opened);
    std::vector<float> values(kElements);
    for (std::uint64_t i = 0; i < kWeights; ++i) {
      FillGradient(values.data(), kElements, i, 1);
      client::WeightOptions options;
      options.elements = kElements;
      options.nested = i % 2 == 1;
      options.share = share;
      auto weight = client::Weight::Create(*session, options);
      if (!weight.ok() || !(*weight)->Quantize(wire::DType::kF32, {values.data(), {}}).ok()) return false;
      weights.push_back(std::move(*weight));
    }
    return true;
  }
  std::vector<float> Read(client::Path path = client::Path::kAuto) {
    std::vector<float> all(kWeights * kElements);
    for (std::uint64_t i = 0; i < kWeights; ++i) {
      const wire::Status read =
          weights[i]->Dequantize(wire::DType::kF32, {all.data() + i * kElements, {}}, path);
      EXPECT_TRUE(read.ok()) << read.message();
    }
    return all;
  }
};

std::uint64_t HostBytes(const daemon::Snapshot& status) {
  std::uint64_t sum = 0;
  for (const daemon::JobSnapshot& job : status.jobs) sum += job.host_bytes;
  return sum;
}

TEST(Base, IsHeldOnceByThreeProcessesAtEveryBudget) {
  std::vector<float> alone;
  {
    DaemonProcess daemon(Flags(512));
    Model model;
    ASSERT_TRUE(model.Load(daemon, "alone", false));
    alone = model.Read();
  }
  for (const std::uint64_t budget : {std::uint64_t{512}, std::uint64_t{40}, std::uint64_t{20}}) {
    SCOPED_TRACE(budget);
    DaemonProcess daemon(Flags(budget));
    const auto holds = [&](const std::string& job) {
      return [&daemon, &alone, job] {
        Model model;
        if (!model.Load(daemon, job)) return 1;
        for (;;) {
          if (model.Read(client::Path::kRequest) != alone || model.Read() != alone) return 2;
        }
      };
    };
    Child one(holds("one"));
    Child two(holds("two"));
    Model model;
    ASSERT_TRUE(model.Load(daemon, "three"));
    for (int i = 0; i < 5; ++i) EXPECT_EQ(model.Read(), alone);
    ASSERT_TRUE(WaitUntil(
        [&] {
          const auto status = daemon.Status();
          return status && status->jobs.size() == 3 && HostBytes(*status) == kBasePages * kPage &&
                 status->jobs[0].shared_bytes == kBasePages * kPage &&
                 status->jobs[1].shared_bytes == kBasePages * kPage;
        },
        Millis(60'000)));
    const auto status = daemon.Status();
    ASSERT_TRUE(status);
    std::uint64_t resident = 0;
    for (const daemon::JobSnapshot& job : status->jobs) resident += job.resident_bytes;
    EXPECT_LE(resident, budget * kPage);
    one.Signal(SIGKILL);
    EXPECT_EQ(model.Read(), alone);
    EXPECT_FALSE(two.Wait(Millis(200))) << "the other goes on";
    two.Signal(SIGKILL);
    EXPECT_EQ(model.Read(), alone);
    ASSERT_TRUE(WaitUntil(
        [&] {
          const auto now = daemon.Status();
          return now && now->jobs.size() == 1 && now->jobs[0].shared_bytes == 0 &&
                 now->jobs[0].host_bytes == kBasePages * kPage;
        },
        Millis(10'000)));
  }
}

TEST(Base, SurvivesTheDeathOfItsFirstLoaderAtAnyMoment) {
  DaemonProcess daemon(Flags(40));
  std::vector<float> alone;
  {
    Model model;
    ASSERT_TRUE(model.Load(daemon, "alone", false));
    alone = model.Read();
  }
  for (int moment = 0; moment < 24; ++moment) {
    SCOPED_TRACE(moment);
    const auto loads = [&daemon](const std::string& job) {
      return [&daemon, job] {
        Model model;
        if (!model.Load(daemon, job)) return 1;
        for (;;) static_cast<void>(model.Read());
      };
    };
    Child first(loads("first"));
    Child second(loads("second"));
    std::this_thread::sleep_for(Millis(moment * 3 / 2));  // the moment is what is tested
    std::thread kills([&] {
      std::this_thread::sleep_for(Millis(moment / 2));
      first.Signal(SIGKILL);
    });
    Model model;
    const bool loaded = model.Load(daemon, "third");
    kills.join();
    ASSERT_TRUE(loaded);
    EXPECT_EQ(model.Read(client::Path::kRequest), alone);
    second.Signal(SIGKILL);
    EXPECT_EQ(model.Read(), alone);
  }
  EXPECT_TRUE(WaitUntil(
      [&] {
        const auto status = daemon.Status();
        return status && status->jobs.empty() && status->host_committed_bytes == 0;
      },
      Millis(10'000)));
}

TEST(Base, AWriterNeverChangesWhatOthersRead) {
  DaemonProcess daemon(Flags(40));
  Model mine;
  ASSERT_TRUE(mine.Load(daemon, "mine"));
  const std::vector<float> before = mine.Read();
  Child writer([&] {
    Model model;
    if (!model.Load(daemon, "writer")) return 1;
    std::vector<float> values(kElements);
    for (std::uint64_t round = 0; round < 20; ++round) {
      for (std::uint64_t i = 0; i < kWeights; ++i) {
        FillGradient(values.data(), kElements, i, 1 + round % 2);
        if (!model.weights[i]->Quantize(wire::DType::kF32, {values.data(), {}}).ok()) return 2;
        std::vector<float> read(kElements);
        if (!model.weights[i]->Dequantize(wire::DType::kF32, {read.data(), {}}).ok()) return 3;
        const bool same = std::memcmp(read.data(), before.data() + i * kElements, kElements * 4) == 0;
        if (same != (round % 2 == 0)) return 4;  // it reads what it wrote
      }
    }
    return 0;
  });
  std::optional<int> ended;
  while (!(ended = writer.Wait(Millis(1)))) ASSERT_EQ(mine.Read(), before);
  EXPECT_EQ(*ended, 0);
  EXPECT_EQ(mine.Read(), before);
}

TEST(Base, IsNotSharedWhereTheDaemonIsToldSo) {
  DaemonProcess daemon(Flags(512, {"--share-weights", "false"}));
  Model one;
  Model two;
  ASSERT_TRUE(one.Load(daemon, "one") && two.Load(daemon, "two"));
  const auto status = daemon.Status();
  ASSERT_TRUE(status);
  EXPECT_EQ(HostBytes(*status), 2 * kBasePages * kPage);
}

}  // namespace
}  // namespace bitpager::testing
