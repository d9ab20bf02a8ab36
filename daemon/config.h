// The daemon's settings: defaults, then the TOML file, then the flags; each overrides the one before.
// Read once by main before any thread starts; constant from then on.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "client/wire/status.h"
#include "paging/pager.h"

namespace bitpager::daemon {

inline constexpr const char* kVersion = "0.1.0";
inline constexpr const char* kSystemConfigPath = "/etc/bitpager/bitpagerd.toml";
inline constexpr const char* kSystemSocketPath = "/run/bitpager/bitpager.sock";
// Of the socket, so that ".status" and ".events" still fit sockaddr_un.
inline constexpr std::size_t kMaxSocketPathBytes = 100;
inline constexpr std::size_t kMaxIpcPathBytes = 107;

// A size as people write it: not given, bytes, or a share of what it is resolved against (see
// ResolveBudgets in machine.h).
struct SizeSetting {
  enum class Kind : std::uint8_t { kDefault, kBytes, kPercent };
  Kind kind = Kind::kDefault;
  std::uint64_t bytes = 0;  // kBytes
  double percent = 0;       // kPercent: above 0, at most 100
  bool operator==(const SizeSetting&) const = default;
};

struct Config {
  // ---- socket
  std::string socket_path;           // absolute; see DefaultSocketPath
  bool socket_unnamed = false;       // nobody named it: its folder may have to be made
  std::uint32_t socket_mode = 0600;  // 0660 where a group is set
  std::string socket_group;          // empty: the process's own
  std::string status_endpoint;       // "ipc://<socket path>.status" unless set
  std::string events_endpoint;       // "ipc://<socket path>.events" unless set

  // ---- memory
  SizeSetting device_budget;  // default: see ResolveBudgets
  SizeSetting host_budget;
  std::string disk_folder;                // empty: no disk tier
  SizeSetting disk_budget;                // default and percent: of what is free there
  std::uint64_t page_bytes = 512U << 10;  // a power of two, 16 KiB to 64 MiB
  std::uint32_t window_pages = 0;         // 1 to 1024; 0: see WindowPages
  std::uint32_t windows_in_flight = 0;    // 1 to 16; 0: 3 on the CPU, 6 on a GPU
  paging::Policy policy = paging::Policy::kScanAware;
  bool poison_frames = false;

  // ---- device
  std::string device_kind = "auto";  // "cpu"; "cuda"; "auto": the GPUs that can be used, else the CPU
  int device_index = -1;             // of its kind, as the driver counts; -1: all
  std::string device_uuid;           // one GPU, whatever its index; empty: by index
  std::optional<std::uint64_t>
      free_watermark_bytes;          // kept free of a GPU's memory; none: a 64th, 512 MiB at least
  bool managed = false;              // CUDA: frames in managed memory
  bool managed_beyond_free = false;  // CUDA, managed: more than the device has free
  int device_threads = 0;            // 0: the processors this process may use
  bool test_handles = true;          // see ipc_self_test.h

  // ---- what a job gets when its client asks for nothing
  double job_weight = 1.0;
  SizeSetting job_device_quota;  // kDefault: none but the budget; kPercent: of the budget
  SizeSetting job_host_quota;
  bool share_weights = true;   // equal weights of one user's jobs are held once
  std::int64_t linger_ms = 0;  // 0: pages are dropped when the job's last session ends

  // ---- limits, life, log
  std::uint32_t max_sessions = 256;
  std::uint32_t max_sessions_of_user = 0;        // 0: three quarters of max_sessions, filled in by LoadConfig
  std::int64_t lease_return_ms = 5000;           // a revoked lease is to be given back within it
  bool background = false;                       // see background.h
  bool private_mode = false;                     // ends with its last client
  std::int64_t private_grace_ms = 2000;          // after the last client has gone
  std::int64_t private_first_client_ms = 30000;  // for the first client to come
  std::string log_level = "info";                // trace debug info warn error off
  std::string http;                              // "127.0.0.1:9790": where HTTP is answered; empty: nowhere
  bool http_remote = false;                      // `http` may be an address that other machines reach
  std::string config_path;                       // file that was read; empty: none
};

// Pages of a window: as configured, else 16 MiB of them, 8 at least and 32 at most.
[[nodiscard]] std::uint32_t WindowPages(const Config& config);

struct LoadedConfig {
  Config config;
  std::string print_and_exit;  // not empty (--help, --version): print it to stdout and exit with 0
};

// Where the settings come from; tests replace them.
struct ConfigSources {
  std::string system_config_path = kSystemConfigPath;  // read if it exists and --config is not given
};

// Errors: kInvalidArgument (usage or a bad value: flag or file:line, the value, a hint), kNotFound and
// kPermissionDenied (the file given by --config). ExitCodeOf maps them.
[[nodiscard]] wire::Result<LoadedConfig> LoadConfig(int argc, const char* const* argv,
                                                    const ConfigSources& sources = {});

// 0 ok, 1 failure, 2 usage (kInvalidArgument).
[[nodiscard]] int ExitCodeOf(const wire::Status& status);

// BITPAGER_SOCKET; else, for root, kSystemSocketPath; else bitpager.sock in wire::FindUserFolder.
[[nodiscard]] std::string DefaultSocketPath();

// Makes the folder of a socket that nobody named, if it is not there: 0755 for root's, as a service manager
// does, else one of the user's own. kPermissionDenied, with the reason.
[[nodiscard]] wire::Status MakeSocketFolder(const Config& config);

// "8GiB", "512MiB", "2M", "1.5g", "4096", "40%". K, M, G, T, with or without i and B, are powers of 1024.
[[nodiscard]] wire::Result<SizeSetting> ParseSize(std::string_view text);
// As ParseSize, without percent.
[[nodiscard]] wire::Result<std::uint64_t> ParseBytes(std::string_view text);
// "250ms", "30s", "10m", "2h", "0", in ms.
[[nodiscard]] wire::Result<std::int64_t> ParseDurationMs(std::string_view text);
// "8 GiB", "1.5 MiB", "17 B": for messages; at most one decimal.
[[nodiscard]] std::string FormatBytes(std::uint64_t bytes);

[[nodiscard]] wire::Result<paging::Policy> ParsePolicy(std::string_view text);  // scan, lru, clock
[[nodiscard]] std::string_view PolicyName(paging::Policy policy);

}  // namespace bitpager::daemon
