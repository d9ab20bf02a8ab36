#include "tools/replay_main/recording.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <tuple>

#include "daemon/snapshot.h"
#include "tools/replay_main/step_trace.h"

namespace bitpager::replay {
namespace {

using daemon::JobSnapshot;
using daemon::Snapshot;
using nlohmann::json;
using wire::Code;
using wire::Result;
using wire::Status;

constexpr std::uint64_t kRecordVersion = 1;
constexpr std::size_t kMostLineBytes = std::size_t{64} << 20;

struct Line {
  std::string text;
  bool whole = true;  // ended by a line feed
};

// Nothing at the end; a line that is too long comes without its rest.
std::optional<Line> NextLine(std::istream& in) {
  std::streambuf& from = *in.rdbuf();
  Line out;
  for (int c = from.sbumpc(); c != std::char_traits<char>::eof(); c = from.sbumpc()) {
    if (c == '\n') return out;
    out.text.push_back(static_cast<char>(c));
    if (out.text.size() > kMostLineBytes) return out;
  }
  out.whole = false;
  if (out.text.empty()) return std::nullopt;
  return out;
}

std::uint64_t Grown(std::uint64_t before, std::uint64_t now) {
  return now > before ? now - before : 0;
}

bool IsInteger(const json& line, const char* key) {
  return line.contains(key) && line[key].is_number_integer();
}

class Reader {
 public:
  [[nodiscard]] Status Take(const json& line) { return header_ ? TakeHeader(line) : TakeLine(line); }
  [[nodiscard]] Recording Finish(const std::string& name, std::uint64_t cut_line) {
    out_.name = name;
    out_.cut_line = cut_line;
    out_.span_ms = static_cast<std::uint64_t>(last_ms_) - static_cast<std::uint64_t>(out_.started_unix_ms);
    for (auto& [key, job] : jobs_) out_.jobs.push_back(std::move(job));
    out_.weights = steps_.weights();
    out_.steps_left_out = steps_.steps_left_out();
    out_.traces = steps_.Take(name);
    return std::move(out_);
  }
  [[nodiscard]] bool begun() const { return !header_; }

 private:
  [[nodiscard]] Status TakeHeader(const json& line);
  [[nodiscard]] Status TakeLine(const json& line);
  [[nodiscard]] Status TakeStatus(const json& body);
  void AddJob(const JobSnapshot* before, const JobSnapshot& now, std::uint64_t elapsed_ms);

