// Events of the daemon as the command sees them: read, joined without doubles, printed. One thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "client/wire/status.h"

namespace bitpager::cli {

struct Event {
  std::string name;
  std::int64_t time_unix_ms = 0;
  std::string job;
  std::string device;  // UUID
  std::uint64_t bytes = 0;
  std::string text;
  std::string json;  // the whole object on one line, its keys in order
};

// kProtocol when it is no event: no object, or without a name. Further keys are kept in `json`; those that
// lack say nothing.
[[nodiscard]] wire::Result<Event> EventFromJson(std::string_view body);

// Joins the events that the daemon keeps with those that it publishes: each comes once. An event that was
// taken from what is kept and is published afterwards is the same when its whole body is.
class EventJoin {
 public:
  // Of an answer to the "events" query, those that are new, the oldest first; nothing when it holds none.
  [[nodiscard]] std::vector<Event> AddKept(std::string_view reply);
  [[nodiscard]] bool AddLive(const Event& event);  // true: new

 private:
  struct Seen {
    std::uint32_t kept = 0;   // came from what is kept, and was not heard live
    std::uint32_t heard = 0;  // was heard live
  };
  void Forget(const std::string& json);

  std::map<std::string, Seen> seen_;  // by body
  std::vector<std::string> order_;    // of seen_'s keys, the oldest first
};

// "22:03:04 evict llm 1.2 GiB GPU-5: text"; with the date in front when `dated`. Control characters are
// replaced.
[[nodiscard]] std::string EventText(const Event& event, bool dated, bool utf8);

}  // namespace bitpager::cli
