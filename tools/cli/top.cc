// top: the daemon's figures over time, in the terminal, as one frame of text, or as JSON lines.
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <ctime>
#include <utility>

#include "tools/cli/cells.h"
#include "tools/cli/commands.h"
#include "tools/cli/feed.h"
#include "tools/cli/output.h"
#include "tools/cli/screen.h"
#include "tools/cli/signals.h"
#include "tools/cli/top_json.h"
#include "tools/cli/top_view.h"

namespace bitpager::cli {
namespace {

using std::chrono::steady_clock;
using wire::Code;
using wire::Result;
using wire::Status;

constexpr std::size_t kMostNewest = 8;     // events on the screen
constexpr std::size_t kMostEvents = 4096;  // of one sample
constexpr std::chrono::seconds kLongWait{60};

SteadyTime Later() {
  return steady_clock::now() + kLongWait;
}

Feed::Options FeedOf(const TopOptions& options) {
  Feed::Options out;
  out.interval = std::chrono::milliseconds(std::lround(options.interval_s * 1000));
  out.queries = {kStatusQuery};
  out.events = true;
  return out;
}

// Samples and events as they come in.
class Sampled {
 public:
  explicit Sampled(bool utf8) { view_.utf8 = utf8; }

  // An answer to the status query. kProtocol and so on when it cannot be used; then nothing changes.
  Status Add(const std::string& body) {
    Status checked = CheckReply(body);
    if (!checked.ok()) return checked;
    auto snapshot = daemon::SnapshotFromJson(body);
    if (!snapshot.ok()) return snapshot.status();
    view_.rates = samples_ == 0 ? std::nullopt : RatesOf(view_.now, *snapshot);
    view_.now = std::move(*snapshot);
    ++samples_;
    return {};
  }
  void Add(Event&& event) {
    view_.newest.push_back(event);
    if (view_.newest.size() > kMostNewest) view_.newest.erase(view_.newest.begin());
    if (events_.size() < kMostEvents) events_.push_back(std::move(event));
  }
  void SetTrouble(std::string text) { view_.trouble = std::move(text); }

  [[nodiscard]] const TopView& view() const { return view_; }
  [[nodiscard]] std::size_t samples() const { return samples_; }
  [[nodiscard]] std::vector<Event> TakeEvents() { return std::exchange(events_, {}); }

 private:
  TopView view_;
  std::vector<Event> events_;
  std::size_t samples_ = 0;
};

std::string ClockNow() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  char text[16] = "";
  if (::localtime_r(&now, &local) != nullptr) std::strftime(text, sizeof(text), "%H:%M:%S", &local);
  return text;
}

std::size_t TerminalColumns() {
  winsize size{};
  const bool known = ::isatty(STDOUT_FILENO) != 0 && ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0;
  return known ? size.ws_col : 0;
}

Status PrintFrame(const TopView& view, LineOutput& out) {
  for (const TextLine& line : LayOut(view, {}, {TerminalColumns(), 0})) {
    std::string text;
    for (const Span& span : line) text += span.text;
    text.erase(text.find_last_not_of(' ') + 1);
    if (Status wrote = out.Write(text); !wrote.ok()) return wrote;
  }
  return {};
}

// ---- --once and --json
int RunPlain(const Target& target, const TopOptions& options, bool utf8) {
  const Signals signals{SIGINT, SIGTERM, SIGHUP};
  Feed feed(target, FeedOf(options));
  if (Status started = feed.Start(); !started.ok()) return NotReached(started);
  LineOutput out;
  out.StopAt(signals.fd());
  Sampled sampled(utf8);
  const std::array<Input, 2> inputs = {Input{signals.fd()}, Input{STDOUT_FILENO, true}};
  using Kind = Feed::Item::Kind;
  while (true) {
    Feed::Item item = feed.Next(Later(), inputs);
    if (item.kind == Kind::kInput) return kOkExit;
    if (item.kind == Kind::kEvent) sampled.Add(std::move(item.event));
    if (item.kind == Kind::kBack) PrintError("bitpagerd at " + feed.place() + " is back");
    if (item.kind == Kind::kLost) {
      if (options.once) return NotReached(item.status);
      PrintError(item.status.message() + "; looking for it again");
    }
    if (item.kind != Kind::kReply) continue;
    if (Status added = sampled.Add(item.body); !added.ok()) {
      if (options.once) return Failure(added);
      PrintError(added.message());
      continue;
    }
    if (!sampled.view().rates) continue;
    const Status wrote = options.json ? out.Write(TopJson(sampled.view(), sampled.TakeEvents()))
                                      : PrintFrame(sampled.view(), out);
    if (wrote.code() == Code::kUnreachable) return kOkExit;  // as `top | head` ends
    if (!wrote.ok()) return Failure(wrote);
    if (options.once) return kOkExit;
  }
}

// ---- the terminal
// False: quit.
bool TakeKeys(Screen& screen, const Signals& signals, const TopView& view, TopState& state) {
  for (int signal = signals.Take(); signal != 0; signal = signals.Take()) {
    if (signal != SIGWINCH) return false;
    screen.Resize();
  }
  for (Key key = screen.Read(); key != Key::kNone; key = screen.Read()) {
    if (key == Key::kQuit) return false;
    state = After(key, view, state, screen.size());
  }
  return true;
}

void TakeItem(Feed::Item&& item, Sampled& sampled) {
  using Kind = Feed::Item::Kind;
  if (item.kind == Kind::kEvent) sampled.Add(std::move(item.event));
  if (item.kind == Kind::kBack) sampled.SetTrouble("");
  if (item.kind == Kind::kLost) {
    sampled.SetTrouble("AWAY since " + ClockNow() + ", figures are old, looking for it: " +
                       Shown(item.status.message(), sampled.view().utf8));
  }
  if (item.kind != Kind::kReply) return;
  const Status added = sampled.Add(item.body);
  sampled.SetTrouble(added.ok() ? "" : Shown(added.message(), sampled.view().utf8));
}

int RunScreen(const Target& target, const TopOptions& options, bool utf8) {
  const Signals signals{SIGINT, SIGTERM, SIGHUP, SIGWINCH};
  Feed feed(target, FeedOf(options));
  if (Status started = feed.Start(); !started.ok()) return NotReached(started);
  Result<std::unique_ptr<Screen>> opened = Screen::Open(WantsColor(STDOUT_FILENO));
  if (!opened.ok()) return Failure(opened.status());
  Screen& screen = **opened;
  Sampled sampled(utf8);
  TopState state;
  const std::array<Input, 2> inputs = {Input{signals.fd()}, Input{STDIN_FILENO}};
  while (true) {
    Feed::Item item = feed.Next(Later(), inputs);
    const bool input = item.kind == Feed::Item::Kind::kInput;
    if (input && !TakeKeys(screen, signals, sampled.view(), state)) return kOkExit;
    const bool shows = item.kind != Feed::Item::Kind::kEvent;  // those wait for the next sample
    TakeItem(std::move(item), sampled);
    if (shows && (sampled.samples() > 0 || !sampled.view().trouble.empty())) {
      screen.Draw(LayOut(sampled.view(), state, screen.size()));
    }
  }
}

}  // namespace

int RunTop(const Target& target, const TopOptions& options) {
  const bool utf8 = EnterLocale();
  if (options.once || options.json) return RunPlain(target, options, utf8);
  return RunScreen(target, options, utf8);
}

}  // namespace bitpager::cli
