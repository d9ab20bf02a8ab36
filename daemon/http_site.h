// What the HTTP server answers: metrics, health, status, pages, events, the dashboard. Nothing is collected
// before somebody asks, and answers within a quarter of a second of each other are of one snapshot. The HTTP
// thread; the counts, any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "client/wire/status.h"
#include "daemon/clock.h"
#include "daemon/event.h"
#include "daemon/page_map.h"
#include "daemon/snapshot.h"

namespace bitpager::daemon {

struct HttpReply {
  unsigned status = 200;
  std::string_view type;
  std::shared_ptr<const std::string> text;  // owns `body`, unless that is constant
  std::string_view body;
  std::string_view etag;        // empty: the reply must not be stored
  std::string_view extra_name;  // of one more header; empty: none
  std::string_view extra_value;
};

// A JSON object {"schema_version":1,"error":{"code":...,"message":...}}.
[[nodiscard]] HttpReply ErrorReply(unsigned status, std::string_view code, const std::string& message);

// The number that `query` ("cells=512&...") gives `name`; none when it gives none. kInvalidArgument for what
// is no number in [least, most].
[[nodiscard]] wire::Result<std::optional<std::uint64_t>> NumberIn(std::string_view query,
                                                                  std::string_view name, std::uint64_t least,
                                                                  std::uint64_t most);

// Each may wait for the dispatchers, 2 s at most; kUnreachable then.
struct SiteSources {
  std::function<wire::Result<Snapshot>()> snapshot;
  std::function<wire::Result<PageMap>(std::uint64_t cells)> pages;
};

class HttpSite {
 public:
  using Text = std::shared_ptr<const std::string>;

  HttpSite(SiteSources sources, const EventLog& events, const Clock& clock)
      : sources_(std::move(sources)), events_(events), clock_(clock) {}

  // A GET of `path` with `query`; `etag` is what the asker has (If-None-Match), or empty.
  [[nodiscard]] HttpReply Answer(std::string_view path, std::string_view query, std::string_view etag);
  // As /api/status and /api/pages give them; pages in the greatest power of two of cells that is not above
  // the wanted.
  [[nodiscard]] wire::Result<Text> StatusJson();
  [[nodiscard]] wire::Result<Text> PagesJson(std::uint64_t wanted_cells);

  // ---- any thread
  [[nodiscard]] HttpSnapshot counts() const;
  void CountRequest() { requests_.fetch_add(1, std::memory_order_relaxed); }

  static constexpr std::uint64_t kSharedNs = 250'000'000;
  // What could not be collected is not tried again at once: each try may take 2 s.
  static constexpr std::uint64_t kFailedNs = 1'000'000'000;

 private:
  struct Taken {
    std::uint64_t at_ns = 0;
    wire::Result<Snapshot> snapshot;
    Text json;  // made when it is asked for
  };
  struct Painted {
    std::uint64_t at_ns = 0;
    wire::Result<Text> json;
  };
  [[nodiscard]] Taken& Take();
  [[nodiscard]] HttpReply Metrics();
  [[nodiscard]] HttpReply Health();

  const SiteSources sources_;
  const EventLog& events_;
  const Clock& clock_;
  std::optional<Taken> taken_;
  std::map<std::uint64_t, Painted> painted_;  // by cells; those younger than kSharedNs
  std::atomic<std::uint64_t> requests_{0};    // counts: no order with anything
  std::atomic<std::uint64_t> scrapes_{0};
  std::atomic<std::uint64_t> scrape_ns_last_{0};
};

}  // namespace bitpager::daemon
