// The snapshot as people read it: a header, one bar a tier, a table of jobs.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "daemon/config.h"
#include "daemon/snapshot.h"

namespace bitpager::daemon {
namespace {

constexpr std::size_t kBarCells = 30;
constexpr std::size_t kNameCells = 28;

// Control characters of foreign names must not reach the terminal.
std::string Visible(const std::string& text) {
  std::string out = text;
  for (char& c : out) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7F) c = '?';
  }
  return out;
}

std::string Short(const std::string& text) {
  return text.size() <= kNameCells ? text : text.substr(0, kNameCells - 3) + "...";
}

std::string Duration(std::uint64_t ms) {
  char text[48];
  const std::uint64_t s = ms / 1000;
  if (s < 60) {
    std::snprintf(text, sizeof(text), "%.1f s", static_cast<double>(ms) / 1000);
  } else if (s < 3600) {
    std::snprintf(text, sizeof(text), "%dm%02ds", static_cast<int>(s / 60), static_cast<int>(s % 60));
  } else {
    std::snprintf(text, sizeof(text), "%lluh%02dm", static_cast<unsigned long long>(s / 3600),
                  static_cast<int>(s / 60 % 60));
  }
  return text;
}

std::string Paint(const std::string& text, const char* code, TextStyle style) {
  return style.color ? std::string("\033[") + code + "m" + text + "\033[0m" : text;
}

std::string Bar(std::uint64_t used, std::uint64_t total, TextStyle style) {
  const double share = total == 0 ? 0 : std::min(1.0, static_cast<double>(used) / static_cast<double>(total));
  const auto filled = static_cast<std::size_t>(std::lround(share * static_cast<double>(kBarCells)));
  const char* color = share > 0.95 ? "33" : "32";
  std::string out(1, '[');
  out.append(Paint(std::string(filled, '#'), color, style)).append(kBarCells - filled, '.').push_back(']');
  return out;
}

std::string Header(const Snapshot& s, TextStyle style) {
  std::string out = Paint(std::string("bitpagerd ") + Visible(s.version), "1", style) + "  pid " +
                    std::to_string(s.pid) + "  up " + Duration(s.uptime_ms) + "  " + Visible(s.socket_path);
  if (s.private_mode) out += "  private";
  if (s.draining) out.append("  ").append(Paint("draining", "33", style));
  out += "\npages of " + FormatBytes(s.page_bytes) + ", windows of " + std::to_string(s.window_pages) +
         ", policy " + Visible(s.policy) + "\n\n";
  return out;
}

std::string Tiers(const Snapshot& s, TextStyle style) {
  const auto name_of = [](const DeviceSnapshot& d) { return Visible(d.uuid.empty() ? d.kind : d.uuid); };
  std::size_t cells = 4;
  for (const DeviceSnapshot& d : s.devices) cells = std::max(cells, name_of(d).size());
  const auto line = [&](const std::string& name, std::uint64_t used, std::uint64_t budget, const char* verb) {
    return name + std::string(cells - name.size(), ' ') + "  " + Bar(used, budget, style) + "  " +
           FormatBytes(used) + " of " + FormatBytes(budget) + " " + verb;
  };
  std::string out;
  for (const DeviceSnapshot& d : s.devices) {
    out += line(name_of(d), d.used_bytes, d.budget_bytes, d.open ? "used" : "used; no client yet");
    if (!d.name.empty()) out += "  (" + Visible(d.name) + ")";
    out += "\n";
  }
  for (const DeviceSnapshot& d : s.devices) {
    if (d.disk_budget_bytes > 0)
      out += line("disk", d.disk_committed_bytes, d.disk_budget_bytes, "committed") + "\n";
  }
  return out + line("host", s.host_committed_bytes, s.host_budget_bytes, "committed") + "\n\n";
}

struct Column {
  const char* title;
  bool left;
  std::string (*cell)(const JobSnapshot& job);
};

