// A daemon that is watched: its answers and the events that it publishes, over sockets that stay open.
// Notices when it ends or falls silent. One thread, which calls everything here; nothing blocks but Next.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "client/wire/status.h"
#include "tools/cli/reach.h"

namespace bitpager::cli {

using SteadyTime = std::chrono::steady_clock::time_point;

// A file that ends a wait: when it can be read or is closed; an output, when nobody reads it any more.
struct Input {
  int fd = -1;
  bool is_output = false;
};

class Watch {
 public:
  struct News {
    enum class Kind : std::uint8_t { kNothing, kInput, kReply, kEvent };
    Kind kind = Kind::kNothing;
    std::string query;  // kReply: what was asked
    std::string body;   // kReply, kEvent: as it came
  };

  Watch(Target target, bool hears_events);
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  // Connects. Errors as FindEndpoints; kInvalidArgument when events are wanted and their endpoint is unknown.
  [[nodiscard]] wire::Status Open();
  void Close();
  [[nodiscard]] bool is_open() const;
  // Of the daemon that was last reached.
  [[nodiscard]] const std::string& place() const { return place_; }

  // Sends a query (a JSON object); its answer comes through Next, answers in the order of their queries.
  void Ask(const std::string& query);
  [[nodiscard]] bool IsWaitingFor(const std::string& query) const;

  // Waits for one thing, at most until `until`: an answer, an event, or one of `inputs`. Works while
  // closed, for the inputs. After an error it is closed: kDaemonLost (the daemon ended), kUnreachable (it did
  // not answer in the target's time).
  [[nodiscard]] wire::Result<News> Next(SteadyTime until, std::span<const Input> inputs);

 private:
  struct Sockets;
  [[nodiscard]] bool DaemonEnded();
  [[nodiscard]] bool TakeReply(News& out);
  [[nodiscard]] bool TakeEvent(News& out);
  [[nodiscard]] wire::Result<bool> Poll(SteadyTime until, std::span<const Input> inputs);

  Target target_;
  bool hears_events_;
  std::string place_;
  std::unique_ptr<Sockets> sockets_;
};

}  // namespace bitpager::cli
