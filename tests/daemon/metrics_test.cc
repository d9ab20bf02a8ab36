// The Prometheus text: every metric of the contract, well formed, adding up. One thread.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "daemon/event.h"
#include "daemon/metrics_text.h"

namespace bitpager::daemon {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

DeviceSnapshot Device(const std::string& gpu, const std::string& uuid) {
  DeviceSnapshot d;
  d.kind = "cuda";
  d.gpu = gpu;
  d.uuid = uuid;
  d.budget_frames = 8;
  d.used_frames = 6;
  d.free_frames = 2;
  d.requests = 17;
  d.link = {5'000'000'000, 4'000'000'000};
  d.histograms.step = {{0.001, 0.1}, {3, 4, 5}, 1.5, 12};
  d.histograms.stall = d.histograms.fault = d.histograms.request = {{0.001, 0.1}, {0, 0, 0}, 0, 0};
  return d;
}

JobSnapshot Job(const std::string& name, const std::string& uuid, std::uint32_t uid = 1000) {
  JobSnapshot j;
  j.name = name;
  j.device = uuid;
  j.uid = uid;
  j.resident_by_kind = {100, 20};
  j.host_by_kind = {1000, 200};
  j.steps = 5;
  j.faults = 2;
  j.evictions_by_reason = {1, 2, 3, 4, 5, 6, 7};
  j.moved_by_reason = {{10, 20}, {1, 2, 3, 4, 5, 6, 0}, {7, 6, 5, 4, 3, 2, 1}};
  return j;
}

Snapshot Full() {
  Snapshot s;
  s.version = "0.1.0";
  s.page_bytes = 4096;
  s.start_unix_ms = 1'700'000'000'500;
  s.devices = {Device("0", "GPU-a"), Device("1", "GPU-b")};
  s.jobs = {Job("llm", "GPU-a"), Job("llm", "GPU-b"), Job("other", "GPU-a")};
  s.sessions.resize(3);
  s.errors = {{"quota_exceeded", 2}};
  s.events = {{"attach", 4}};
  return s;
}

// Value by series, as a scraper reads it; fails on what it would refuse.
std::map<std::string, double> Parse(const std::string& text) {
  static const std::regex sample(
      R"re(^([a-zA-Z_:][\w:]*(\{(?:[a-zA-Z_]\w*="(?:[^"\\]|\\[\\"n])*",?)*\})?) (\S+)$)re");
  std::map<std::string, double> out;
  std::set<std::string> families;
  std::istringstream lines(text);
  std::string family;
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("# HELP ")) {
      family = line.substr(7, line.find(' ', 7) - 7);
      EXPECT_TRUE(families.insert(family).second) << family << " begins twice";
      EXPECT_TRUE(family.starts_with("bitpager_"));
      continue;
    }
    if (line.starts_with("# TYPE ")) {
      EXPECT_EQ(line.substr(7, line.find(' ', 7) - 7), family);
      continue;
    }
    std::smatch match;
    EXPECT_TRUE(std::regex_match(line, match, sample)) << line;
    EXPECT_TRUE(line.starts_with(family)) << line << " in " << family;
    EXPECT_TRUE(out.emplace(match[1], std::stod(match[3])).second) << match[1] << " is there twice";
  }
  return out;
}

