// bitpager: the operator's command. Parses the command line and runs one command.
#include <CLI/CLI.hpp>
#include <csignal>
#include <exception>

#include "daemon/config.h"
#include "tools/cli/commands.h"

namespace {

using namespace bitpager::cli;

constexpr const char* kFooter =
    "Without --socket: BITPAGER_SOCKET, /run/bitpager/bitpager.sock, this user's daemon, this user's private "
    "one.\nSizes: bytes, or 8GiB, 512MiB, 2M. Exit codes: 0 ok, 1 failure, 2 usage, 3 daemon unreachable.";

struct Options {
  Target target;
  StatusOptions status;
  LimitOptions limit;
  EvictOptions evict;
  DoctorOptions doctor;
  TopOptions top;
  EventsOptions events;
  RecordOptions record;
};

void AddTarget(CLI::App& command, Target& target) {
  command.add_option("--socket", target.socket, "the daemon's Unix socket")->type_name("PATH");
  command.add_option("--timeout", target.timeout_ms, "how long to wait for an answer (3000)")
      ->type_name("MS")
      ->check(CLI::Range(1, 600000));
}

void AddStatusEndpoint(CLI::App& command, Target& target) {
  command.add_option("--status-endpoint", target.status_endpoint, "where to ask (ipc://SOCKET.status)")
      ->type_name("ENDPOINT");
}

void AddInterval(CLI::App& command, double& seconds) {
  command.add_option("--interval", seconds, "between samples (1)")
      ->type_name("SECONDS")
      ->check(CLI::Range(0.1, 3600.0));
}

// The commands that watch a daemon over time.
void AddWatchers(CLI::App& app, Options& options) {
  CLI::App& top = *app.add_subcommand("top", "watch memory, transfers and steps by job, live");
  top.add_flag("--once", options.top.once, "one frame as text: two samples, an interval apart");
  top.add_flag("--json", options.top.json, "one object a line for each sample");
  AddInterval(top, options.top.interval_s);
  top.footer(
      std::string(
          "Keys: s sort, r reverse, arrows and PgUp PgDn scroll, h help, q quit. NO_COLOR: no colours.\n") +
      kFooter);
  CLI::App& events = *app.add_subcommand("events", "what happened: the last events that the daemon keeps");
  events.add_flag("--follow,-f", options.events.follow, "go on with those that come");
  events.add_flag("--json", options.events.json, "one object a line");
  events.add_option("--job", options.events.job, "of this job alone")->type_name("JOB");
  CLI::App& record = *app.add_subcommand("record", "write status, page maps and events to a file, for later");
  record.add_option("FILE", options.record.file, "a new file, or - for stdout")->required();
  AddInterval(record, options.record.interval_s);
  record.add_option("--duration", options.record.duration_s, "then end (until SIGINT)")
      ->type_name("SECONDS")
      ->check(CLI::Range(0.1, 1e9));
  record.add_option("--cells", options.record.cells, "of a page map, 64 to 4096; 0: no page maps (1024)")
      ->type_name("N")
      ->check(CLI::Validator(
          [](std::string& text) { return text == "0" ? std::string() : CLI::Range(64, 4096)(text); }, "",
          "cells"));
  record.footer(
      std::string("tools/replay and the dashboard read the file, which grows by some KiB each interval.\n") +
      kFooter);
  for (CLI::App* command : {&top, &events, &record}) {
    AddTarget(*command, options.target);
    AddStatusEndpoint(*command, options.target);
    command
        ->add_option("--events-endpoint", options.target.events_endpoint,
                     "where to listen (ipc://SOCKET.events)")
        ->type_name("ENDPOINT");
  }
}

void AddCommands(CLI::App& app, Options& options) {
  app.require_subcommand(1);
  app.footer(kFooter);
  CLI::App& status = *app.add_subcommand("status", "show jobs, memory and sessions");
  status.add_flag("--json", options.status.json, "as JSON, integer bytes");
  CLI::App& limit = *app.add_subcommand("limit", "set a job's quotas and weight (root and the job's owner)");
  limit.add_option("JOB", options.limit.job, "the job's name")->required();
  limit.add_option("SIZE", options.limit.device, "device bytes, or none");
  limit.add_option("--host", options.limit.host, "host bytes, or none")->type_name("SIZE");
  limit.add_option("--weight", options.limit.weight, "share under contention")->type_name("W");
  limit.add_option("--uid", options.limit.owner, "the job's owner (the caller)")->type_name("USER");
  limit.add_option("--device", options.limit.uuid, "of a job on several devices, which (bitpager status)")
      ->type_name("UUID");
  CLI::App& evict =
      *app.add_subcommand("evict", "move a job's pages off the device (root and the job's owner)");
  evict.add_option("JOB", options.evict.job, "the job's name")->required();
  evict.add_option("SIZE", options.evict.size, "how much (all)");
  evict.add_option("--uid", options.evict.owner, "the job's owner (the caller)")->type_name("USER");
  evict.add_option("--device", options.evict.uuid, "of a job on several devices, which (bitpager status)")
      ->type_name("UUID");
  CLI::App& drain =
      *app.add_subcommand("drain", "take no new work and finish what runs (root and the daemon's user)");
  CLI::App& version = *app.add_subcommand("version", "versions of this command and of the daemon");
  CLI::App& doctor = *app.add_subcommand("doctor", "what the machine has, what will be used, what is wrong");
  doctor.add_flag("--json", options.doctor.json, "as JSON");
  app.add_subcommand("plan", "what a model takes in memory by scheme: plan CONFIG --vram 24G")
      ->prefix_command();
  for (CLI::App* command : {&status, &limit, &evict, &drain, &version, &doctor})
    AddTarget(*command, options.target);
  for (CLI::App* command : {&status, &version, &doctor}) AddStatusEndpoint(*command, options.target);
  AddWatchers(app, options);
}

int Run(const CLI::App& app, const Options& options) {
  if (app.got_subcommand("status")) return RunStatus(options.target, options.status);
  if (app.got_subcommand("limit")) return RunLimit(options.target, options.limit);
  if (app.got_subcommand("evict")) return RunEvict(options.target, options.evict);
  if (app.got_subcommand("drain")) return RunDrain(options.target);
  if (app.got_subcommand("plan")) return RunPlan(app.get_subcommand("plan")->remaining());
  if (app.got_subcommand("version")) return RunVersion(options.target);
  if (app.got_subcommand("top")) return RunTop(options.target, options.top);
  if (app.got_subcommand("events")) return RunEvents(options.target, options.events);
  if (app.got_subcommand("record")) return RunRecord(options.target, options.record);
  return RunDoctor(options.target, options.doctor);
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  try {
    CLI::App app("bitpager: asks and tells bitpagerd, the owner of paged optimizer states and weights",
                 "bitpager");
    Options options;
    bool show_version = false;
    AddCommands(app, options);
    app.add_flag("--version", show_version, "print the version and exit");
    try {
      // A bare --version needs no command.
      if (argc == 2 && std::string_view(argv[1]) == "--version") {
        std::printf("bitpager %s\n", bitpager::daemon::kVersion);
        return kOkExit;
      }
      const auto is_named = [&](const CLI::App* command) { return command->get_name() == argv[1]; };
      if (argc > 1 && argv[1][0] != '-' && app.get_subcommands(is_named).empty()) {
        PrintError(std::string("unknown command '") + argv[1] + "'. Hint: bitpager --help");
        return kUsageExit;
      }
      app.parse(argc, argv);
    } catch (const CLI::CallForHelp& help) {
      return app.exit(help);
    } catch (const CLI::CallForAllHelp& help) {
      return app.exit(help);
    } catch (const CLI::ParseError& error) {
      PrintError(std::string(error.what()) + ". Hint: bitpager --help");
      return kUsageExit;
    }
    return Run(app, options);
  } catch (const std::exception& error) {
    PrintError(std::string("failed: ") + error.what());
    return kFailureExit;
  }
}
