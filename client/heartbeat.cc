#include "client/heartbeat.h"

#include <csignal>

namespace bitpager::client {

Heartbeat::Heartbeat(wire::Word& word, std::chrono::milliseconds interval) {
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the program's own threads
  thread_ = std::thread([this, &word, interval] { Beat(word, interval); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Heartbeat::~Heartbeat() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void Heartbeat::Beat(wire::Word& word, std::chrono::milliseconds interval) {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    word.fetch_add(1, std::memory_order_relaxed);  // a sign of life: orders nothing
    wake_.wait_for(lock, interval, [this] { return stop_; });
  }
}

}  // namespace bitpager::client
