// Recordings as replay reads them: the summary, the rebuilt trace, and files that are cut, wrong or hostile.
#include "tools/replay_main/recording.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "daemon/snapshot.h"
#include "tools/replay_main/simulate.h"
#include "tools/replay_main/summary.h"

namespace bitpager::replay {
namespace {

using daemon::ExtentSnapshot;
using daemon::JobSnapshot;
using daemon::Snapshot;
using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;
using wire::Code;

ExtentSnapshot Arena(std::uint64_t id, std::uint64_t pages, std::uint64_t step) {
  ExtentSnapshot extent;
  extent.id = id;
  extent.kind = "optimizer_state";
  extent.name = "adam";
  extent.pages = pages;
  extent.step = step;
  return extent;
}

JobSnapshot Job(std::uint64_t id, const std::string& name, std::vector<ExtentSnapshot> extents) {
  JobSnapshot job;
  job.id = id;
  job.name = name;
  job.device = "cpu-0";
  job.sessions = 1;
  job.extents = std::move(extents);
  for (const ExtentSnapshot& extent : job.extents) job.steps += extent.step;
  return job;
}

Snapshot Sample(std::uint64_t uptime_ms, std::vector<JobSnapshot> jobs) {
  Snapshot s;
  s.pid = 5;
  s.uptime_ms = uptime_ms;
  s.page_bytes = 4096;
  s.devices.resize(1);
  s.devices[0].uuid = "cpu-0";
  s.jobs = std::move(jobs);
  return s;
}

std::string StatusLine(const Snapshot& s) {
  return json{{"type", "status"},
              {"time_unix_ms", 1000 + s.uptime_ms},
              {"body", json::parse(daemon::ToJson(s))}}
             .dump() +
         "\n";
}

class RecordingFile : public testing::Test {
 protected:
  static constexpr const char* kHeader = "{\"bitpager_record\":1,\"started_unix_ms\":1000}\n";

  ~RecordingFile() override { std::remove(path_.c_str()); }
  wire::Result<Recording> Read(const std::string& text) {
    std::ofstream(path_, std::ios::binary) << text;
    return ReadRecording(path_);
  }
  static std::vector<std::uint32_t> ExtentsOf(const Trace& trace) {
    std::vector<std::uint32_t> out;
    for (const TraceRequest& request : trace.requests) out.push_back(request.extent);
    return out;
  }

