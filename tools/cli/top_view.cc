// The frame of `bitpager top` around its table, and its keys.
#include "tools/cli/top_view.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "daemon/config.h"
#include "tools/cli/cells.h"

namespace bitpager::cli {
namespace {

using daemon::DeviceSnapshot;
using daemon::FormatBytes;
using daemon::Snapshot;

constexpr std::size_t kSmallRows = 16;     // below it everything but the jobs is kept short
constexpr std::size_t kManyColumns = 110;  // what a frame without a width lays its bars out for
constexpr std::size_t kLeastBar = 5;
constexpr std::size_t kMostBar = 40;

// clang-format off
const char* const kHelp[] = {
    "s          sort by the next column",
    "r          reverse the order",
    "Up Down    scroll; PgUp PgDn Home End",
    "Left Right other columns",
    "h          this page, and back",
    "q          quit",
    "TO DEV/s   bytes copied to the device",
    "TO HOST/s  bytes copied back",
    "STALL      share of the time that the",
    "           ranks waited for pages",
    "EVICT/s    pages that left the device",
    "HOST, DISK committed there",
    "SHARE      fair share of the device now",
    "kept       no rank; it may come back",
    "LAST STEP  how long the last one took",
    "FAULTS     waits for pages",
    "pressure   at 100% no memory is free",
    "           beyond what pages leave",
};
// clang-format on

std::string Rate(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), value < 10 ? "%.2f" : value < 100 ? "%.1f" : "%.0f", value);
  return text;
}

std::string Percent(double ratio) {
  return std::to_string(std::lround(std::clamp(ratio, 0.0, 1.0) * 100)) + "%";
}

std::string BytesPerSecond(double bytes) {
  return FormatBytes(static_cast<std::uint64_t>(std::clamp(bytes, 0.0, 1e18))) + "/s";
}

std::string Uptime(std::uint64_t ms) {
  char text[48];
  const auto s = static_cast<unsigned long long>(ms / 1000);
  if (s < 3600) {
    std::snprintf(text, sizeof(text), "up %llum%02llus", s / 60, s % 60);
  } else if (s < 86400) {
    std::snprintf(text, sizeof(text), "up %lluh%02llum", s / 3600, s / 60 % 60);
  } else {
    std::snprintf(text, sizeof(text), "up %llud%02lluh", s / 86400, s / 3600 % 24);
  }
  return text;
}

// Puts spans one after the other, two blanks between, into as many lines as are allowed; what does not fit is
// left out. No width: one line.
Frame Flow(const std::vector<Span>& items, TopSize size) {
  Frame out(1);
  std::size_t used = 0;
  for (const Span& item : items) {
    const std::size_t cells = CellsOf(item.text);
    const bool wraps = size.columns != 0 && used + (used == 0 ? 0 : 2) + cells > size.columns;
    if (wraps && (used == 0 || (size.rows != 0 && out.size() >= size.rows) || cells > size.columns)) continue;
    if (wraps) {
      out.emplace_back();
      used = 0;
    }
    if (used != 0) out.back().push_back({"  ", Ink::kPlain});
    out.back().push_back(item);
    used += (used == 0 ? 0 : 2) + cells;
  }
  return out;
}

// At most so many cells; what does not fit is cut.
void Clip(TextLine& line, std::size_t columns) {
  std::size_t left = columns;
  for (Span& span : line) {
    const std::size_t cells = CellsOf(span.text);
    if (cells > left) span.text = Fit(span.text, left);
    left -= std::min(left, cells);
  }
}

Frame Identity(const TopView& view, TopSize size) {
  const Snapshot& s = view.now;
  std::vector<Span> items = {{"bitpagerd " + Shown(s.version, view.utf8), Ink::kBold}};
  if (s.draining) items.push_back({"draining", Ink::kWarning});
  items.push_back({Uptime(s.uptime_ms), Ink::kPlain});
  items.push_back({"pid " + std::to_string(s.pid), Ink::kPlain});
  if (s.private_mode) items.push_back({"private", Ink::kPlain});
  items.push_back({Shown(s.socket_path, view.utf8), Ink::kDim});
  return Flow(items, {size.columns, size.rows != 0 && size.rows < kSmallRows ? std::size_t{1} : 2});
}

