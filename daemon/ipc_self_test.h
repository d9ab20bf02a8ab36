// Whether GPU memory that a client lent by handle stays valid after the client is killed: CUDA does not
// promise it, and steps rest on it. Found out by a process apart, which lends memory to another one and kills
// it, so that a driver where it fails takes that process down and not the daemon. Two CUDA contexts take
// their half gigabyte each meanwhile, so it waits for a time without sessions, and gives way to one that
// comes. One thread of its own, which waits.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/wire/unique_fd.h"
#include "kernels/device.h"

namespace bitpager::daemon {

enum class IpcSurvival : std::uint8_t {
  kNotTested,  // the device takes no memory by handle, it is switched off, or the test is to come
  kYes,
  kNo,
  kUnknown,  // the test could not tell
};
[[nodiscard]] const char* IpcSurvivalName(IpcSurvival survival);  // "not tested", "yes", "no", "unknown"

struct IpcFinding {
  IpcSurvival survival = IpcSurvival::kNotTested;
  std::string why;  // kUnknown: the reason; kNotTested: what it waits for, empty for a device without handles
};

class IpcSelfTest {
 public:
  struct Limits {
    int quiet_ms = 5'000;  // without a session, before it starts
    int test_ms = 30'000;  // to answer
  };

  IpcSelfTest() = default;
  ~IpcSelfTest();  // ends the process
  IpcSelfTest(const IpcSelfTest&) = delete;
  IpcSelfTest& operator=(const IpcSelfTest&) = delete;

  // Once: `command` (its first word is the program) is started when nobody was here for a while. It prints
  // one line: "yes", "no", or a reason why that is not known.
  void Start(std::vector<std::string> command, Limits limits);
  // Instead of Start: it is not tested, and why.
  void Skip(std::string why) { Conclude({IpcSurvival::kNotTested, std::move(why)}); }
  // How many sessions there are now. A test under way is ended by the first, and begun anew after the last.
  // The thread that called Start.
  void SetSessions(std::size_t sessions);

  // From any thread.
  [[nodiscard]] IpcFinding finding() const;

 private:
  void Run(const std::vector<std::string>& command, Limits limits);
  [[nodiscard]] bool AwaitQuiet(int quiet_ms);
  void Conclude(IpcFinding finding);

  mutable std::mutex mutex_;
  IpcFinding finding_;        // guarded by mutex_
  std::size_t sessions_ = 0;  // guarded by mutex_
  bool stop_ = false;         // guarded by mutex_
  wire::UniqueFd bell_;       // an eventfd: rung when one of both has changed
  std::thread thread_;
};

// What the process apart does: prints the line and ends, with whatever the device still does: one that has
// failed may never let go. `exporter` is the command that RunIpcExporter is called by.
[[noreturn]] void RunIpcProbe(const std::string& uuid, const std::vector<std::string>& exporter);
// The same on an open device.
[[noreturn]] void ProbeAndEnd(std::unique_ptr<kernels::Device> device,
                              const std::vector<std::string>& exporter);

}  // namespace bitpager::daemon
