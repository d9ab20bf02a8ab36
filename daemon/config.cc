#include "daemon/config.h"

#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>

#include "client/wire/user_folder.h"
#include "daemon/config_file.h"
#include "daemon/config_settings.h"
#include "daemon/http_address.h"

namespace bitpager::daemon {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

constexpr const char* kFooter =
    "Sizes: bytes, or 8GiB, 512MiB, 2M (K, M, G, T are powers of 1024), or 40% of what the default is taken\n"
    "from. Times: 250ms, 30s, 10m, 2h. Flags override the file, the file overrides the defaults.\n"
    "Exit codes: 0 ok, 1 failure, 2 usage.";

struct Flags {
  std::map<const Setting*, std::string> values;
  std::map<const Setting*, bool> switches;
  std::string config_path;
  bool private_mode = false;
  bool background = false;
  bool version = false;
};

void Describe(CLI::App& app, Flags& flags) {
  app.footer(kFooter);
  app.add_option("--config", flags.config_path,
                 std::string("TOML file (default ") + kSystemConfigPath + ", if it exists)")
      ->type_name("FILE");
  for (const Setting& setting : Settings()) {
    if (setting.value_name == nullptr) {
      app.add_flag(setting.flag, flags.switches[&setting], setting.help);
    } else {
      app.add_option(setting.flag, flags.values[&setting], setting.help)->type_name(setting.value_name);
    }
  }
  app.add_flag("--private", flags.private_mode, "serve one user's processes and end with the last of them");
  app.add_flag("--background", flags.background, "go to the background, and come back when it serves");
  app.add_flag("--version", flags.version, "print the version and exit");
}

// Text to print and exit with, or nothing.
Result<std::string> ParseFlags(CLI::App& app, const Flags& flags, int argc, const char* const* argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    return app.help();
  } catch (const CLI::Error& error) {
    return Status(Code::kInvalidArgument,
                  std::string(error.what()) + ". Hint: bitpagerd --help lists the flags");
  } catch (const std::exception& error) {
    return Status(Code::kInternal, std::string("reading the flags failed: ") + error.what());
  }
  return flags.version ? std::string("bitpagerd ") + kVersion + "\n" : std::string();
}

Status ApplyFlags(const CLI::App& app, const Flags& flags, Config& config) {
  for (const Setting& setting : Settings()) {
    if (app.count(setting.flag) == 0) continue;
    const std::string text = setting.value_name == nullptr ? "true" : flags.values.at(&setting);
    const Status status = setting.set(config, text);
    if (!status.ok()) return {status.code(), std::string(setting.flag) + ": " + status.message()};
  }
  config.private_mode = flags.private_mode;
  if (config.private_mode && app.count("--disk-folder") == 0) {
    // The machine's folder is for the daemon that serves all; one user's own would need to be let in, and
    // would take its share of the disk again.
    config.disk_folder.clear();
    config.disk_budget = {};
  }
  config.background = flags.background;
  return {};
}

Status ReadFile(const Flags& flags, const ConfigSources& sources, Config& config) {
  std::error_code ignored;
  config.config_path = flags.config_path;
  if (config.config_path.empty() && std::filesystem::exists(sources.system_config_path, ignored)) {
    config.config_path = sources.system_config_path;
  }
  return config.config_path.empty() ? Status() : ReadConfigFile(config.config_path, config);
}

// What follows from other settings, once all sources are read.
Status Complete(Config& config) {
  if (config.socket_path.empty()) {
    const char* named = std::getenv("BITPAGER_SOCKET");
    config.socket_unnamed = named == nullptr || *named == '\0';
    config.socket_path = DefaultSocketPath();
  }
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(config.socket_path, error);
  if (error) return {Code::kInternal, "the working directory is gone: " + error.message()};
  config.socket_path = absolute.lexically_normal().string();
  if (config.socket_path.size() > kMaxSocketPathBytes) {
    return {Code::kInvalidArgument,
            "the socket path " + config.socket_path + " has " + std::to_string(config.socket_path.size()) +
                " bytes, and at most " + std::to_string(kMaxSocketPathBytes) +
                " fit a Unix socket with its companions. Hint: --socket with a shorter path"};
  }
  if (config.max_sessions_of_user == 0)
    config.max_sessions_of_user = std::max(1U, config.max_sessions / 4 * 3);
  if (config.status_endpoint.empty()) config.status_endpoint = "ipc://" + config.socket_path + ".status";
  if (config.events_endpoint.empty()) config.events_endpoint = "ipc://" + config.socket_path + ".events";
  if (config.status_endpoint == config.events_endpoint) {
    return {Code::kInvalidArgument, "status and events have the same endpoint " + config.status_endpoint +
                                        ". Hint: leave them out, or give each its own path"};
  }
  if (!config.http.empty() && !config.http_remote && !ParseHttpAddress(config.http)->loopback) {
    return {Code::kInvalidArgument,
            "telemetry.http is " + config.http +
                ", which other machines may reach, and whoever reaches it reads the names "
                "and figures of every job. Hint: 127.0.0.1:PORT, or --http-remote"};
  }
  return {};
}

}  // namespace

Result<LoadedConfig> LoadConfig(int argc, const char* const* argv, const ConfigSources& sources) {
  CLI::App app("bitpagerd: owns the memory of 8-bit optimizer states and 4-bit weights, in pages",
               "bitpagerd");
  Flags flags;
  Describe(app, flags);
  const Result<std::string> text = ParseFlags(app, flags, argc, argv);
  if (!text.ok()) return text.status();
  LoadedConfig out;
  out.print_and_exit = *text;
  if (!out.print_and_exit.empty()) return out;

  constexpr std::uint32_t kModeNotSet = ~0U;
  out.config.socket_mode = kModeNotSet;
  Status status = ReadFile(flags, sources, out.config);
  if (status.ok()) status = ApplyFlags(app, flags, out.config);
  if (out.config.socket_mode == kModeNotSet) {
    out.config.socket_mode = out.config.socket_group.empty() ? 0600 : 0660;
  }
  if (status.ok()) status = Complete(out.config);
  if (!status.ok()) return status;
  return out;
}

int ExitCodeOf(const Status& status) {
  if (status.ok()) return 0;
  return status.code() == Code::kInvalidArgument ? 2 : 1;
}

std::uint32_t WindowPages(const Config& config) {
  constexpr std::uint64_t kBytes = 16U << 20;
  if (config.window_pages != 0) return config.window_pages;
  return static_cast<std::uint32_t>(std::clamp<std::uint64_t>(kBytes / config.page_bytes, 8, 32));
}

std::string DefaultSocketPath() {
  const char* named = std::getenv("BITPAGER_SOCKET");
  if (named != nullptr && *named != '\0') return named;
  if (::geteuid() == 0) return kSystemSocketPath;
  return wire::FindUserFolder().path + "/bitpager.sock";
}

Status MakeSocketFolder(const Config& config) {
  if (!config.socket_unnamed) return {};
  const std::string folder = config.socket_path.substr(0, config.socket_path.rfind('/'));
  const bool is_root = ::geteuid() == 0;
  if (::mkdir(folder.c_str(), is_root ? 0755 : 0700) == 0) return {};
  if (errno == EEXIST) {
    // Nobody else comes into root's /run, nor into a user's runtime folder.
    return is_root || wire::FindUserFolder().in_runtime_folder ? Status() : wire::CheckOwnFolder(folder);
  }
  return {Code::kPermissionDenied, "cannot make the folder " + folder + " of the socket: " +
                                       std::strerror(errno) + ". Hint: --socket names another place"};
}

}  // namespace bitpager::daemon