std::string Plural(std::size_t count, const char* one) {
  return std::to_string(count) + " " + one + (count == 1 ? "" : "s");
}

std::size_t JobNames(const Snapshot& s) {
  std::vector<std::string> names;
  for (const daemon::JobSnapshot& job : s.jobs) names.push_back(std::to_string(job.uid) + " " + job.name);
  std::sort(names.begin(), names.end());
  return static_cast<std::size_t>(std::unique(names.begin(), names.end()) - names.begin());
}

Frame Totals(const TopView& view, TopSize size) {
  if (!view.trouble.empty()) return {TextLine{{view.trouble, Ink::kBad}}};
  const Snapshot& s = view.now;
  std::vector<Span> items = {{Plural(JobNames(s), "job"), Ink::kPlain},
                             {Plural(s.sessions.size(), "session"), Ink::kPlain}};
  if (view.rates) {
    const JobRates& all = view.rates->all;
    items.push_back({Rate(all.steps) + " steps/s", Ink::kPlain});
    items.push_back({"to device " + BytesPerSecond(all.to_device_bytes), Ink::kPlain});
    items.push_back({"to host " + BytesPerSecond(all.to_host_bytes), Ink::kPlain});
    items.push_back(
        {"stalled " + Percent(all.stall_ratio), all.stall_ratio > 0.5 ? Ink::kWarning : Ink::kPlain});
    items.push_back({"evicted " + Rate(all.evictions) + "/s", Ink::kPlain});
  } else {
    items.push_back({"rates come with the next sample", Ink::kDim});
  }
  if (s.totals.sessions_lost != 0) {
    items.push_back({std::to_string(s.totals.sessions_lost) + " sessions lost", Ink::kWarning});
  }
  if (s.totals.nonfinite_blocks != 0) {
    items.push_back({Plural(s.totals.nonfinite_blocks, "non-finite block"), Ink::kWarning});
  }
  for (const auto& [code, count] : s.errors) {
    items.push_back({"error " + Shown(code, view.utf8) + " " + std::to_string(count), Ink::kWarning});
  }
  return Flow(items, {size.columns, size.rows == 0 ? std::size_t{0} : size.rows < kSmallRows ? 2U : 3U});
}

struct BarText {
  std::string label;
  std::uint64_t used = 0;
  std::uint64_t budget = 0;
  std::string figures;
  std::string more;  // shown where there is room
};

TextLine BarLine(const BarText& bar, std::size_t label_cells, std::size_t figure_cells, std::size_t columns) {
  const std::size_t width = columns == 0 ? kManyColumns : columns;
  const std::size_t beside = label_cells + 1 + 2 + 1 + figure_cells;
  const std::size_t cells = std::clamp(width > beside ? width - beside : 0, kLeastBar, kMostBar);
  const double share =
      bar.budget == 0 ? 0 : std::min(1.0, static_cast<double>(bar.used) / static_cast<double>(bar.budget));
  const auto filled = static_cast<std::size_t>(std::lround(share * static_cast<double>(cells)));
  TextLine out = {{Fit(bar.label, label_cells) + " [", Ink::kPlain},
                  {std::string(filled, '#'), share > 0.95 ? Ink::kWarning : Ink::kGood},
                  {std::string(cells - filled, '.') + "] ", Ink::kDim}};
  std::string rest = Fit(bar.figures, std::max(figure_cells, CellsOf(bar.figures)));
  if (!bar.more.empty()) rest += "  " + bar.more;
  out.push_back({std::move(rest), Ink::kPlain});
  return out;
}

