// What operators hear of: one vocabulary, one form, and the log that holds the last ones. The dispatchers and
// main add; the telemetry and HTTP threads read.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace bitpager::daemon {

// 2: `id`.
inline constexpr int kEventSchemaVersion = 2;

// attach         a session began; text: its client
// detach         a session ended as it should; bytes: of the pages that went with it
// killed         a session ended without a detach; bytes likewise
// evict          pages were made to leave the device; text: why (command, limit, pressure, share); bytes: of
// all
//                that left in one burst. Pages that a job's own steps stream are no event.
// pressure       the device budget was lowered to `bytes`, because the device's free memory fell
// pressure_over  and raised again
// limit          a job's limits were changed; bytes: its device quota, 0 for none
// nonfinite      a step met gradients with NaN or inf; text: which step and tensor
// error          a session failed, a device fault, a lease that is not given back, a refusal for want of
// memory draining       no new sessions are taken expired        what a job had kept without a session was
// dropped
inline constexpr std::array<std::string_view, 11> kEventNames = {
    "attach", "detach",    "killed", "evict",    "pressure", "pressure_over",
    "limit",  "nonfinite", "error",  "draining", "expired"};

// Every key is always in the JSON form; empty or 0 where it says nothing.
struct Event {
  std::string name;  // of kEventNames
  std::int64_t time_unix_ms = 0;
  std::string job;
  std::string device;  // UUID
  std::uint64_t bytes = 0;
  std::string text;
  std::uint64_t id = 0;  // set by EventLog::Add
};

// {"schema_version":2,"id":...,"name":...,"time_unix_ms":...,"job":...,"device":...,"bytes":...,"text":...}.
// Valid UTF-8 whatever the names hold.
[[nodiscard]] std::string ToJson(const Event& event);
// {"schema_version":2,"events":[...]}, oldest first.
[[nodiscard]] std::string ToJson(const std::vector<Event>& events);

[[nodiscard]] std::int64_t UnixMs();

// Each event has an id, one more than the event before it. They begin at the microsecond of Unix time at
// which the log was made, so that those of a daemon that was started again are greater than all of its
// predecessor (no log gets a million events a second), and are exact as the floating-point numbers of
// browsers until 2255.
class EventLog {
 public:
  explicit EventLog(std::uint64_t first_id = static_cast<std::uint64_t>(UnixMs()) * 1000)
      : first_(first_id) {}

  static constexpr std::size_t kKept = 256;   // that Last gives
  static constexpr std::size_t kHeld = 1024;  // for readers that are behind

  // ---- any thread
  // Stamps it with the time and wakes the readers; never waits for one.
  void Add(Event event);
  [[nodiscard]] std::vector<Event> Last() const;
  // Those with `after` < id < `before`, oldest first: the last kKept of them that are held. All that could be
  // given when `after` is no id of an event before `before`.
  [[nodiscard]] std::vector<Event> Between(std::uint64_t after, std::uint64_t before) const;
  // Events so far, by name.
  [[nodiscard]] std::map<std::string, std::uint64_t> Counts() const;
  // Events that a reader missed because it was too far behind.
  [[nodiscard]] std::uint64_t dropped() const;

  // ---- readers. Each keeps its own place: the id of the first event it has not read.
  [[nodiscard]] std::uint64_t Next() const;
  // Those from `place` on, which moves behind them.
  [[nodiscard]] std::vector<Event> Since(std::uint64_t& place);
  // `wake` is called behind each Add, on its thread, until it is taken out again by Unwatch.
  int Watch(std::function<void()> wake);
  void Unwatch(int watch);

 private:
  mutable std::mutex mutex_;
  std::deque<Event> events_;                     // guarded by mutex_, as all below
  std::uint64_t first_;                          // id of events_.front()
  std::map<std::string, std::uint64_t> counts_;  // by name
  std::uint64_t dropped_ = 0;
  std::map<int, std::function<void()>> watches_;
  int last_watch_ = 0;
};

}  // namespace bitpager::daemon
