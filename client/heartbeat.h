// Counts up a word of the segment so that a daemon that cannot see this process knows that it lives. Owns one
// thread, which makes no other call.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "client/wire/segment.h"

namespace bitpager::client {

class Heartbeat {
 public:
  // Beats every `interval` until destroyed; `word` outlives it.
  Heartbeat(wire::Word& word, std::chrono::milliseconds interval);
  ~Heartbeat();
  Heartbeat(const Heartbeat&) = delete;
  Heartbeat& operator=(const Heartbeat&) = delete;

 private:
  void Beat(wire::Word& word, std::chrono::milliseconds interval);

  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace bitpager::client
