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
  s.devices = {{"cpu", "cpu-0", "Test CPU", 1ULL << 30, 1ULL << 29, 1ULL << 29, 512, 256, 256, 1ULL << 40,
                1ULL << 39, true}};
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
  s.jobs.push_back(job);
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
  EXPECT_EQ(parsed["devices"][0]["uuid"], "cpu-0");
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
        with(P("/errors"), json::array()), with(P("/pid"), ~0ULL), with(P("/draining"), 1)}) {
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
