#include "tools/replay_main/summary.h"

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>

#include "daemon/config.h"

namespace bitpager::replay {
namespace {

using daemon::FormatBytes;
using nlohmann::json;

std::string Percent(double ratio) {
  char text[16];
  std::snprintf(text, sizeof(text), "%.1f%%", ratio * 100);
  return text;
}

std::string StartTime(std::int64_t unix_ms) {
  const std::time_t seconds = unix_ms / 1000;
  std::tm local{};
  char text[32] = "an unknown time";
  if (::localtime_r(&seconds, &local) != nullptr) {
    std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &local);
  }
  return text;
}

std::string CountsText(const std::map<std::string, std::uint64_t>& counts) {
  std::string out;
  for (const auto& [name, count] : counts) {
    if (count == 0) continue;
    out += (out.empty() ? "" : ", ") + Plain(name) + " " + std::to_string(count);
  }
  return out;
}

std::string Heading(const Recording& r) {
  char span[48];
  std::snprintf(span, sizeof(span), "%.1f s", static_cast<double>(r.span_ms) / 1000);
  std::string out = "recording " + Plain(r.name) + ": " + span + " from " + StartTime(r.started_unix_ms) +
                    ", " + std::to_string(r.statuses) + " samples, " + std::to_string(r.page_maps) +
                    " page maps\n";
  if (r.daemons > 1) {
    out += "the daemon was started " + std::to_string(r.daemons - 1) + " times meanwhile\n";
  }
  return out;
}

std::string JobLines(const Recording& r) {
  char line[512];
  std::snprintf(line, sizeof(line), "%-24s %-14s %10s %10s %10s %10s %10s %9s %8s\n", "job", "device",
                "resident^", "host^", "to device", "to host", "dropped", "steps", "stalled");
  std::string out = line;
  for (const JobSummary& job : r.jobs) {
    std::snprintf(line, sizeof(line), "%-24.63s %-14.40s %10s %10s %10s %10s %10s %9llu %8s\n",
                  Plain(job.name).c_str(), Plain(job.device).c_str(),
                  FormatBytes(job.peak_resident_bytes).c_str(), FormatBytes(job.peak_host_bytes).c_str(),
                  FormatBytes(job.to_device_bytes).c_str(), FormatBytes(job.to_host_bytes).c_str(),
                  FormatBytes(job.dropped_bytes).c_str(), static_cast<unsigned long long>(job.steps),
                  Percent(job.stall_ratio()).c_str());
    out += line;
  }
  return r.jobs.empty() ? "no jobs\n" : out + "^ the most in any sample\n";
}

}  // namespace

std::string Plain(const std::string& text) {
  std::string out = text;
  for (char& c : out) {
    if (c < 0x20 || c > 0x7E) c = '?';  // char is signed: bytes from 0x80 on too
  }
  return out;
}

std::string SummaryText(const Recording& recording) {
  std::string out = Heading(recording) + JobLines(recording);
  for (const JobSummary& job : recording.jobs) {
    const std::string evictions = CountsText(job.evictions);
    if (!evictions.empty())
      out += "pages of " + Plain(job.name) + " that left the device: " + evictions + "\n";
  }
  const std::string events = CountsText(recording.events);
  return events.empty() ? out : out + "events: " + events + "\n";
}

std::string TraceNote(const Recording& recording) {
  if (recording.traces.empty()) {
    return "no optimizer stepped between two samples: there is no trace to replay\n";
  }
  std::string out =
      "The trace: each optimizer's steps between two samples visit all its pages; within a sample they are\n"
      "interleaved in proportion, and the jobs run side by side.";
  if (recording.weights != 0) {
    out += " " + std::to_string(recording.weights) + " weights are not in it: their use is not recorded.";
  }
  if (recording.steps_left_out != 0) {
    out +=
        " The last " + std::to_string(recording.steps_left_out) + " steps are left out: the trace is long.";
  }
  return out + "\n";
}

json SummaryJson(const Recording& recording) {
  json jobs = json::array();
  for (const JobSummary& job : recording.jobs) {
    jobs.push_back({{"name", job.name},
                    {"device", job.device},
                    {"uid", job.uid},
                    {"peak_resident_bytes", job.peak_resident_bytes},
                    {"peak_host_bytes", job.peak_host_bytes},
                    {"to_device_bytes", job.to_device_bytes},
                    {"to_host_bytes", job.to_host_bytes},
                    {"dropped_bytes", job.dropped_bytes},
                    {"steps", job.steps},
                    {"stall_ns", job.stall_ns},
                    {"stall_ratio", job.stall_ratio()},
                    {"evictions", job.evictions}});
  }
  return {{"recording", recording.name},
          {"started_unix_ms", recording.started_unix_ms},
          {"span_ms", recording.span_ms},
          {"statuses", recording.statuses},
          {"page_maps", recording.page_maps},
          {"daemons", recording.daemons},
          {"events", recording.events},
          {"cut_line", recording.cut_line},
          {"steps_left_out", recording.steps_left_out},
          {"jobs", jobs}};
}

}  // namespace bitpager::replay