  Recording out_;
  bool header_ = true;
  std::int64_t last_ms_ = 0;
  std::optional<Snapshot> before_;
  std::map<std::tuple<std::string, std::uint32_t, std::string>, JobSummary> jobs_;  // by name, user, device
  StepTrace steps_;
};

Status Reader::TakeHeader(const json& line) {
  if (!IsInteger(line, "bitpager_record") || !IsInteger(line, "started_unix_ms")) {
    return {Code::kInvalidArgument, R"(the first line must be {"bitpager_record":1,"started_unix_ms":N})"};
  }
  if (line["bitpager_record"] != kRecordVersion) {
    return {Code::kUnknownVersion, "only version 1 of recordings is known"};
  }
  out_.started_unix_ms = last_ms_ = line["started_unix_ms"];
  header_ = false;
  return {};
}

Status Reader::TakeLine(const json& line) {
  if (!line.contains("type") || !line["type"].is_string() || !IsInteger(line, "time_unix_ms") ||
      !line.contains("body") || !line["body"].is_object()) {
    return {Code::kInvalidArgument, "a line has type (a text), time_unix_ms (a number) and body (an object)"};
  }
  last_ms_ = std::max(last_ms_, line["time_unix_ms"].get<std::int64_t>());
  const json& body = line["body"];
  if (line["type"] == "status") return TakeStatus(body);
  if (line["type"] == "pages") ++out_.page_maps;
  if (line["type"] != "event") return {};
  if (!body.contains("name") || !body["name"].is_string()) {
    return {Code::kInvalidArgument, "an event has a name"};
  }
  ++out_.events[body["name"]];
  return {};
}

Status Reader::TakeStatus(const json& body) {
  Result<Snapshot> parsed =
      daemon::SnapshotFromJson(body.dump(-1, ' ', false, json::error_handler_t::replace));
  if (!parsed.ok()) return {Code::kInvalidArgument, parsed.status().message()};
  Snapshot& now = *parsed;
  ++out_.statuses;
  const bool goes_on = before_ && before_->pid == now.pid && before_->uptime_ms <= now.uptime_ms;
  if (!goes_on) {
    ++out_.daemons;
    steps_.NextDaemon();
    // What a job did before the first sample is not the recording's.
    before_ = now;
  }
  std::map<std::pair<std::string, std::uint64_t>, const JobSnapshot*> known;  // by device and id
  for (const JobSnapshot& job : before_->jobs) known[{job.device, job.id}] = &job;
  for (const JobSnapshot& job : now.jobs) {
    const auto found = known.find({job.device, job.id});
    AddJob(found == known.end() ? nullptr : found->second, job, now.uptime_ms - before_->uptime_ms);
  }
  steps_.Add(*before_, now);
  before_ = std::move(now);
  return {};
}

void Reader::AddJob(const JobSnapshot* before, const JobSnapshot& now, std::uint64_t elapsed_ms) {
  JobSummary& job = jobs_[{now.name, now.uid, now.device}];
  job.name = now.name;
  job.uid = now.uid;
  job.device = now.device;
  job.peak_resident_bytes = std::max(job.peak_resident_bytes, now.resident_bytes);
  job.peak_host_bytes = std::max(job.peak_host_bytes, now.host_bytes);
  const JobSnapshot none;
  const JobSnapshot& was = before == nullptr ? none : *before;
  job.to_device_bytes += Grown(was.loaded_bytes, now.loaded_bytes);
  job.to_host_bytes += Grown(was.stored_bytes, now.stored_bytes);
  job.dropped_bytes += Grown(was.dropped_bytes, now.dropped_bytes);
  job.steps += Grown(was.steps, now.steps);
  job.stall_ns += Grown(was.stall_ns, now.stall_ns);
  for (std::size_t i = 0; i < daemon::kReasonNames.size(); ++i) {
    job.evictions[daemon::kReasonNames[i]] += Grown(was.evictions_by_reason[i], now.evictions_by_reason[i]);
  }
  job.rank_ms += elapsed_ms * std::max(was.sessions, now.sessions);
}

Status At(const std::string& path, std::uint64_t number, const Status& status) {
  return {status.code(), path + ":" + std::to_string(number) + ": " + status.message()};
}

}  // namespace

double JobSummary::stall_ratio() const {
  return rank_ms == 0 ? 0
                      : std::min(1.0, static_cast<double>(stall_ns) / (static_cast<double>(rank_ms) * 1e6));
}

bool IsRecording(const std::string& path) {
  std::ifstream in(path);
  std::string start(256, '\0');
  in.read(start.data(), static_cast<std::streamsize>(start.size()));
  start.resize(static_cast<std::size_t>(in.gcount()));
  return start.substr(0, start.find('\n')).find("\"bitpager_record\"") != std::string::npos;
}

Result<Recording> ReadRecording(const std::string& path) {
  std::ifstream in(path);
  if (!in) return Status(Code::kNotFound, path + ": cannot be opened");
  Reader reader;
  std::uint64_t number = 0;
  std::uint64_t cut_line = 0;
  while (const auto line = NextLine(in)) {
    ++number;
    if (line->text.size() > kMostLineBytes) {
      return At(path, number, Status(Code::kInvalidArgument, "the line has more than 64 MiB"));
    }
    const json parsed = json::parse(line->text, nullptr, /*allow_exceptions=*/false);
    if (!line->whole && parsed.is_discarded() && reader.begun()) {
      cut_line = number;
      break;
    }
    const Status taken =
        parsed.is_object() ? reader.Take(parsed) : Status(Code::kInvalidArgument, "not a JSON object");
    if (!taken.ok()) return At(path, number, taken);
  }
  if (!reader.begun()) return Status(Code::kInvalidArgument, path + ": is empty");
  return reader.Finish(path.substr(path.find_last_of('/') + 1), cut_line);
}

}  // namespace bitpager::replay
