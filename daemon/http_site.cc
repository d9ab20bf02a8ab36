#include "daemon/http_site.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <nlohmann/json.hpp>
#include <utility>

#include "daemon/assets.h"
#include "daemon/metrics_text.h"

namespace bitpager::daemon {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

constexpr std::string_view kJson = "application/json";
constexpr std::string_view kMetrics = "text/plain; version=0.0.4; charset=utf-8";

HttpReply TextReply(std::string_view type, std::shared_ptr<const std::string> text) {
  HttpReply out;
  out.type = type;
  out.body = *text;
  out.text = std::move(text);
  return out;
}

HttpReply TextReply(std::string_view type, std::string text) {
  return TextReply(type, std::make_shared<const std::string>(std::move(text)));
}

HttpReply Failure(const Status& why) {
  const unsigned status = why.code() == Code::kInvalidArgument ? 400 : 503;
  return ErrorReply(status, wire::CodeName(why.code()), why.message());
}

HttpReply AssetReply(const Asset& asset, std::string_view etag) {
  HttpReply out;
  out.etag = asset.etag;
  // A list of tags, weak ones perhaps, or "*".
  if (etag == "*" || etag.find(asset.etag) != std::string_view::npos) {
    out.status = 304;
    return out;
  }
  out.type = asset.type;
  out.body = asset.body;
  return out;
}

Result<std::uint64_t> CellsIn(std::string_view query) {
  const auto cells = NumberIn(query, "cells", kLeastCells, kMostCells);
  if (!cells.ok()) return cells.status();
  return cells->value_or(kUsualCells);
}

}  // namespace

HttpReply ErrorReply(unsigned status, std::string_view code, const std::string& message) {
  const nlohmann::json body = {{"schema_version", kSnapshotSchemaVersion},
                               {"error", {{"code", code}, {"message", message}}}};
  HttpReply out = TextReply(kJson, body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  out.status = status;
  return out;
}

Result<std::optional<std::uint64_t>> NumberIn(std::string_view query, std::string_view name,
                                              std::uint64_t least, std::uint64_t most) {
  while (!query.empty()) {
    const std::string_view part = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(query.size(), part.size() + 1));
    if (!part.starts_with(name) || part.substr(name.size(), 1) != "=") continue;
    const std::string_view text = part.substr(name.size() + 1);
    std::uint64_t value = 0;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
    if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size() || value < least ||
        value > most) {
      return Status(Code::kInvalidArgument, std::string(name) + " is a number from " + std::to_string(least) +
                                                " to " + std::to_string(most) + ".");
    }
    return std::optional<std::uint64_t>(value);
  }
  return std::optional<std::uint64_t>();
}

HttpSite::Taken& HttpSite::Take() {
  const std::uint64_t now_ns = clock_.NowNs();
  if (taken_ && now_ns - taken_->at_ns < (taken_->snapshot.ok() ? kSharedNs : kFailedNs)) return *taken_;
  Result<Snapshot> snapshot = sources_.snapshot();
  taken_.emplace(Taken{clock_.NowNs(), std::move(snapshot), nullptr});
  return *taken_;
}

Result<HttpSite::Text> HttpSite::StatusJson() {
  Taken& taken = Take();
  if (!taken.snapshot.ok()) return taken.snapshot.status();
  if (taken.json == nullptr) taken.json = std::make_shared<const std::string>(ToJson(*taken.snapshot));
  return taken.json;
}

// Of few different sizes: each costs the dispatchers a walk over their pages.
Result<HttpSite::Text> HttpSite::PagesJson(std::uint64_t wanted_cells) {
  const std::uint64_t cells = std::bit_floor(wanted_cells);
  const std::uint64_t now_ns = clock_.NowNs();
  std::erase_if(painted_, [&](const auto& entry) {
    return now_ns - entry.second.at_ns >= (entry.second.json.ok() ? kSharedNs : kFailedNs);
  });
  const auto found = painted_.find(cells);
  if (found != painted_.end()) return found->second.json;
  const Result<PageMap> map = sources_.pages(cells);
  Result<Text> json =
      map.ok() ? Result<Text>(std::make_shared<const std::string>(ToJson(*map))) : map.status();
  painted_.insert_or_assign(cells, Painted{clock_.NowNs(), json});
  return json;
}

HttpReply HttpSite::Metrics() {
  const std::uint64_t begun_ns = clock_.NowNs();
  const Taken& taken = Take();
  if (!taken.snapshot.ok()) return Failure(taken.snapshot.status());
  HttpReply out = TextReply(kMetrics, ToPrometheus(*taken.snapshot));
  scrapes_.fetch_add(1, std::memory_order_relaxed);
  scrape_ns_last_.store(clock_.NowNs() - begun_ns, std::memory_order_relaxed);
  return out;
}

HttpReply HttpSite::Health() {
  const Taken& taken = Take();
  const auto reply = [](std::string_view status) {
    return TextReply(kJson, "{\"status\":\"" + std::string(status) + "\"}");
  };
  if (taken.snapshot.ok()) return reply(taken.snapshot->draining ? "draining" : "ok");
  HttpReply out = reply("unreachable");
  out.status = 503;
  return out;
}

HttpReply HttpSite::Answer(std::string_view path, std::string_view query, std::string_view etag) {
  const auto json = [](const Result<Text>& text) {
    return text.ok() ? TextReply(kJson, *text) : Failure(text.status());
  };
  if (path == "/metrics") return Metrics();
  if (path == "/healthz") return Health();
  if (path == "/api/status") return json(StatusJson());
  if (path == "/api/events") return TextReply(kJson, ToJson(events_.Last()));
  if (path == "/api/pages") {
    const Result<std::uint64_t> cells = CellsIn(query);
    return cells.ok() ? json(PagesJson(*cells)) : Failure(cells.status());
  }
  if (const Asset* asset = FindAsset(path); asset != nullptr) return AssetReply(*asset, etag);
  return ErrorReply(404, wire::CodeName(Code::kNotFound), "there is no such page.");
}

HttpSnapshot HttpSite::counts() const {
  return {requests_.load(std::memory_order_relaxed), scrapes_.load(std::memory_order_relaxed),
          scrape_ns_last_.load(std::memory_order_relaxed)};
}

}  // namespace bitpager::daemon
