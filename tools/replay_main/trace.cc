#include "tools/replay_main/trace.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

namespace bitpager::replay {
namespace {

using nlohmann::json;
using paging::Access;
using wire::Code;
using wire::Status;

constexpr std::uint64_t kMostPages = 1ULL << 28;  // of one extent: 128 TiB in pages of 512 KiB

std::uint32_t JobIndex(Trace& trace, const std::string& name) {
  const auto it = std::find(trace.jobs.begin(), trace.jobs.end(), name);
  if (it != trace.jobs.end()) return static_cast<std::uint32_t>(it - trace.jobs.begin());
  trace.jobs.push_back(name);
  return static_cast<std::uint32_t>(trace.jobs.size() - 1);
}

std::uint32_t ExtentIndex(Trace& trace, std::uint32_t job, const std::string& name) {
  for (std::uint32_t i = 0; i < trace.extents.size(); ++i) {
    if (trace.extents[i].job == job && trace.extents[i].name == name) return i;
  }
  trace.extents.push_back({name, job, 0});
  return static_cast<std::uint32_t>(trace.extents.size() - 1);
}

void Add(Trace& trace, const std::string& job, const std::string& extent, std::uint64_t first,
         std::uint64_t count, Access access) {
  const std::uint32_t job_index = JobIndex(trace, job);
  const std::uint32_t extent_index = ExtentIndex(trace, job_index, extent);
  trace.requests.push_back({job_index, extent_index, first, count, access});
  std::uint64_t& pages = trace.extents[extent_index].pages;
  pages = std::max(pages, first + count);
}

bool ParseAccess(const std::string& text, Access* access) {
  if (text == "read") {
    *access = Access::kRead;
  } else if (text == "update") {
    *access = Access::kUpdate;
  } else if (text == "overwrite") {
    *access = Access::kOverwrite;
  } else {
    return false;
  }
  return true;
}

bool IsText(const json& line, const char* key) {
  return line.contains(key) && line[key].is_string();
}
bool IsCount(const json& line, const char* key) {
  return line.contains(key) && line[key].is_number_unsigned();
}

Status ParseHeader(const json& line, Trace& trace) {
  if (!IsText(line, "format") || line["format"] != "bitpager-trace") {
    return {Code::kInvalidArgument,
            R"(the first line must be {"format": "bitpager-trace", "version": 1, ...})"};
  }
  if (!IsCount(line, "version") || line["version"] != 1) {
    return {Code::kUnknownVersion, "only version 1 of the format is known"};
  }
  if (line.contains("page_bytes")) {
    if (!IsCount(line, "page_bytes") || line["page_bytes"] == 0) {
      return {Code::kInvalidArgument, "page_bytes must be a positive number"};
    }
    trace.page_bytes = line["page_bytes"];
  }
  return {};
}

Status ParseRequest(const json& line, Trace& trace) {
  if (!IsText(line, "job") || !IsText(line, "extent") || !IsCount(line, "first") || !IsCount(line, "count") ||
      !IsText(line, "access")) {
    return {Code::kInvalidArgument,
            "a request has job, extent, access (texts), first and count (numbers from 0)"};
  }
  Access access{};
  if (!ParseAccess(line["access"], &access)) {
    return {Code::kInvalidArgument, "access is read, update or overwrite"};
  }
  const std::uint64_t first = line["first"];
  const std::uint64_t count = line["count"];
  if (count == 0 || first > kMostPages || count > kMostPages - first) {
    return {Code::kInvalidArgument, "first + count must lie between 1 and 2^28, count above 0"};
  }
  Add(trace, line["job"], line["extent"], first, count, access);
  return {};
}

void MakeCyclic(Trace& trace, const std::string& job, int steps) {
  for (int step = 0; step < steps; ++step) Add(trace, job, "arena", 0, 400, Access::kUpdate);
}

constexpr std::uint64_t kLayers = 48;
constexpr std::uint64_t kLayerPages = 8;

void VisitLayer(Trace& trace, const std::string& job, std::uint64_t layer) {
  Add(trace, job, "weights", layer * kLayerPages, kLayerPages, Access::kRead);
}

void LoadWeights(Trace& trace, const std::string& job) {
  Add(trace, job, "weights", 0, kLayers * kLayerPages, Access::kOverwrite);
}

void MakeZigzag(Trace& trace, const std::string& job, int steps) {
  LoadWeights(trace, job);
  for (int step = 0; step < steps; ++step) {
    for (std::uint64_t layer = 0; layer < kLayers; ++layer) VisitLayer(trace, job, layer);
    for (std::uint64_t layer = kLayers; layer-- > 0;) VisitLayer(trace, job, layer);
  }
}

// Every eighth layer's input is kept: backward through eight layers starts with their forward once more.
void MakeCheckpointing(Trace& trace, const std::string& job, int steps) {
  constexpr std::uint64_t kKept = 8;
  LoadWeights(trace, job);
  for (int step = 0; step < steps; ++step) {
    for (std::uint64_t layer = 0; layer < kLayers; ++layer) VisitLayer(trace, job, layer);
    for (std::uint64_t end = kLayers; end > 0; end -= kKept) {
      for (std::uint64_t layer = end - kKept; layer < end; ++layer) VisitLayer(trace, job, layer);
      for (std::uint64_t layer = end; layer-- > end - kKept;) VisitLayer(trace, job, layer);
    }
  }
}

}  // namespace

std::uint64_t Trace::pages() const {
  std::uint64_t sum = 0;
  for (const TraceExtent& extent : extents) sum += extent.pages;
  return sum;
}

wire::Result<Trace> ReadTrace(const std::string& path) {
  std::ifstream in(path);
  if (!in) return Status(Code::kNotFound, path + ": cannot be opened");
  Trace trace;
  trace.name = path.substr(path.find_last_of('/') + 1);
  bool header = true;
  std::string text;
  for (std::uint64_t number = 1; std::getline(in, text); ++number) {
    if (text.empty() || text.front() == '#') continue;
    const json line = json::parse(text, nullptr, false);
    Status status = line.is_object() ? Status() : Status(Code::kInvalidArgument, "not a JSON object");
    if (status.ok()) status = header ? ParseHeader(line, trace) : ParseRequest(line, trace);
    if (!status.ok())
      return Status(status.code(), path + ":" + std::to_string(number) + ": " + status.message());
    header = false;
  }
  if (trace.requests.empty()) return Status(Code::kInvalidArgument, path + ": has no requests");
  return trace;
}

const std::vector<std::string>& SyntheticNames() {
  static const std::vector<std::string> names = {"cyclic", "zigzag", "checkpointing", "two-jobs"};
  return names;
}

wire::Result<Trace> MakeTrace(const std::string& name) {
  constexpr int kSteps = 10;
  Trace trace;
  trace.name = name;
  if (name == "cyclic") {
    MakeCyclic(trace, "trainer", kSteps);
  } else if (name == "zigzag") {
    MakeZigzag(trace, "qlora", kSteps);
  } else if (name == "checkpointing") {
    MakeCheckpointing(trace, "qlora", kSteps);
  } else if (name == "two-jobs") {
    MakeCyclic(trace, "trainer", kSteps);
    MakeZigzag(trace, "qlora", kSteps);
  } else {
    return Status(Code::kNotFound,
                  "no synthetic trace '" + name + "': there are cyclic, zigzag, checkpointing, two-jobs");
  }
  return trace;
}

}  // namespace bitpager::replay
