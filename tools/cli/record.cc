// record: what the daemon tells, written down line by line.
#include <unistd.h>

#include <array>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <set>

#include "tools/cli/commands.h"
#include "tools/cli/feed.h"
#include "tools/cli/output.h"
#include "tools/cli/signals.h"

namespace bitpager::cli {
namespace {

using nlohmann::json;
using std::chrono::steady_clock;
using wire::Code;
using wire::Result;
using wire::Status;

constexpr int kRecordVersion = 1;

std::int64_t UnixMs() {
  using namespace std::chrono;
  return duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count();
}

std::string Dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string PagesQuery(const RecordOptions& options) {
  return Dump({{"query", "pages"}, {"cells", options.cells}});
}

Feed::Options FeedOf(const RecordOptions& options) {
  Feed::Options out;
  out.interval = std::chrono::milliseconds(std::lround(options.interval_s * 1000));
  out.events = true;
  out.queries = {kStatusQuery};
  if (options.cells != 0) out.queries.push_back(PagesQuery(options));
  return out;
}

SteadyTime EndOf(const RecordOptions& options) {
  constexpr double kForEver = 1e9;
  const double seconds = options.duration_s == 0 ? kForEver : options.duration_s;
  return steady_clock::now() + std::chrono::milliseconds(std::llround(seconds * 1000));
}

class Recorder {
 public:
  Recorder(LineOutput& out, const RecordOptions& options) : out_(out), pages_query_(PagesQuery(options)) {}

  [[nodiscard]] Status Begin() {
    return out_.Write(Dump({{"bitpager_record", kRecordVersion}, {"started_unix_ms", UnixMs()}}));
  }
  // Writes what there is to write of an item. Errors are the file's.
  [[nodiscard]] Status Take(const Feed::Item& item, const std::string& place) {
    using Kind = Feed::Item::Kind;
    if (item.kind == Kind::kEvent) return Line("event", json::parse(item.event.json));
    if (item.kind == Kind::kLost) PrintError(item.status.message() + "; looking for it again");
    if (item.kind == Kind::kBack) PrintError("bitpagerd at " + place + " is back");
    return item.kind == Kind::kReply ? TakeReply(item) : Status();
  }
  [[nodiscard]] std::uint64_t lines() const { return lines_; }

 private:
  [[nodiscard]] Status TakeReply(const Feed::Item& item) {
    const bool pages = item.query == pages_query_;
    if (const Status checked = CheckReply(item.body); !checked.ok()) {
      const std::string what = pages ? "page maps are not recorded: " : "a sample is missing: ";
      if (said_.insert(what).second) PrintError(what + checked.message());
      return {};
    }
    if (!pages) return Line("status", json::parse(item.body));
    if (item.body == last_pages_) return {};
    last_pages_ = item.body;
    return Line("pages", json::parse(item.body));
  }
  [[nodiscard]] Status Line(const char* type, json&& body) {
    ++lines_;
    return out_.Write(Dump({{"type", type}, {"time_unix_ms", UnixMs()}, {"body", std::move(body)}}));
  }

  LineOutput& out_;
  std::string pages_query_;
  std::string last_pages_;
  std::set<std::string> said_;
  std::uint64_t lines_ = 0;
};

Result<LineOutput> OpenOutput(const std::string& file) {
  if (file == "-") return LineOutput();
  return LineOutput::Create(file);
}

int End(LineOutput& out, const Recorder& recorder, const RecordOptions& options, const Status& why) {
  const Status synced = out.Sync();
  if (why.code() == Code::kUnreachable) return kOkExit;  // nobody reads the pipe any more
  if (!why.ok()) return Failure(why);
  if (!synced.ok()) return Failure(synced);
  if (options.file != "-") {
    std::fprintf(stderr, "recorded %llu lines in %s\n", static_cast<unsigned long long>(recorder.lines()),
                 options.file.c_str());
  }
  return kOkExit;
}

}  // namespace

int RunRecord(const Target& target, const RecordOptions& options) {
  std::signal(SIGXFSZ, SIG_IGN);  // a limit of the file's size is an error of write then
  const Signals signals{SIGINT, SIGTERM, SIGHUP};
  Feed feed(target, FeedOf(options));
  // The daemon first: no empty file is left when there is none.
  if (const Status started = feed.Start(); !started.ok()) return NotReached(started);
  Result<LineOutput> out = OpenOutput(options.file);
  if (!out.ok()) return Failure(out.status());
  out->StopAt(signals.fd());
  Recorder recorder(*out, options);
  Status status = recorder.Begin();
  const SteadyTime end = EndOf(options);
  const std::array<Input, 2> inputs = {Input{signals.fd()}, Input{out->fd(), true}};
  while (status.ok() && steady_clock::now() < end) {
    const Feed::Item item = feed.Next(end, inputs);
    if (item.kind == Feed::Item::Kind::kInput) break;
    status = recorder.Take(item, feed.place());
  }
  return End(*out, recorder, options, status);
}

}  // namespace bitpager::cli
