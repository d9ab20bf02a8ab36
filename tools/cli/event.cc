#include "tools/cli/event.h"

#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>

#include "daemon/config.h"
#include "tools/cli/cells.h"

namespace bitpager::cli {
namespace {

using nlohmann::json;
using wire::Code;
using wire::Result;
using wire::Status;

constexpr std::size_t kMostSeen = 4096;

std::string TextAt(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

template <typename T>
T NumberAt(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number_integer() ? found->get<T>() : T{0};
}

Result<Event> EventOf(const json& parsed) {
  Event out;
  if (parsed.is_object()) out.name = TextAt(parsed, "name");
  if (out.name.empty()) {
    return Status(Code::kProtocol,
                  "the daemon published something that is no event. Hint: bitpager and bitpagerd "
                  "should be of one release");
  }
  out.time_unix_ms = NumberAt<std::int64_t>(parsed, "time_unix_ms");
  out.job = TextAt(parsed, "job");
  out.device = TextAt(parsed, "device");
  out.bytes = NumberAt<std::uint64_t>(parsed, "bytes");
  out.text = TextAt(parsed, "text");
  out.json = parsed.dump(-1, ' ', false, json::error_handler_t::replace);
  return out;
}

std::string TimeText(std::int64_t unix_ms, bool dated) {
  const std::time_t seconds = unix_ms / 1000;
  std::tm local{};
  char text[32] = "--:--:--";
  if (::localtime_r(&seconds, &local) != nullptr) {
    std::strftime(text, sizeof(text), dated ? "%Y-%m-%d %H:%M:%S" : "%H:%M:%S", &local);
  }
  return text;
}

}  // namespace

Result<Event> EventFromJson(std::string_view body) {
  return EventOf(json::parse(body, nullptr, /*allow_exceptions=*/false));
}

std::vector<Event> EventJoin::AddKept(std::string_view reply) {
  std::vector<Event> out;
  const json parsed = json::parse(reply, nullptr, /*allow_exceptions=*/false);
  const auto list = parsed.is_object() ? parsed.find("events") : parsed.end();
  if (!parsed.is_object() || list == parsed.end() || !list->is_array()) return out;
  std::map<std::string, std::uint32_t> here;  // how often in this answer
  for (const json& item : *list) {
    Result<Event> event = EventOf(item);
    if (!event.ok()) continue;
    const auto [found, fresh] = seen_.try_emplace(event->json);
    if (fresh) order_.push_back(event->json);
    if (++here[event->json] <= found->second.kept + found->second.heard) continue;
    ++found->second.kept;
    out.push_back(std::move(*event));
  }
  Forget("");
  return out;
}

bool EventJoin::AddLive(const Event& event) {
  const auto [found, fresh] = seen_.try_emplace(event.json);
  if (fresh) order_.push_back(event.json);
  ++found->second.heard;
  const bool known = found->second.kept > 0;
  if (known) --found->second.kept;
  Forget(event.json);
  return !known;
}

void EventJoin::Forget(const std::string& json) {
  if (order_.size() <= kMostSeen) return;
  const auto half = order_.begin() + kMostSeen / 2;
  std::for_each(order_.begin(), half, [&](const std::string& old) {
    if (old != json) seen_.erase(old);
  });
  order_.erase(order_.begin(), half);
}

std::string EventText(const Event& event, bool dated, bool utf8) {
  std::string out = TimeText(event.time_unix_ms, dated) + " " + Shown(event.name, utf8);
  if (!event.job.empty()) out += " " + Shown(event.job, utf8);
  if (event.bytes != 0) out += " " + daemon::FormatBytes(event.bytes);
  if (!event.device.empty()) out += " " + Shown(event.device, utf8);
  if (!event.text.empty()) out += ": " + Shown(event.text, utf8);
  return out;
}

}  // namespace bitpager::cli
