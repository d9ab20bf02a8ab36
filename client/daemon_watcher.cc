#include "client/daemon_watcher.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <system_error>

namespace bitpager::client {
namespace {

using wire::Code;
using wire::Status;

// A daemon that ended the session and lives on does not hang up at once.
constexpr int kLookEveryMs = 100;
// Work of an ending daemon may still store a smaller `done` over ours.
constexpr int kStoreAgainMs = 10;

}  // namespace

void ReleaseStreams(wire::SegmentHeader& header) {
  header.done.word.store(wire::kDoneReleased, std::memory_order_release);
}

Status DaemonWatcher::Start(wire::SegmentHeader& header, int socket) {
  stop_.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!stop_) return {Code::kOutOfMemory, "no descriptor for the watcher. Hint: look at ulimit -n"};
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the program's own threads
  Status started;
  try {
    thread_ = std::thread([this, &header, socket] { Watch(header, socket); });
  } catch (const std::system_error&) {
    started = {Code::kOutOfMemory, "cannot start the watcher thread. Hint: look at ulimit -u"};
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return started;
}

DaemonWatcher::~DaemonWatcher() {
  Stop();
}

void DaemonWatcher::Stop() {
  if (!thread_.joinable()) return;
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(stop_.get(), &one, sizeof(one));
  thread_.join();
}

void DaemonWatcher::Watch(wire::SegmentHeader& header, int socket) {
  bool over = false;
  for (;;) {
    // Once over, the hang-up stays readable: only the stop is waited for.
    pollfd watched[2] = {{stop_.get(), POLLIN, 0}, {over ? -1 : socket, POLLRDHUP, 0}};
    const int ready = ::poll(watched, 2, over ? kStoreAgainMs : kLookEveryMs);
    if (ready < 0 && errno != EINTR) return;
    if (ready > 0 && watched[0].revents != 0) return;
    const bool hung_up = ready > 0 && watched[1].revents != 0;
    // Acquire pairs with the release of the daemon that ended the session.
    over = over || hung_up || header.failed.word.load(std::memory_order_acquire) != 0;
    if (!over) continue;
    std::uint64_t lives = 0;
    // Pairs with the acquire of the session's next call.
    header.failed.word.compare_exchange_strong(lives, static_cast<std::uint64_t>(Code::kDaemonLost),
                                               std::memory_order_release, std::memory_order_relaxed);
    // Pairs with the streams' wait.
    if (header.done.word.load(std::memory_order_relaxed) != wire::kDoneReleased) ReleaseStreams(header);
  }
}

}  // namespace bitpager::client
