#include "tools/cli/feed.h"

#include <algorithm>
#include <utility>

namespace bitpager::cli {
namespace {

using wire::Result;
using wire::Status;

constexpr std::chrono::milliseconds kSecondLook{1000};
constexpr std::chrono::milliseconds kMostRetry{1000};

}  // namespace

Feed::Feed(Target target, Options options)
    : options_(std::move(options)), watch_(std::move(target), options_.events) {}

Status Feed::Start() {
  Status opened = watch_.Open();
  if (!opened.ok()) return opened;
  const auto now = std::chrono::steady_clock::now();
  next_ask_ = now;
  looks_ = 0;
  return opened;
}

void Feed::AskWhatIsDue(SteadyTime now) {
  if (options_.events && (looks_ == 0 || (looks_ == 1 && now >= second_look_))) {
    ++looks_;
    second_look_ = now + kSecondLook;
    watch_.Ask(kEventsQuery);
  }
  if (options_.queries.empty() || now < next_ask_) return;
  next_ask_ = std::max(next_ask_ + options_.interval, now);  // what was missed is not made up for
  for (const std::string& query : options_.queries) {
    if (!watch_.IsWaitingFor(query)) watch_.Ask(query);
  }
}

bool Feed::Reopen(SteadyTime now) {
  if (now < next_ask_) return false;
  if (Start().ok()) return true;
  next_ask_ = now + std::min(options_.interval, kMostRetry);
  return false;
}

bool Feed::Take(Watch::News&& news, Item& out) {
  using Kind = Watch::News::Kind;
  if (news.kind == Kind::kInput) {
    out.kind = Item::Kind::kInput;
  } else if (news.kind == Kind::kEvent) {
    Result<Event> event = EventFromJson(news.body);
    if (!event.ok() || !join_.AddLive(*event)) return false;
    out.kind = Item::Kind::kEvent;
    out.event = std::move(*event);
  } else if (news.kind == Kind::kReply && news.query == kEventsQuery) {
    for (Event& event : join_.AddKept(news.body)) waiting_.push_back(std::move(event));
    return false;
  } else if (news.kind == Kind::kReply) {
    out.kind = Item::Kind::kReply;
    out.query = std::move(news.query);
    out.body = std::move(news.body);
  }
  return out.kind != Item::Kind::kNothing;
}

Feed::Item Feed::Next(SteadyTime until, std::span<const Input> inputs) {
  Item out;
  do {
    if (!waiting_.empty()) {
      out.kind = Item::Kind::kEvent;
      out.event = std::move(waiting_.front());
      waiting_.pop_front();
      return out;
    }
    const auto now = std::chrono::steady_clock::now();
    if (!watch_.is_open() && Reopen(now)) {
      out.kind = Item::Kind::kBack;
      return out;
    }
    if (watch_.is_open()) AskWhatIsDue(now);
    SteadyTime end = until;
    if (!watch_.is_open() || !options_.queries.empty()) end = std::min(end, next_ask_);
    if (looks_ == 1 && watch_.is_open()) end = std::min(end, second_look_);
    Result<Watch::News> news = watch_.Next(end, inputs);
    if (!news.ok()) {
      next_ask_ = std::chrono::steady_clock::now() + std::min(options_.interval, kMostRetry);
      out.kind = Item::Kind::kLost;
      out.status = news.status();
      return out;
    }
    if (Take(std::move(*news), out)) return out;
  } while (std::chrono::steady_clock::now() < until || !waiting_.empty());
  return out;
}

}  // namespace bitpager::cli
