// The snapshot's two forms. One thread.
#include "daemon/snapshot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace bitpager::daemon {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

DeviceSnapshot FullDevice() {
  DeviceSnapshot d;
  d.kind = "cpu";
  d.uuid = "cpu-0";
  d.name = "Test CPU";
  d.budget_bytes = 1ULL << 30;
  d.used_bytes = d.free_bytes = 1ULL << 29;
  d.budget_frames = 512;
  d.used_frames = d.free_frames = 256;
  d.host_budget_bytes = 1ULL << 40;
  d.host_committed_bytes = 1ULL << 39;
  d.disk_budget_bytes = 1ULL << 41;
  d.disk_committed_bytes = 1ULL << 38;
  d.disk_budget_bytes = 1ULL << 41;
  d.disk_committed_bytes = 1ULL << 38;
  d.gpu = "cpu";
  d.memory_total_bytes = 64ULL << 30;
  d.memory_free_bytes = 3ULL << 30;
  d.own_bytes = 1ULL << 29;
  d.pinned_host_bytes = 4096;
  d.pressure_ratio = 0.25;
  d.leased_bytes = 1U << 21;
  d.dirty_bytes = 1U << 22;
  d.link = {50'000'000'000, 49'000'000'000};
  d.evictions_by_reason = {1, 2, 3, 4, 5, 6, 7};
  d.moved_by_reason = {{10, 20}, {1, 2, 3, 4, 5, 6}, {7, 6, 5, 4, 3, 2, 1}};
  d.requests = 100;
  d.steps = 12;
  d.faults = 9;
  d.histograms.step = {{0.001, 0.1}, {3, 4, 5}, 1.5, 12};
  d.ipc_survives = "unknown";
  d.ipc_problem = "no answer";
  return d;
}

