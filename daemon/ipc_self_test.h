// Whether GPU memory that a client lent by handle stays valid after the client is killed: CUDA does not
// promise it, and steps rest on it. Found out by a process apart, which lends memory to another one and kills
// it, so that a driver where it fails takes that process down and not the daemon. One thread of its own,
// which waits.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "client/wire/unique_fd.h"

namespace bitpager::daemon {

enum class IpcSurvival : std::uint8_t {
  kNotTested,  // the device takes no memory by handle, or the test runs still
  kYes,
  kNo,
  kUnknown,  // the test could not tell
};
[[nodiscard]] const char* IpcSurvivalName(IpcSurvival survival);  // "not tested", "yes", "no", "unknown"

struct IpcFinding {
  IpcSurvival survival = IpcSurvival::kNotTested;
  std::string why;  // kUnknown: the reason
};

class IpcSelfTest {
 public:
  IpcSelfTest() = default;
  ~IpcSelfTest();  // ends the process
  IpcSelfTest(const IpcSelfTest&) = delete;
  IpcSelfTest& operator=(const IpcSelfTest&) = delete;

  // Starts `command` (its first word is the program), which prints one line: "yes", "no", or a reason why
  // that is not known. It has `limit_ms`. Once.
  void Start(std::vector<std::string> command, int limit_ms = 30'000);

  // From any thread.
  [[nodiscard]] IpcFinding finding() const;

 private:
  void Run(std::vector<std::string> command, int limit_ms);
  void Conclude(IpcFinding finding);

  mutable std::mutex mutex_;
  IpcFinding finding_;   // guarded by mutex_
  wire::UniqueFd stop_;  // an eventfd: rung by the destructor
  std::thread thread_;
};

// What the process apart does, and prints: `exporter` is the command that RunIpcExporter is called by.
// Returns the exit code.
[[nodiscard]] int RunIpcProbe(const std::string& uuid, const std::vector<std::string>& exporter);

}  // namespace bitpager::daemon