const Column kColumns[] = {
    {"JOB", true, [](const JobSnapshot& j) { return Short(Visible(j.name)); }},
    {"UID", false, [](const JobSnapshot& j) { return std::to_string(j.uid); }},
    {"RANKS", false,
     [](const JobSnapshot& j) { return j.lingering ? std::string("kept") : std::to_string(j.sessions); }},
    {"RESIDENT", false, [](const JobSnapshot& j) { return FormatBytes(j.resident_bytes); }},
    {"SHARE", false, [](const JobSnapshot& j) { return FormatBytes(j.share_bytes); }},
    {"QUOTA", false,
     [](const JobSnapshot& j) {
       return j.device_quota_bytes == 0 ? std::string("-") : FormatBytes(j.device_quota_bytes);
     }},
    {"STATES", false, [](const JobSnapshot& j) { return FormatBytes(j.bytes_by_kind[0]); }},
    {"WEIGHTS", false, [](const JobSnapshot& j) { return FormatBytes(j.bytes_by_kind[1]); }},
    {"HOST", false, [](const JobSnapshot& j) { return FormatBytes(j.host_bytes); }},
    {"BUFFERS", false, [](const JobSnapshot& j) { return FormatBytes(j.buffer_bytes); }},
    {"DIRTY", false, [](const JobSnapshot& j) { return FormatBytes(j.dirty_bytes); }},
    {"LEASED", false, [](const JobSnapshot& j) { return FormatBytes(j.leased_bytes); }},
    {"LOADED", false, [](const JobSnapshot& j) { return FormatBytes(j.loaded_bytes); }},
    {"STORED", false, [](const JobSnapshot& j) { return FormatBytes(j.stored_bytes); }},
    {"STEPS", false, [](const JobSnapshot& j) { return std::to_string(j.steps); }},
    {"STALLED", false, [](const JobSnapshot& j) { return Duration(j.stall_ns / 1000000); }},
};

std::string Row(const std::vector<std::string>& cells, const std::vector<std::size_t>& widths) {
  std::string out;
  for (std::size_t i = 0; i < cells.size(); ++i) {
    const std::string blanks(widths[i] - cells[i].size(), ' ');
    if (i != 0) out.append("  ");
    out.append(kColumns[i].left ? cells[i] + blanks : blanks + cells[i]);
  }
  return out;
}

std::string JobTable(const Snapshot& s, TextStyle style) {
  if (s.jobs.empty()) return "no jobs\n";
  std::vector<std::vector<std::string>> rows(1);
  for (const Column& column : kColumns) rows[0].emplace_back(column.title);
  for (const JobSnapshot& job : s.jobs) {
    rows.emplace_back();
    for (const Column& column : kColumns) rows.back().push_back(column.cell(job));
  }
  std::vector<std::size_t> widths(rows[0].size());
  for (const auto& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string out = Paint(Row(rows[0], widths), "1", style) + "\n";
  for (std::size_t i = 1; i < rows.size(); ++i) out += Row(rows[i], widths) + "\n";
  return out;
}

// Extents that stay without their session: what a returning client would go on from.
std::string Kept(const Snapshot& s) {
  std::string out;
  for (const JobSnapshot& job : s.jobs) {
    for (const ExtentSnapshot& extent : job.extents) {
      if (!extent.lingering) continue;
      out += "kept: " + Visible(job.name) + " rank " + std::to_string(extent.rank) + " " +
             Visible(extent.name) + " at step " + std::to_string(extent.step) + ", " +
             std::to_string(extent.pages) + " pages";
      if (job.lingering)
        out += ", " + Duration(static_cast<std::uint64_t>(std::max<std::int64_t>(0, job.linger_left_ms))) +
               " left";
      out += "\n";
    }
  }
  return out;
}

std::string Footer(const Snapshot& s, TextStyle style) {
  const TotalsSnapshot& t = s.totals;
  std::string out(1, '\n');
  out += std::to_string(s.sessions.size()) + " sessions (" + std::to_string(t.sessions_opened) + " opened, " +
         std::to_string(t.sessions_lost) + " lost)  " + std::to_string(t.requests) + " requests  " +
         std::to_string(t.steps) + " steps  loaded " + FormatBytes(t.loaded_bytes) + "  stored " +
         FormatBytes(t.stored_bytes) + "  dropped " + FormatBytes(t.dropped_bytes) + "\n";
  if (t.nonfinite_blocks != 0) {
    out +=
        Paint(std::to_string(t.nonfinite_blocks) + " blocks had a non-finite gradient", "33", style) + "\n";
  }
  std::string errors;
  for (const auto& [code, count] : s.errors)
    errors.append("  ").append(Visible(code)).append(" ").append(std::to_string(count));
  return errors.empty() ? out : out + "errors:" + errors + "\n";
}

}  // namespace

std::string ToText(const Snapshot& snapshot, TextStyle style) {
  return Header(snapshot, style) + Tiers(snapshot, style) + JobTable(snapshot, style) + Kept(snapshot) +
         Footer(snapshot, style);
}

}  // namespace bitpager::daemon