  std::string path_ = testing::TempDir() + "/recording_test.jsonl";
};

TEST_F(RecordingFile, SumsUpEachJob) {
  Snapshot first = Sample(1000, {Job(1, "llm", {})});
  first.jobs[0].loaded_bytes = 1'000'000;  // before the recording: not its own
  first.jobs[0].evictions_by_reason[0] = 100;
  Snapshot second = Sample(2000, {Job(1, "llm", {}), Job(2, "late", {})});
  second.jobs[0].evictions_by_reason = {102, 0, 7, 0, 0, 0, 0};
  second.jobs[0].loaded_bytes = 1'004'096;
  second.jobs[0].stored_bytes = 8192;
  second.jobs[0].resident_bytes = 40960;
  second.jobs[0].stall_ns = 250'000'000;
  second.jobs[1].loaded_bytes = 4096;
  Snapshot third = Sample(3000, {Job(2, "late", {})});
  third.jobs[0].loaded_bytes = 12288;
  third.jobs[0].host_bytes = 777;
  auto recording = Read(kHeader + StatusLine(first) + StatusLine(second) +
                        "{\"type\":\"event\",\"time_unix_ms\":2500,\"body\":{\"name\":\"attach\"}}\n" +
                        "{\"type\":\"pages\",\"time_unix_ms\":2600,\"body\":{}}\n" +
                        "{\"type\":\"later\",\"time_unix_ms\":2600,\"body\":{}}\n" + StatusLine(third));
  ASSERT_TRUE(recording.ok()) << recording.status().message();
  EXPECT_EQ(recording->span_ms, 3000U);
  EXPECT_EQ(recording->statuses, 3U);
  EXPECT_EQ(recording->page_maps, 1U);
  EXPECT_EQ(recording->daemons, 1U);
  EXPECT_EQ(recording->events.at("attach"), 1U);
  ASSERT_THAT(recording->jobs, SizeIs(2));
  const JobSummary& late = recording->jobs[0];
  const JobSummary& llm = recording->jobs[1];
  EXPECT_EQ(llm.to_device_bytes, 4096U);
  EXPECT_EQ(llm.to_host_bytes, 8192U);
  EXPECT_EQ(llm.peak_resident_bytes, 40960U);
  EXPECT_DOUBLE_EQ(llm.stall_ratio(), 0.25);
  EXPECT_EQ(late.to_device_bytes, 12288U) << "a job that came counts from its start";
  EXPECT_EQ(late.peak_host_bytes, 777U);
  const std::string text = SummaryText(*recording);
  EXPECT_THAT(text, AllOf(HasSubstr("3.0 s"), HasSubstr("3 samples"), HasSubstr("llm"), HasSubstr("25.0%"),
                          HasSubstr("pages of llm that left the device: demand 2, share 7"),
                          HasSubstr("events: attach 1")));
  EXPECT_EQ(SummaryJson(*recording)["jobs"][1]["to_device_bytes"], 4096);
}

TEST_F(RecordingFile, AnotherDaemonStartsAnew) {
  Snapshot first = Sample(5000, {Job(1, "llm", {Arena(3, 4, 10)})});
  Snapshot second = Sample(100, {Job(1, "llm", {Arena(3, 4, 10)})});
  Snapshot third = Sample(1100, {Job(1, "llm", {Arena(3, 4, 12)})});
  auto recording = Read(kHeader + StatusLine(first) + StatusLine(second) + StatusLine(third));
  ASSERT_TRUE(recording.ok());
  EXPECT_EQ(recording->daemons, 2U);
  EXPECT_EQ(recording->jobs[0].steps, 2U);
  EXPECT_THAT(recording->traces[0].requests, SizeIs(2));
  EXPECT_THAT(SummaryText(*recording), HasSubstr("started 1 times meanwhile"));
}

TEST_F(RecordingFile, RebuildsRequestsInProportion) {
  Snapshot first = Sample(1000, {Job(1, "a", {Arena(3, 8, 0), Arena(4, 2, 0)})});
  Snapshot second = Sample(2000, {Job(1, "a", {Arena(3, 8, 4), Arena(4, 2, 2)})});
  auto recording = Read(kHeader + StatusLine(first) + StatusLine(second));
  ASSERT_TRUE(recording.ok());
  ASSERT_THAT(recording->traces, SizeIs(1));
  const Trace& trace = recording->traces[0];
  EXPECT_EQ(trace.name, "recording_test.jsonl");
  EXPECT_EQ(trace.page_bytes, 4096U);
  EXPECT_EQ(trace.pages(), 10U);
  EXPECT_EQ(ExtentsOf(trace), (std::vector<std::uint32_t>{0, 1, 0, 0, 1, 0}));
  EXPECT_EQ(trace.requests[1].count, 2U);
  EXPECT_THAT(TraceNote(*recording), HasSubstr("interleaved in proportion"));
}

TEST_F(RecordingFile, AStepNumberThatJumpsIsNoStep) {
  Snapshot first = Sample(1000, {});
  Snapshot second = Sample(2000, {Job(1, "a", {Arena(3, 8, 1'000'000)})});
  second.jobs[0].steps = 2;  // it goes on from a checkpoint
  auto recording = Read(kHeader + StatusLine(first) + StatusLine(second));
  ASSERT_TRUE(recording.ok());
  EXPECT_THAT(recording->traces[0].requests, SizeIs(2));
}

TEST_F(RecordingFile, ItsTraceReplaysAsTheSyntheticOne) {
  std::string text = kHeader;
  for (std::uint64_t step = 0; step <= 10; ++step) {
    text += StatusLine(Sample(1000 * (step + 1), {Job(1, "a", {Arena(3, 400, step)})}));
  }
  auto recording = Read(text);
  ASSERT_TRUE(recording.ok());
  SimulatorConfig config;
  config.frames = 200;
  auto ours = Simulate(recording->traces[0], config);
  auto synthetic = Simulate(*MakeTrace("cyclic"), config);
  ASSERT_TRUE(ours.ok());
  EXPECT_EQ(ours->moved.in, synthetic->moved.in);
  EXPECT_GT(ours->moved.in, 0U);
}

TEST_F(RecordingFile, WeightsAreSaidToBeMissing) {
  ExtentSnapshot weight = Arena(9, 5, 0);
  weight.kind = "quantized_weight";
  Snapshot first = Sample(1000, {Job(1, "a", {Arena(3, 8, 0), weight})});
  Snapshot second = Sample(2000, {Job(1, "a", {Arena(3, 8, 1), weight})});
  auto recording = Read(kHeader + StatusLine(first) + StatusLine(second));
  ASSERT_TRUE(recording.ok());
  EXPECT_EQ(recording->traces[0].pages(), 8U);
  EXPECT_THAT(TraceNote(*recording), HasSubstr("1 weights are not in it"));
}

TEST_F(RecordingFile, DevicesHaveTracesOfTheirOwn) {
  Snapshot first = Sample(1000, {});
  Snapshot second = Sample(2000, {Job(1, "a", {Arena(1, 8, 1)}), Job(1, "a", {Arena(1, 4, 1)})});
  second.jobs[1].device = "GPU-b";
  auto recording = Read(kHeader + StatusLine(first) + StatusLine(second));
  ASSERT_TRUE(recording.ok());
  ASSERT_THAT(recording->traces, SizeIs(2));
  EXPECT_EQ(recording->traces[0].name, "recording_test.jsonl:GPU-b");
  EXPECT_EQ(recording->traces[0].pages(), 4U);
  EXPECT_EQ(recording->traces[1].pages(), 8U);
}

TEST_F(RecordingFile, ALongTraceIsCutAndSaid) {
  Snapshot first = Sample(1000, {Job(1, "a", {Arena(3, 1 << 20, 0)})});
  Snapshot second = Sample(2000, {Job(1, "a", {Arena(3, 1 << 20, 10)})});
  auto recording = Read(kHeader + StatusLine(first) + StatusLine(second));
  ASSERT_TRUE(recording.ok());
  EXPECT_THAT(recording->traces[0].requests, SizeIs(kMostVisits >> 20));
  EXPECT_EQ(recording->steps_left_out, 10 - (kMostVisits >> 20));
  EXPECT_THAT(TraceNote(*recording), HasSubstr("6 steps are left out"));
}

TEST_F(RecordingFile, ALastLineThatIsCutDoesNotCount) {
  const std::string whole = kHeader + StatusLine(Sample(1000, {Job(1, "a", {})}));
  for (const std::size_t cut : {std::size_t{1}, std::size_t{20}, whole.size() - 60}) {
    auto recording = Read(whole + whole.substr(std::string(kHeader).size(), cut));
    ASSERT_TRUE(recording.ok()) << recording.status().message();
    EXPECT_EQ(recording->cut_line, 3U);
    EXPECT_EQ(recording->statuses, 1U);
  }
  EXPECT_EQ(Read(whole)->cut_line, 0U);
}

TEST_F(RecordingFile, NamesTheLineThatIsWrong) {
  const std::string good = StatusLine(Sample(1000, {}));
  const std::string bad[] = {
      "nonsense",
      "[]",
      "",
      "{}",
      R"({"type":"status","time_unix_ms":1})",
      R"({"type":"status","time_unix_ms":1,"body":[]})",
      R"({"type":"status","time_unix_ms":"x","body":{}})",
      R"({"type":7,"time_unix_ms":1,"body":{}})",
      R"({"type":"status","time_unix_ms":1,"body":{}})",
      R"({"type":"status","time_unix_ms":1,"body":{"schema_version":99}})",
      R"({"type":"status","time_unix_ms":1,"body":{"schema_version":1,"jobs":[{"steps":-1}]}})",
      R"({"type":"event","time_unix_ms":1,"body":{"name":[]}})",
  };
  for (const std::string& line : bad) {
    const auto read = Read(kHeader + good + line + "\n" + good);
    ASSERT_FALSE(read.ok()) << line;
    EXPECT_THAT(read.status().message(), HasSubstr("recording_test.jsonl:3: ")) << line;
  }
  EXPECT_EQ(Read("").status().code(), Code::kInvalidArgument);
  EXPECT_EQ(Read("{\"bitpager_record\":2,\"started_unix_ms\":1}\n").status().code(), Code::kUnknownVersion);
  EXPECT_THAT(Read("{\"bitpager_record\":1}\n").status().message(), HasSubstr(":1: "));
  EXPECT_THAT(Read("{\"bitpager_record\":1,").status().message(), HasSubstr(":1: "));
  EXPECT_EQ(ReadRecording("/nonexistent/recording").status().code(), Code::kNotFound);
}

TEST_F(RecordingFile, HostileNumbersAndNamesAreHarmless) {
  Snapshot first = Sample(0, {Job(1, "a\033[2J\n", {Arena(3, ~0ULL, 0), Arena(4, 3, 0)})});
  Snapshot second = Sample(~0ULL, {Job(1, "a\033[2J\n", {Arena(3, ~0ULL, ~0ULL), Arena(4, 3, ~0ULL)})});
  second.jobs[0].steps = ~0ULL;
  second.jobs[0].sessions = ~0U;
  second.jobs[0].loaded_bytes = ~0ULL;
  auto recording =
      Read("{\"bitpager_record\":1,\"started_unix_ms\":-9223372036854775808}\n" + StatusLine(first) +
           StatusLine(second) +
           "{\"type\":\"event\",\"time_unix_ms\":9223372036854775807,\"body\":{\"name\":\"\\u001b[2J\"}}\n");
  ASSERT_TRUE(recording.ok()) << recording.status().message();
  std::uint64_t visits = 0;
  for (const Trace& trace : recording->traces) {
    for (const TraceRequest& request : trace.requests) visits += request.count;
  }
  EXPECT_LE(visits, kMostVisits);
  EXPECT_THAT(SummaryText(*recording) + TraceNote(*recording), Not(HasSubstr("\033")));
}

// Bytes of a good recording, changed and cut at random: read or refused, never worse.
TEST_F(RecordingFile, AnyBytesAreReadOrRefused) {
  std::string good = kHeader;
  for (std::uint64_t step = 0; step < 4; ++step) {
    good += StatusLine(Sample(1000 * (step + 1), {Job(1, "a", {Arena(3, 40, step)})}));
  }
  std::mt19937 random(7);
  int read = 0;
  for (int round = 0; round < 1000; ++round) {
    std::string text = good;
    for (int change = 0; change < round % 4; ++change) {
      text[random() % text.size()] = static_cast<char>(random() % 256);
    }
    if (round % 3 == 0) text.resize(random() % text.size());
    const auto recording = Read(text);
    read += recording.ok() ? 1 : 0;
    if (!recording.ok()) {
      EXPECT_THAT(recording.status().message(), HasSubstr("recording_test.jsonl:"));
    }
  }
  EXPECT_GT(read, 50);
}

}  // namespace
}  // namespace bitpager::replay
