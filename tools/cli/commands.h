// The commands of `bitpager`. Each prints its result on stdout, its error on stderr, and returns the exit
// code (reach.h). One thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "client/wire/status.h"
#include "tools/cli/reach.h"

namespace bitpager::cli {

struct StatusOptions {
  bool json = false;
};
[[nodiscard]] int RunStatus(const Target& target, const StatusOptions& options);

struct LimitOptions {
  std::string job;
  std::string device;  // size, "none" (no limit but the budget), or empty (no change)
  std::string host;
  double weight = 0;      // 0: no change
  std::string owner;      // uid or user name; empty: the caller
  std::string uuid = {};  // of the device; empty: the one that the job is on
};
[[nodiscard]] int RunLimit(const Target& target, const LimitOptions& options);

struct EvictOptions {
  std::string job;
  std::string size;  // empty: all
  std::string owner;
  std::string uuid = {};  // as in LimitOptions
};
[[nodiscard]] int RunEvict(const Target& target, const EvictOptions& options);
[[nodiscard]] int RunDrain(const Target& target);
[[nodiscard]] int RunVersion(const Target& target);

struct DoctorOptions {
  bool json = false;
};
[[nodiscard]] int RunDoctor(const Target& target, const DoctorOptions& options);

struct TopOptions {
  bool once = false;  // one frame as text, or one JSON line
  bool json = false;
  double interval_s = 1;
};
// Ends by q, SIGINT, SIGTERM, or when nobody reads its stdout: all kOkExit. A daemon that goes away later
// than the first connection is waited for, but with `once`.
[[nodiscard]] int RunTop(const Target& target, const TopOptions& options);

struct EventsOptions {
  bool follow = false;
  bool json = false;
  std::string job;  // empty: all
};
// `follow` ends as RunTop does, or with the daemon: kUnreachableExit.
[[nodiscard]] int RunEvents(const Target& target, const EventsOptions& options);

struct RecordOptions {
  std::string file;  // "-": stdout
  double interval_s = 1;
  double duration_s = 0;  // 0: until a signal
  unsigned cells = 1024;  // of a page map, 64 to 4096; 0: none are recorded
};
// Form: JSON lines, the first {"bitpager_record":1,"started_unix_ms":N}, each other
// {"type":"status"|"pages"|"event", "time_unix_ms":N,"body":...}. Ends by SIGINT, SIGTERM, SIGHUP or after
// the duration, the file whole.
[[nodiscard]] int RunRecord(const Target& target, const RecordOptions& options);

// What a model takes in memory, from its config; asks no daemon. Returns only when Python does not start.
[[nodiscard]] int RunPlan(const std::vector<std::string>& arguments);

// ---- shared by the commands
// Prints "bitpager: <message>" on stderr, in red where that is wanted.
void PrintError(const std::string& message);
// Colours for this stream: a terminal, and NO_COLOR not set.
[[nodiscard]] bool WantsColor(int fd);
// These print the message and return the exit code: of a daemon that cannot be reached or asked, of other
// failures.
[[nodiscard]] int NotReached(const wire::Status& status);
[[nodiscard]] int Failure(const wire::Status& status);
// For failures while reaching the daemon or asking it.
[[nodiscard]] int ExitCodeOf(const wire::Status& status);

}  // namespace bitpager::cli
