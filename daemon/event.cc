#include "daemon/event.h"

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <utility>

namespace bitpager::daemon {
namespace {

using nlohmann::json;

json ObjectOf(const Event& event) {
  return {{"schema_version", kEventSchemaVersion},
          {"id", event.id},
          {"name", event.name},
          {"time_unix_ms", event.time_unix_ms},
          {"job", event.job},
          {"device", event.device},
          {"bytes", event.bytes},
          {"text", event.text}};
}

std::string Dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace

std::int64_t UnixMs() {
  using namespace std::chrono;
  return duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count();
}

std::string ToJson(const Event& event) {
  return Dump(ObjectOf(event));
}

std::string ToJson(const std::vector<Event>& events) {
  json list = json::array();
  for (const Event& event : events) list.push_back(ObjectOf(event));
  return Dump({{"schema_version", kEventSchemaVersion}, {"events", std::move(list)}});
}

void EventLog::Add(Event event) {
  event.time_unix_ms = UnixMs();
  const std::lock_guard lock(mutex_);
  event.id = first_ + events_.size();
  ++counts_[event.name];
  events_.push_back(std::move(event));
  if (events_.size() > kHeld) {
    events_.pop_front();
    ++first_;
  }
  for (const auto& [id, wake] : watches_) wake();
}

std::vector<Event> EventLog::Last() const {
  const std::lock_guard lock(mutex_);
  const std::size_t count = std::min(events_.size(), kKept);
  return {events_.end() - static_cast<std::ptrdiff_t>(count), events_.end()};
}

std::vector<Event> EventLog::Between(std::uint64_t after, std::uint64_t before) const {
  const std::lock_guard lock(mutex_);
  const std::uint64_t end = std::clamp(before, first_, first_ + events_.size());
  const std::uint64_t oldest = end - std::min<std::uint64_t>(end - first_, kKept);
  const std::uint64_t begin = after < end ? std::max(oldest, after + 1) : oldest;
  const auto at = [&](std::uint64_t id) {
    return events_.begin() + static_cast<std::ptrdiff_t>(id - first_);
  };
  return {at(begin), at(end)};
}

std::map<std::string, std::uint64_t> EventLog::Counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

std::uint64_t EventLog::dropped() const {
  const std::lock_guard lock(mutex_);
  return dropped_;
}

std::uint64_t EventLog::Next() const {
  const std::lock_guard lock(mutex_);
  return first_ + events_.size();
}

std::vector<Event> EventLog::Since(std::uint64_t& place) {
  const std::lock_guard lock(mutex_);
  if (place < first_) {
    dropped_ += first_ - place;
    place = first_;
  }
  const auto begin = events_.begin() + static_cast<std::ptrdiff_t>(place - first_);
  std::vector<Event> out(begin, events_.end());
  place = first_ + events_.size();
  return out;
}

int EventLog::Watch(std::function<void()> wake) {
  const std::lock_guard lock(mutex_);
  watches_[++last_watch_] = std::move(wake);
  return last_watch_;
}

void EventLog::Unwatch(int watch) {
  const std::lock_guard lock(mutex_);
  watches_.erase(watch);
}

}  // namespace bitpager::daemon
