// What a daemon tells over time: its answers to the same queries at every interval, and its events, those
// that it keeps first. Looks for the daemon again when it has gone. One thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "client/wire/status.h"
#include "tools/cli/event.h"
#include "tools/cli/watch.h"

namespace bitpager::cli {

class Feed {
 public:
  struct Options {
    std::chrono::milliseconds interval{1000};
    std::vector<std::string> queries;  // JSON objects, asked in this order
    bool events = false;
  };
  struct Item {
    enum class Kind : std::uint8_t { kNothing, kInput, kReply, kEvent, kLost, kBack };
    Kind kind = Kind::kNothing;
    std::string query;    // kReply
    std::string body;     // kReply: JSON as it came; an error reply too
    Event event;          // kEvent
    wire::Status status;  // kLost: why
  };

  Feed(Target target, Options options);

  // The first connection; errors as Watch::Open.
  [[nodiscard]] wire::Status Start();
  // Waits for one thing, at most until `until`. Once lost, the daemon is looked for at every interval, and at
  // least every second.
  [[nodiscard]] Item Next(SteadyTime until, std::span<const Input> inputs);
  [[nodiscard]] const std::string& place() const { return watch_.place(); }

 private:
  void AskWhatIsDue(SteadyTime now);
  [[nodiscard]] bool Reopen(SteadyTime now);
  [[nodiscard]] bool Take(Watch::News&& news, Item& out);

  Options options_;
  Watch watch_;
  EventJoin join_;
  std::deque<Event> waiting_;  // taken from what is kept, not yet given out
  SteadyTime next_ask_{};
  SteadyTime second_look_{};  // for events between the first look and the subscription's arrival
  int looks_ = 0;
};

// The query for what the daemon keeps of its events.
inline constexpr const char* kEventsQuery = R"({"query":"events"})";
inline constexpr const char* kStatusQuery = R"({"query":"status"})";

}  // namespace bitpager::cli