std::vector<BarText> BarsOf(const TopView& view) {
  std::vector<BarText> out;
  for (const DeviceSnapshot& d : view.now.devices) {
    BarText bar{DeviceLabel(view.now, d.uuid), d.used_bytes, d.budget_bytes, "", Shown(d.name, view.utf8)};
    if (bar.label != "cpu") bar.label = "GPU " + bar.label;
    if (!d.open) bar.more = "no client yet  " + bar.more;
    if (d.pressure_ratio > 0) bar.more = "pressure " + Percent(d.pressure_ratio) + "  " + bar.more;
    out.push_back(std::move(bar));
  }
  out.push_back({"host", view.now.host_committed_bytes, view.now.host_budget_bytes, "", "committed"});
  BarText disk{"disk", 0, 0, "", "committed"};
  for (const DeviceSnapshot& d : view.now.devices) {
    disk.used += d.disk_committed_bytes;
    disk.budget += d.disk_budget_bytes;
  }
  if (disk.budget > 0) out.push_back(std::move(disk));
  for (BarText& bar : out) bar.figures = FormatBytes(bar.used) + " of " + FormatBytes(bar.budget);
  return out;
}

// The first devices, the host and its disk; where there are too many for `rows`, one line says so.
Frame Bars(const TopView& view, std::size_t columns, std::size_t rows) {
  std::vector<BarText> bars = BarsOf(view);
  std::size_t label = 0;
  std::size_t figures = 0;
  for (const BarText& bar : bars) {
    label = std::max(label, CellsOf(bar.label));
    figures = std::max(figures, CellsOf(bar.figures));
  }
  const std::size_t devices = view.now.devices.size();
  const std::size_t tiers = bars.size() - devices;
  const bool all = rows == 0 || bars.size() <= rows;
  const std::size_t shown = all ? devices : rows > tiers + 1 ? rows - tiers - 1 : 1;
  Frame out;
  for (std::size_t i = 0; i < shown; ++i) out.push_back(BarLine(bars[i], label, figures, columns));
  if (!all && rows > tiers + 1) {
    out.push_back(TextLine{{"and " + std::to_string(devices - shown) + " devices more", Ink::kDim}});
  }
  for (std::size_t i = devices; i < bars.size() && (all || out.size() < rows); ++i) {
    out.push_back(BarLine(bars[i], label, figures, columns));
  }
  return out;
}

Frame EventLines(const TopView& view, std::size_t rows) {
  Frame out;
  const std::size_t first = view.newest.size() > rows ? view.newest.size() - rows : 0;
  for (std::size_t i = first; i < view.newest.size(); ++i) {
    out.push_back(TextLine{{EventText(view.newest[i], false, view.utf8), Ink::kDim}});
  }
  return out;
}

TextLine Footer(const TopView& view, const TopState& state, std::size_t columns, std::size_t rows) {
  const std::size_t jobs = view.now.jobs.size();
  const std::size_t last = std::min(jobs, state.first_row + rows);
  std::vector<Span> items = {{"q quit", Ink::kDim}, {"h help", Ink::kDim}};
  if (jobs > rows) {
    items.push_back(
        {std::to_string(state.first_row + 1) + "-" + std::to_string(last) + " of " + std::to_string(jobs),
         Ink::kBold});
  }
  items.push_back({std::string("s sort: ") + SortName(state.sort), Ink::kDim});
  items.push_back({state.reverse ? "r reversed" : "r reverse", Ink::kDim});
  return Flow(items, {columns, 1})[0];
}

Frame Help(TopSize size) {
  Frame out = {TextLine{{"bitpager top", Ink::kBold}}};
  for (const char* line : kHelp) out.push_back(TextLine{{line, Ink::kPlain}});
  if (out.size() > size.rows) out.resize(size.rows);
  return out;
}

struct Parts {
  Frame above;
  Frame events;
  std::size_t table_rows = 0;  // jobs
};

