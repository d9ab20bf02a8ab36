// events: what the daemon keeps of its events, and those that come.
#include <unistd.h>

#include <array>

#include "tools/cli/cells.h"
#include "tools/cli/commands.h"
#include "tools/cli/feed.h"
#include "tools/cli/output.h"
#include "tools/cli/signals.h"

namespace bitpager::cli {
namespace {

using wire::Code;
using wire::Status;

constexpr std::chrono::seconds kLongWait{60};

class EventPrinter {
 public:
  explicit EventPrinter(const EventsOptions& options) : options_(options), utf8_(EnterLocale()) {}

  void StopAt(int fd) { out_.StopAt(fd); }
  [[nodiscard]] Status Print(const Event& event) {
    if (!options_.job.empty() && event.job != options_.job) return {};
    return out_.Write(options_.json ? event.json : EventText(event, true, utf8_));
  }

 private:
  const EventsOptions& options_;
  bool utf8_;
  LineOutput out_;
};

int Wrote(const Status& status) {
  return status.code() == Code::kUnreachable ? kOkExit : Failure(status);  // as `events | head` ends
}

int PrintKept(const Target& target, EventPrinter& printer) {
  const auto reply = AskStatus(target, "events");
  if (!reply.ok()) return NotReached(reply.status());
  EventJoin join;
  for (const Event& event : join.AddKept(reply->json)) {
    if (Status wrote = printer.Print(event); !wrote.ok()) return Wrote(wrote);
  }
  return kOkExit;
}

int Follow(const Target& target, EventPrinter& printer) {
  const Signals signals{SIGINT, SIGTERM, SIGHUP};
  printer.StopAt(signals.fd());
  Feed::Options options;
  options.events = true;
  Feed feed(target, options);
  if (Status started = feed.Start(); !started.ok()) return NotReached(started);
  const std::array<Input, 2> inputs = {Input{signals.fd()}, Input{STDOUT_FILENO, true}};
  while (true) {
    const Feed::Item item = feed.Next(std::chrono::steady_clock::now() + kLongWait, inputs);
    using Kind = Feed::Item::Kind;
    if (item.kind == Kind::kInput) return kOkExit;
    if (item.kind == Kind::kLost) return NotReached(item.status);
    if (item.kind != Kind::kEvent) continue;
    if (Status wrote = printer.Print(item.event); !wrote.ok()) return Wrote(wrote);
  }
}

}  // namespace

int RunEvents(const Target& target, const EventsOptions& options) {
  EventPrinter printer(options);
  return options.follow ? Follow(target, printer) : PrintKept(target, printer);
}

}  // namespace bitpager::cli
