// bitpager-replay: what each policy moves for a trace, beside the optimum; of a recording, what happened,
// too. No daemon and no device take part.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "tools/replay_main/recording.h"
#include "tools/replay_main/simulate.h"
#include "tools/replay_main/summary.h"
#include "tools/replay_main/trace.h"

namespace bitpager::replay {
namespace {

struct Options {
  std::vector<std::string> paths;
  std::vector<std::string> synthetic;
  std::vector<std::string> policies = {"lru", "clock", "scan"};
  std::string budget = "50%";
  std::uint32_t window = 0;  // 0: the largest that fits, which is said where it is not the daemon's
  bool json = false;
};

paging::Policy PolicyOf(const std::string& name) {
  if (name == "lru") return paging::Policy::kLru;
  return name == "clock" ? paging::Policy::kClock : paging::Policy::kScanAware;
}

// "120" frames or "50%" of the trace's pages, at least one.
wire::Result<std::uint64_t> FramesOf(const std::string& budget, std::uint64_t pages) {
  std::size_t used = 0;
  double value = 0;
  try {
    value = std::stod(budget, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  const bool percent = used + 1 == budget.size() && budget.back() == '%';
  if (used == 0 || (!percent && used != budget.size()) || !(value > 0) || value > 1e12) {
    return wire::Status(wire::Code::kInvalidArgument,
                        "--budget '" + budget + "': give frames (120) or a percentage of the pages (50%)");
  }
  const double frames = percent ? static_cast<double>(pages) * value / 100 : value;
  return std::max<std::uint64_t>(1, static_cast<std::uint64_t>(frames));
}

void PrintTable(const Trace& trace, std::uint64_t frames, const std::string& policy, const Outcome& o) {
  const double mib = static_cast<double>(trace.page_bytes) / (1U << 20);
  const double ratio =
      o.optimum.in == 0 ? 0 : static_cast<double>(o.moved.in) / static_cast<double>(o.optimum.in);
  std::printf("%-16s %8llu %8llu  %-6s %9llu %9llu %9llu %9llu %11.1f %11.1f ", Plain(trace.name).c_str(),
              static_cast<unsigned long long>(trace.pages()), static_cast<unsigned long long>(frames),
              policy.c_str(), static_cast<unsigned long long>(o.moved.in),
              static_cast<unsigned long long>(o.optimum.in), static_cast<unsigned long long>(o.moved.out),
              static_cast<unsigned long long>(o.optimum.out), static_cast<double>(o.moved.in) * mib,
              static_cast<double>(o.moved.out) * mib);
  if (o.optimum.in > 0) {
    std::printf("%7.2fx\n", ratio);
  } else {
    std::printf("%8s\n", "-");
  }
}

nlohmann::json RowOf(const Trace& trace, const SimulatorConfig& config, const std::string& policy,
                     const Outcome& o) {
  return {{"trace", trace.name},
          {"pages", trace.pages()},
          {"frames", config.frames},
          {"window_pages", config.window_pages},
          {"page_bytes", trace.page_bytes},
          {"policy", policy},
          {"visits", o.visits},
          {"pages_in", o.moved.in},
          {"optimum_in", o.optimum.in},
          {"pages_out", o.moved.out},
          {"optimum_out", o.optimum.out},
          {"pages_in_last_tenth", o.moved_in_last},
          {"bytes_in", o.moved.in * trace.page_bytes},
          {"bytes_out", o.moved.out * trace.page_bytes}};
}

int Fail(const wire::Status& status) {
  std::fprintf(stderr, "replay: %s\n", status.message().c_str());
  return 2;
}

int ReplayOne(const Trace& trace, const Options& options, nlohmann::json& rows) {
  auto frames = FramesOf(options.budget, trace.pages());
  if (!frames.ok()) return Fail(frames.status());
  SimulatorConfig config;
  config.frames = *frames;
  if (options.window != 0) {
    config.window_pages = options.window;
  } else if (const std::uint32_t fits = WindowThatFits(trace, *frames); fits != config.window_pages) {
    std::fprintf(stderr, "replay: %s: windows of %u pages: longer ones do not fit %llu frames\n",
                 Plain(trace.name).c_str(), fits, static_cast<unsigned long long>(*frames));
    config.window_pages = fits;
  }
  for (const std::string& policy : options.policies) {
    config.policy = PolicyOf(policy);
    auto outcome = Simulate(trace, config);
    if (!outcome.ok()) {
      return Fail({outcome.status().code(), outcome.status().message() + " (--budget, --window)"});
    }
    if (options.json) {
      rows.push_back(RowOf(trace, config, policy, *outcome));
    } else {
      PrintTable(trace, *frames, policy, *outcome);
    }
  }
  return 0;
}

struct Sources {
  std::vector<Recording> recordings;
  std::vector<Trace> traces;
};

wire::Status ReadSource(const std::string& path, Sources& out) {
  if (!IsRecording(path)) {
    auto trace = ReadTrace(path);
    if (trace.ok()) out.traces.push_back(std::move(*trace));
    return trace.status();
  }
  auto recording = ReadRecording(path);
  if (!recording.ok()) return recording.status();
  if (recording->cut_line != 0) {
    std::fprintf(stderr, "replay: %s:%llu: the last line is cut short and does not count\n", path.c_str(),
                 static_cast<unsigned long long>(recording->cut_line));
  }
  for (const Trace& trace : recording->traces) out.traces.push_back(trace);
  out.recordings.push_back(std::move(*recording));
  return {};
}

wire::Result<Sources> ReadSources(const Options& options) {
  Sources out;
  for (const std::string& path : options.paths) {
    if (wire::Status read = ReadSource(path, out); !read.ok()) return read;
  }
  for (const std::string& name : options.synthetic) {
    auto trace = MakeTrace(name);
    if (!trace.ok()) return trace.status();
    out.traces.push_back(std::move(*trace));
  }
  return out;
}

int ReplayAll(const std::vector<Trace>& traces, const Options& options, nlohmann::json& rows) {
  if (traces.empty()) return 0;
  if (!options.json) {
    std::printf("%-16s %8s %8s  %-6s %9s %9s %9s %9s %11s %11s %8s\n", "trace", "pages", "frames", "policy",
                "in", "optimum", "out", "optimum", "in MiB", "out MiB", "in/opt");
  }
  for (const Trace& trace : traces) {
    if (const int failed = ReplayOne(trace, options, rows); failed != 0) return failed;
  }
  if (!options.json) {
    std::printf(
        "in, out: pages copied to the device and back. Optimum in: the least that any policy could copy in "
        "for\n"
        "the same visits (Belady's MIN), each job in its fair share of the frames; optimum out: what that\n"
        "schedule writes back, which is not a bound of its own. Jobs that borrow idle frames can move "
        "less.\n");
  }
  return 0;
}

int Replay(const Options& options) {
  const auto sources = ReadSources(options);
  if (!sources.ok()) return Fail(sources.status());
  nlohmann::json rows = nlohmann::json::array();
  for (const Recording& recording : sources->recordings) {
    if (options.json) {
      rows.push_back(SummaryJson(recording));
    } else {
      std::printf("%s%s\n", SummaryText(recording).c_str(), TraceNote(recording).c_str());
    }
  }
  if (const int failed = ReplayAll(sources->traces, options, rows); failed != 0) return failed;
  if (options.json) {
    std::printf("%s\n", rows.dump(1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  }
  return 0;
}

}  // namespace
}  // namespace bitpager::replay

int main(int argc, char** argv) {
  bitpager::replay::Options options;
  CLI::App app{
      "Replays traces of page visits against eviction policies and prints what they move beside the "
      "optimum. Of recordings (bitpager record) it prints a summary, and replays their steps."};
  app.name("replay");
  app.add_option("TRACE", options.paths,
                 "trace files (format: tools/replay_main/trace.h) and recordings (recording.h)");
  app.add_option("--synthetic", options.synthetic, "cyclic, zigzag, checkpointing, two-jobs")->delimiter(',');
  app.add_option("--policy", options.policies, "lru, clock, scan")
      ->delimiter(',')
      ->check(CLI::IsMember({"lru", "clock", "scan"}));
  app.add_option("--budget", options.budget, "device frames, or a percentage of the trace's pages")
      ->capture_default_str();
  app.add_option("--window", options.window, "pages that one run touches at most; 32, or as many as fit")
      ->check(CLI::Range(1, 4096));
  app.add_flag("--json", options.json, "rows as JSON");
  CLI11_PARSE(app, argc, argv);
  if (options.paths.empty() && options.synthetic.empty())
    options.synthetic = bitpager::replay::SyntheticNames();
  return bitpager::replay::Replay(options);
}