Snapshot Full() {
  Snapshot s;
  s.time_unix_ms = 1700000000123;
  s.version = "0.1.0";
  s.pid = 42;
  s.uptime_ms = 3'725'000;
  s.draining = true;
  s.socket_path = "/run/b.sock";
  s.policy = "scan";
  s.page_bytes = 2U << 20;
  s.window_pages = 8;
  s.host_budget_bytes = 1ULL << 40;
  s.host_committed_bytes = (1ULL << 53) + 1;  // not a double
  s.devices.push_back(FullDevice());
  JobSnapshot job;
  job.id = 7;
  job.name = "llm";
  job.uid = 1000;
  job.lingering = true;
  job.linger_left_ms = 61'000;
  job.weight = 2.5;
  job.bytes_by_kind = {10ULL << 20, 20ULL << 20};
  job.resident_by_kind = {4ULL << 20, 2ULL << 20};
  job.stall_ns = 1'500'000'000;
  job.nonfinite_blocks = 3;
  job.shared_bytes = 6U << 20;
  job.extents.push_back({9, "optimizer_state", "adamw", 1, 5, 4U << 20, 120, true, 1});
  job.extents.push_back({10, "quantized_weight", "up", 0, 3, 6U << 20, 0, false, 2});
  job.evictions_by_reason = {1, 0, 0, 0, 2};
  job.moved_by_reason.to_device = {1ULL << 54, 5};
  job.saved_bytes = {6ULL << 30, 3ULL << 30};
  job.host_by_kind = {1U << 20, 2U << 20};
  job.faults = 8;
  job.step_ns_last = 1'000'001;
  job.step_ns = 5'000'002;
  job.peak_resident_bytes = 9 << 20;
  job.peak_host_bytes = 10 << 20;
  job.stall_ns_last = 999;
  job.last_event = "evict";
  s.jobs.push_back(job);
  PastJobSnapshot past;
  past.name = "gone";
  past.device = "cpu-0";
  past.uid = 1001;
  past.jobs = 3;
  past.steps = 44;
  past.moved_by_reason.dropped = {0, 0, 0, 0, 0, 0, 77};
  s.past_jobs.push_back(past);
  s.events = {{"attach", 2}, {"killed", 1}};
  s.start_unix_ms = 1'699'999'996'398;
  s.http = "127.0.0.1:9790";
  s.totals.http = {4, 3, 250'000};
  s.totals.events_dropped = 1;
  s.sessions.push_back({3, 4711, 1000, "llm", "cpu-0", 1, "train.py", 2});
  s.totals.steps = 12;
  s.totals.nonfinite_blocks = 3;
  s.errors = {{"quota_exceeded", 2}};
  return s;
}

TEST(SnapshotJson, HasASchemaVersionAndIntegerBytes) {
  const json parsed = json::parse(ToJson(Full()));
  EXPECT_EQ(parsed["schema_version"], 1);
  EXPECT_TRUE(parsed["host_committed_bytes"].is_number_unsigned());
  EXPECT_EQ(parsed["host_committed_bytes"].get<std::uint64_t>(), (1ULL << 53) + 1);
  EXPECT_EQ(parsed["jobs"][0]["bytes_by_kind"]["quantized_weight"], 20U << 20);
  EXPECT_EQ(parsed["jobs"][0]["extents"][0]["step"], 120);
  EXPECT_EQ(parsed["errors"]["quota_exceeded"], 2);
  const json& device = parsed["devices"][0];
  EXPECT_EQ(device["uuid"], "cpu-0");
  EXPECT_EQ(device["gpu"], "cpu");
  EXPECT_EQ(device["link"]["to_host_bytes_per_s"], 49'000'000'000);
  EXPECT_EQ(device["evictions_by_reason"]["share"], 3);
  EXPECT_EQ(device["moved_by_reason"]["dropped"]["closing"], 1);
  EXPECT_EQ(device["histograms"]["step"]["bounds_s"], (json{0.001, 0.1}));
  EXPECT_EQ(device["histograms"]["step"]["counts"], (json{3, 4, 5}));
  EXPECT_EQ(device["pressure_ratio"], 0.25);
  EXPECT_EQ(parsed["jobs"][0]["saved_bytes"]["weights_16bit"], 3ULL << 30);
  EXPECT_EQ(parsed["jobs"][0]["host_by_kind"]["quantized_weight"], 2U << 20);
  EXPECT_EQ(parsed["jobs"][0]["last_event"], "evict");
  EXPECT_EQ(parsed["past_jobs"][0]["steps"], 44);
  EXPECT_EQ(parsed["totals"]["http"]["scrapes"], 3);
  EXPECT_EQ(parsed["http"], "127.0.0.1:9790");
  EXPECT_EQ(parsed["events"]["attach"], 2);
}

TEST(SnapshotJson, RoundTripLosesNothing) {
  const std::string written = ToJson(Full());
  const auto read = SnapshotFromJson(written);
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(ToJson(*read), written);
  EXPECT_EQ(read->host_committed_bytes, (1ULL << 53) + 1);
  EXPECT_EQ(read->jobs[0].extents[0].name, "adamw");
  EXPECT_EQ(read->jobs[0].extents[1].uses, 2U);
  EXPECT_EQ(read->jobs[0].shared_bytes, 6U << 20);
  EXPECT_EQ(read->jobs[0].moved_by_reason.to_device[0], 1ULL << 54);
  EXPECT_EQ(read->devices[0].histograms.step.counts, (std::vector<std::uint64_t>{3, 4, 5}));
  EXPECT_EQ(read->past_jobs[0].moved_by_reason.dropped[6], 77U);
}

TEST(SnapshotJson, PassesOverUnknownKeys) {
  json parsed = json::parse(ToJson(Full()));
  parsed["of_a_later_release"] = {1, 2, 3};
  parsed["jobs"][0]["also_new"] = "x";
  EXPECT_TRUE(SnapshotFromJson(parsed.dump()).ok());
}

TEST(SnapshotJson, RefusesWhatIsNoSnapshot) {
  const std::string good = ToJson(Full());
  const auto with = [&](const json::json_pointer& where, const json& value) {
    json parsed = json::parse(good);
    parsed[where] = value;
    return parsed.dump();
  };
  using P = json::json_pointer;
  for (const std::string& bad :
       {std::string(""), std::string("{}"), std::string("[]"), std::string("null"),
        good.substr(0, good.size() / 2), with(P("/schema_version"), 2), with(P("/page_bytes"), -1),
        with(P("/page_bytes"), 1.5), with(P("/jobs"), "none"), with(P("/jobs/0"), 3),
        with(P("/jobs/0/uid"), 1ULL << 40), with(P("/jobs/0/bytes_by_kind"), json::array()),
        with(P("/errors"), json::array()), with(P("/pid"), ~0ULL), with(P("/draining"), 1),
        with(P("/devices/0/histograms/step/counts"), json{1, -1}), with(P("/devices/0/link"), 3),
        with(P("/jobs/0/evictions_by_reason/demand"), "many"), with(P("/past_jobs"), json::object())}) {
    const auto read = SnapshotFromJson(bad);
    ASSERT_FALSE(read.ok()) << bad;
    EXPECT_EQ(read.status().code(), wire::Code::kProtocol);
    EXPECT_THAT(read.status().message(), HasSubstr("Hint: "));
  }
}

TEST(SnapshotJson, StaysValidWithBrokenUtf8) {
  Snapshot s = Full();
  s.sessions[0].client = "a\xff\xfe\"b\n";
  EXPECT_TRUE(json::accept(ToJson(s)));
}

TEST(SnapshotText, ShowsJobsTiersAndWhatIsKept) {
  const std::string text = ToText(Full());
  for (const char* part : {"bitpagerd 0.1.0", "up 1h02m", "draining", "cpu-0", "512 MiB of 1 GiB used", "llm",
                           "kept", "10 MiB", "20 MiB", "1.5 s", "at step 120", "1m01s left",
                           "quota_exceeded 2", "3 blocks had a non-finite gradient"}) {
    EXPECT_THAT(text, HasSubstr(part));
  }
  EXPECT_THAT(text, Not(HasSubstr("\033"))) << "no colours unless asked";
  EXPECT_THAT(ToText(Full(), {true}), HasSubstr("\033[1m"));
}

TEST(SnapshotText, ForeignNamesCannotSpeakToTheTerminal) {
  Snapshot s = Full();
  s.jobs[0].name = "x\033[2J\r\n";
  EXPECT_THAT(ToText(s), Not(HasSubstr("\033")));
}

TEST(SnapshotText, EmptyDaemon) {
  EXPECT_THAT(ToText(Snapshot{}), HasSubstr("no jobs"));
}

}  // namespace
}  // namespace bitpager::daemon
