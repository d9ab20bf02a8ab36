// A real bitpagerd from the build tree, in its own temporary folder, and child processes that tests kill.
// Nothing of them outlives the test: children die with their parent (PR_SET_PDEATHSIG) and are reaped.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "client/session.h"
#include "daemon/snapshot.h"

namespace bitpager::testing {

using Millis = std::chrono::milliseconds;

// A sanitizer makes everything slower: limits of time are stretched and counts cut by this.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr int kSlowdown = 10;
#else
inline constexpr int kSlowdown = 1;
#endif

// Turns until `condition` holds; false after `limit`, which kSlowdown stretches.
[[nodiscard]] bool WaitUntil(const std::function<bool()>& condition, Millis limit);

// mkdtemp under /tmp; removed with all it holds.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A forked child that runs `body` and exits with what it returns. `body` starts before any thread of the
// parent matters to it: it opens its own session.
class Child {
 public:
  explicit Child(const std::function<int()>& body);
  ~Child();  // kills and reaps
  Child(Child&& other) noexcept : pid_(other.pid_), status_(other.status_) { other.pid_ = -1; }
  Child& operator=(Child&&) = delete;

  void Signal(int signal) const;
  // The exit status as waitpid gives it; none when it still runs after `limit`, which kSlowdown stretches.
  [[nodiscard]] std::optional<int> Wait(Millis limit);
  // Exited with 0 within `limit`.
  [[nodiscard]] bool Succeeds(Millis limit = Millis(60'000));
  [[nodiscard]] pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
  std::optional<int> status_;
};

// What a process uses, from /proc.
struct ProcessUse {
  std::uint64_t cpu_ns = 0;  // of all its threads
  std::uint64_t rss_bytes = 0;
  std::size_t fds = 0;
};
[[nodiscard]] ProcessUse UseOf(pid_t pid);

class DaemonProcess {
 public:
  struct Options {
    std::vector<std::string> flags;
    std::string folder;       // of the socket; empty: its own
    std::uint32_t uid = ~0U;  // ~0: the test's own
    bool wait = true;         // until it serves
  };
  explicit DaemonProcess(std::vector<std::string> flags)
      : DaemonProcess(Options{std::move(flags), "", ~0U, true}) {}
  explicit DaemonProcess(const Options& options);

  // The program, as a client may start it.
  [[nodiscard]] static std::string Program();
  [[nodiscard]] const std::string& socket() const { return socket_; }
  [[nodiscard]] pid_t pid() const { return child_->pid(); }
  void Signal(int signal) { child_->Signal(signal); }
  [[nodiscard]] std::optional<int> Wait(Millis limit) { return child_->Wait(limit); }
  [[nodiscard]] bool Serves() const;
  // What it wrote to stderr.
  [[nodiscard]] std::string Log() const;
  // Asked over ZeroMQ, as operators do, until it is told; none when the daemon has ended.
  [[nodiscard]] std::optional<daemon::Snapshot> Status() const;
  [[nodiscard]] ProcessUse Use() const { return UseOf(pid()); }

  // A session of the client library; fails the test when refused.
  [[nodiscard]] std::shared_ptr<client::Session> Open(const std::string& job) const;
  [[nodiscard]] client::ConnectOptions ConnectOptionsOf(const std::string& job) const;

 private:
  [[nodiscard]] std::optional<daemon::Snapshot> AskStatus() const;

  TempFolder own_folder_;
  std::string folder_;
  std::string socket_;
  std::optional<Child> child_;
};

// A socket to the daemon, as RawClient takes it.
[[nodiscard]] int ConnectRaw(const std::string& socket);

}  // namespace bitpager::testing