TEST(Metrics, HaveEveryNameOfTheContract) {
  const std::string text = ToPrometheus(Full());
  Parse(text);
  for (const char* name : {"build_info",
                           "start_time_seconds",
                           "draining",
                           "page_bytes",
                           "device_budget_bytes",
                           "device_frames",
                           "device_memory_bytes",
                           "device_own_bytes",
                           "host_budget_bytes",
                           "host_committed_bytes",
                           "resident_bytes",
                           "host_bytes",
                           "disk_bytes",
                           "disk_budget_bytes",
                           "disk_committed_bytes",
                           "job_peak_bytes",
                           "job_step_seconds_total",
                           "job_stall_seconds_total",
                           "dirty_bytes",
                           "leased_bytes",
                           "buffer_bytes",
                           "quota_bytes",
                           "share_bytes",
                           "job_weight",
                           "transfer_bytes_total",
                           "dropped_bytes_total",
                           "evictions_total",
                           "steps_total",
                           "nonfinite_blocks_total",
                           "faults_total",
                           "requests_total",
                           "step_duration_seconds_bucket",
                           "step_duration_seconds_sum",
                           "step_duration_seconds_count",
                           "stall_seconds_bucket",
                           "fault_seconds_bucket",
                           "request_duration_seconds_bucket",
                           "pressure_ratio",
                           "link_bytes_per_second",
                           "sessions",
                           "clients",
                           "jobs",
                           "sessions_opened_total",
                           "sessions_lost_total",
                           "saved_bytes",
                           "errors_total",
                           "events_total",
                           "events_dropped_total",
                           "scrapes_total",
                           "scrape_duration_seconds",
                           "pinned_host_bytes"}) {
    EXPECT_TRUE(std::regex_search(text, std::regex("\nbitpager_" + std::string(name) + "[ {]"))) << name;
  }
  EXPECT_THAT(text, Not(HasSubstr("pid")));
}