Parts PartsOf(const TopView& view, TopSize size) {
  Parts out;
  out.above = Identity(view, size);
  for (TextLine& line : Totals(view, size)) out.above.push_back(std::move(line));
  const std::size_t event_rows = size.rows < kSmallRows ? 1 : 3;
  out.events = EventLines(view, event_rows);
  if (size.rows == 0) {
    for (TextLine& line : Bars(view, size.columns, 0)) out.above.push_back(std::move(line));
    return out;
  }
  const std::size_t taken = out.above.size() + out.events.size() + 2;  // titles and footer
  const std::size_t left = size.rows > taken ? size.rows - taken : 0;
  const std::size_t bar_rows = std::min(view.now.devices.size() + 1, std::max<std::size_t>(left / 2, 1));
  for (TextLine& line : Bars(view, size.columns, bar_rows)) out.above.push_back(std::move(line));
  out.table_rows = left > bar_rows ? left - bar_rows : 1;
  return out;
}

std::size_t LastFirstRow(std::size_t jobs, std::size_t rows) {
  return jobs > rows ? jobs - rows : 0;
}

Frame Whole(const TopView& view, const TopState& state, TopSize size) {
  Parts parts = PartsOf(view, size);
  TopState now = state;
  if (size.rows != 0)
    now.first_row = std::min(now.first_row, LastFirstRow(view.now.jobs.size(), parts.table_rows));
  Frame out = std::move(parts.above);
  for (TextLine& line : JobTable(view, now, size.columns, parts.table_rows)) out.push_back(std::move(line));
  if (size.rows == 0) {
    for (TextLine& line : parts.events) out.push_back(std::move(line));
    return out;
  }
  const std::size_t below = parts.events.size() + 1;
  out.resize(size.rows > below ? size.rows - below : 0);
  for (TextLine& line : parts.events) out.push_back(std::move(line));
  out.push_back(Footer(view, now, size.columns, parts.table_rows));
  out.resize(size.rows);
  return out;
}

}  // namespace

std::string DeviceLabel(const Snapshot& snapshot, const std::string& uuid) {
  for (const DeviceSnapshot& device : snapshot.devices) {
    if (device.uuid == uuid) return device.gpu.empty() ? "?" : Shown(device.gpu, false);
  }
  return "?";
}

Frame LayOut(const TopView& view, const TopState& state, TopSize size) {
  Frame out = state.help && size.rows != 0 ? Help(size) : Whole(view, state, size);
  if (size.columns != 0) {
    for (TextLine& line : out) Clip(line, size.columns);
  }
  return out;
}

TopState After(Key key, const TopView& view, TopState state, TopSize size) {
  const std::size_t rows = std::max<std::size_t>(PartsOf(view, size).table_rows, 1);
  const std::size_t last = LastFirstRow(view.now.jobs.size(), rows);
  std::size_t& row = state.first_row;
  row = std::min(row, last);
  switch (key) {
    case Key::kSort:
      state.sort = (state.sort + 1) % SortColumns();
      break;
    case Key::kReverse:
      state.reverse = !state.reverse;
      break;
    case Key::kHelp:
      state.help = !state.help;
      break;
    case Key::kUp:
      row -= std::min<std::size_t>(row, 1);
      break;
    case Key::kDown:
      row = std::min(row + 1, last);
      break;
    case Key::kPageUp:
      row -= std::min(row, rows);
      break;
    case Key::kPageDown:
      row = std::min(row + rows, last);
      break;
    case Key::kHome:
      row = 0;
      break;
    case Key::kEnd:
      row = last;
      break;
    case Key::kLeft:
      state.first_column -= std::min<std::size_t>(state.first_column, 1);
      break;
    case Key::kRight:
      state.first_column = std::min(state.first_column + 1, SortColumns() - 3);
      break;
    case Key::kNone:
    case Key::kQuit:
      break;
  }
  return state;
}

}  // namespace bitpager::cli