TEST(Metrics, SayWhatTheSnapshotSays) {
  const auto values = Parse(ToPrometheus(Full()));
  const auto at = [&](const std::string& series) {
    const auto found = values.find("bitpager_" + series);
    EXPECT_NE(found, values.end()) << series;
    return found == values.end() ? -1 : found->second;
  };
  EXPECT_EQ(at("build_info{version=\"0.1.0\"}"), 1);
  EXPECT_EQ(at("start_time_seconds"), 1'700'000'000.5);
  EXPECT_EQ(at("clients"), 3);
  EXPECT_EQ(at(R"(device_frames{gpu="0",UUID="GPU-a",state="free"})"), 2);
  EXPECT_EQ(at(R"(resident_bytes{gpu="1",UUID="GPU-b",job="llm",kind="quantized_weight"})"), 20);
  EXPECT_EQ(
      at(R"(transfer_bytes_total{gpu="0",UUID="GPU-a",job="other",direction="to_host",reason="command"})"),
      5);
  EXPECT_EQ(at(R"(evictions_total{gpu="0",UUID="GPU-a",job="llm",reason="closing"})"), 7);
  EXPECT_EQ(at(R"(step_duration_seconds_bucket{gpu="0",UUID="GPU-a",le="0.001"})"), 3);
  EXPECT_EQ(at(R"(step_duration_seconds_bucket{gpu="0",UUID="GPU-a",le="0.1"})"), 7) << "cumulative";
  EXPECT_EQ(at(R"(step_duration_seconds_bucket{gpu="0",UUID="GPU-a",le="+Inf"})"), 12);
  EXPECT_EQ(at(R"(step_duration_seconds_count{gpu="0",UUID="GPU-a"})"), 12);
  EXPECT_EQ(at(R"(errors_total{code="quota_exceeded"})"), 2);
  EXPECT_EQ(at(R"(errors_total{code="internal"})"), 0) << "there before its first";
  EXPECT_EQ(at(R"(events_total{event="attach"})"), 4);
  for (const std::string_view name : kEventNames) {
    EXPECT_EQ(values.count("bitpager_events_total{event=\"" + std::string(name) + "\"}"), 1U) << name;
  }
}

TEST(Metrics, JobsOfOneNameAreOneSeriesAndPastOnesCountOn) {
  Snapshot s = Full();
  s.jobs.push_back(Job("llm", "GPU-a", 1001));
  s.jobs[0].step_ns = 1'500'000'000;
  s.jobs.back().step_ns = 250'000'000;
  s.jobs[0].stall_ns = 125'000'000;
  s.jobs[0].peak_resident_bytes = 700;
  s.jobs[0].peak_host_bytes = 1300;
  PastJobSnapshot past;
  past.step_ns = 4'000'000'000;
  past.name = "llm";
  past.device = "GPU-a";
  past.steps = 100;
  s.past_jobs.push_back(past);
  past.name = "gone";
  s.past_jobs.push_back(past);
  const auto values = Parse(ToPrometheus(s));
  EXPECT_EQ(values.at(R"(bitpager_steps_total{gpu="0",UUID="GPU-a",job="llm"})"), 110);
  EXPECT_EQ(values.at(R"(bitpager_resident_bytes{gpu="0",UUID="GPU-a",job="llm",kind="optimizer_state"})"),
            200);
  EXPECT_EQ(values.at(R"(bitpager_steps_total{gpu="0",UUID="GPU-a",job="gone"})"), 100);
  EXPECT_EQ(values.count(R"(bitpager_share_bytes{gpu="0",UUID="GPU-a",job="gone"})"), 0U) << "it has none";
  EXPECT_EQ(values.at(R"(bitpager_job_step_seconds_total{gpu="0",UUID="GPU-a",job="llm"})"), 5.75);
  EXPECT_EQ(values.at(R"(bitpager_job_stall_seconds_total{gpu="0",UUID="GPU-a",job="llm"})"), 0.125);
  EXPECT_EQ(values.at(R"(bitpager_job_step_seconds_total{gpu="0",UUID="GPU-a",job="gone"})"), 4);
  EXPECT_EQ(values.at(R"(bitpager_job_peak_bytes{gpu="0",UUID="GPU-a",job="llm",tier="device"})"), 700);
  EXPECT_EQ(values.at(R"(bitpager_job_peak_bytes{gpu="0",UUID="GPU-a",job="llm",tier="host"})"), 1300);
  EXPECT_EQ(values.count(R"(bitpager_job_peak_bytes{gpu="0",UUID="GPU-a",job="gone",tier="host"})"), 0U);
}

TEST(Metrics, LabelsAreEscapedAndUtf8) {
  EXPECT_EQ(EscapeLabel("a\\b\"c\nd"), R"(a\\b\"c\nd)");
  EXPECT_EQ(EscapeLabel("gr\xC3\xBC\xC3\x9F \xF0\x9F\x90\x8D"), "gr\xC3\xBC\xC3\x9F \xF0\x9F\x90\x8D");
  const std::string replaced = "\xEF\xBF\xBD";
  EXPECT_EQ(EscapeLabel("\xff"), replaced);
  EXPECT_EQ(EscapeLabel("\xC0\xAF"), replaced + replaced) << "overlong";
  EXPECT_EQ(EscapeLabel("\xED\xA0\x80"), replaced + replaced + replaced) << "a surrogate";
  EXPECT_EQ(EscapeLabel("x\xE2\x82"), "x" + replaced + replaced) << "cut short";
  Snapshot s = Full();
  s.jobs[0].name = "evil\"} 1\nbitpager_jobs 99\n#\xff\\";
  const auto values = Parse(ToPrometheus(s));
  EXPECT_EQ(values.at("bitpager_jobs"), 3);
  EXPECT_EQ(values.count(R"(bitpager_steps_total{gpu="0",UUID="GPU-a",job="evil\"} 1\nbitpager_jobs 99\n#)" +
                         replaced + R"(\\"})"),
            1U);
}

TEST(Metrics, AnUnmeasuredLinkAndAClosedDeviceAreLeftOut) {
  Snapshot s = Full();
  s.devices[0].link = {0, 7};
  s.devices[1].open = false;
  s.jobs.pop_back();
  s.jobs.pop_back();
  const std::string text = ToPrometheus(s);
  EXPECT_THAT(text, Not(HasSubstr("direction=\"to_device\"} 0")));
  EXPECT_THAT(text, HasSubstr("link_bytes_per_second{gpu=\"0\",UUID=\"GPU-a\",direction=\"to_host\"} 7"));
  EXPECT_THAT(text, Not(HasSubstr("device_budget_bytes{gpu=\"1\"")));
}

TEST(Metrics, AnEmptyDaemonIsWellFormed) {
  Parse(ToPrometheus(Snapshot{}));
}

}  // namespace
}  // namespace bitpager::daemon
