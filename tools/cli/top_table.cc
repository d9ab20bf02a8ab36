// The job table of `bitpager top`: columns, order, rows.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "daemon/config.h"
#include "tools/cli/cells.h"
#include "tools/cli/top_view.h"

namespace bitpager::cli {
namespace {

using daemon::FormatBytes;
using daemon::JobSnapshot;

constexpr std::size_t kLeastName = 8;
constexpr std::size_t kMostName = 32;
constexpr std::size_t kGap = 2;

struct Row {
  const daemon::Snapshot* snapshot;
  const JobSnapshot* job;
  const JobRates* rates;  // null: not known yet
};

struct Column {
  const char* title;
  std::size_t cells;
  double (*weight)(const Row&);  // what it is sorted by, the largest first
  std::string (*cell)(const Row&);
};

std::string Decimal(double value) {
  char text[32];
  if (value >= 1e6) {
    std::snprintf(text, sizeof(text), "%.3g", value);
  } else {
    std::snprintf(text, sizeof(text), value < 10 ? "%.2f" : value < 100 ? "%.1f" : "%.0f", value);
  }
  return text;
}

std::string Percent(double ratio) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.0f%%", ratio * 100);
  return text;
}

std::string BytesOf(double bytes) {
  return FormatBytes(static_cast<std::uint64_t>(std::clamp(bytes, 0.0, 1e18)));
}

std::string Milliseconds(std::uint64_t ns) {
  return Decimal(static_cast<double>(ns) / 1e6) + " ms";
}

template <double JobRates::*kRate>
double RateWeight(const Row& row) {
  return row.rates == nullptr ? 0 : row.rates->*kRate;
}
template <double JobRates::*kRate, std::string (*kForm)(double)>
std::string RateCell(const Row& row) {
  return row.rates == nullptr ? "-" : kForm(row.rates->*kRate);
}
template <std::uint64_t JobSnapshot::*kCount>
double CountWeight(const Row& row) {
  return static_cast<double>(row.job->*kCount);
}
template <std::uint64_t JobSnapshot::*kCount>
std::string BytesCell(const Row& row) {
  return FormatBytes(row.job->*kCount);
}
template <std::size_t kKind>
double KindWeight(const Row& row) {
  return static_cast<double>(row.job->bytes_by_kind[kKind]);
}
template <std::size_t kKind>
std::string KindCell(const Row& row) {
  return FormatBytes(row.job->bytes_by_kind[kKind]);
}

// After the job's name and its device; the first are seen where there is little room.
constexpr std::array kColumns = {
    Column{"RESIDENT", 10, CountWeight<&JobSnapshot::resident_bytes>,
           BytesCell<&JobSnapshot::resident_bytes>},
    Column{"STEPS/s", 7, RateWeight<&JobRates::steps>, RateCell<&JobRates::steps, Decimal>},
    Column{"TO DEV/s", 10, RateWeight<&JobRates::to_device_bytes>,
           RateCell<&JobRates::to_device_bytes, BytesOf>},
    Column{"TO HOST/s", 10, RateWeight<&JobRates::to_host_bytes>,
           RateCell<&JobRates::to_host_bytes, BytesOf>},
    Column{"STALL", 5, RateWeight<&JobRates::stall_ratio>, RateCell<&JobRates::stall_ratio, Percent>},
    Column{"EVICT/s", 7, RateWeight<&JobRates::evictions>, RateCell<&JobRates::evictions, Decimal>},
    Column{"HOST", 10, CountWeight<&JobSnapshot::host_bytes>, BytesCell<&JobSnapshot::host_bytes>},
    Column{"BUFFERS", 10, CountWeight<&JobSnapshot::buffer_bytes>, BytesCell<&JobSnapshot::buffer_bytes>},
    Column{"DIRTY", 10, CountWeight<&JobSnapshot::dirty_bytes>, BytesCell<&JobSnapshot::dirty_bytes>},
    Column{"SHARE", 10, CountWeight<&JobSnapshot::share_bytes>, BytesCell<&JobSnapshot::share_bytes>},
    Column{"QUOTA", 10, CountWeight<&JobSnapshot::device_quota_bytes>,
           [](const Row& row) {
             const std::uint64_t quota = row.job->device_quota_bytes;
             return quota == 0 ? std::string("-") : FormatBytes(quota);
           }},
    Column{"PRIO", 5, [](const Row& row) { return row.job->weight; },
           [](const Row& row) { return Decimal(row.job->weight); }},
    Column{"STATES", 10, KindWeight<0>, KindCell<0>},
    Column{"WEIGHTS", 10, KindWeight<1>, KindCell<1>},
    Column{"LEASED", 10, CountWeight<&JobSnapshot::leased_bytes>, BytesCell<&JobSnapshot::leased_bytes>},
    Column{"DISK", 10, CountWeight<&JobSnapshot::disk_bytes>, BytesCell<&JobSnapshot::disk_bytes>},
    Column{"STEPS", 9, CountWeight<&JobSnapshot::steps>,
           [](const Row& row) { return std::to_string(row.job->steps); }},
    Column{"LAST STEP", 9, CountWeight<&JobSnapshot::step_ns_last>,
           [](const Row& row) {
             return row.job->steps == 0 ? std::string("-") : Milliseconds(row.job->step_ns_last);
           }},
    Column{"FAULTS", 9, CountWeight<&JobSnapshot::faults>,
           [](const Row& row) { return std::to_string(row.job->faults); }},
    Column{"RANKS", 5, [](const Row& row) { return static_cast<double>(row.job->sessions); },
           [](const Row& row) {
             return row.job->lingering ? std::string("kept") : std::to_string(row.job->sessions);
           }},
    Column{"UID", 7, [](const Row& row) { return static_cast<double>(row.job->uid); },
           [](const Row& row) { return std::to_string(row.job->uid); }},
};

// Sorted by name, by device, then by one of kColumns.
constexpr std::size_t kByDevice = 1;
constexpr std::size_t kFixed = 2;

Row RowOf(const TopView& view, std::size_t job) {
  const bool known = view.rates && job < view.rates->jobs.size();
  return {&view.now, &view.now.jobs[job], known ? &view.rates->jobs[job] : nullptr};
}

std::size_t NameCells(const TopView& view) {
  std::size_t cells = kLeastName;
  for (const JobSnapshot& job : view.now.jobs) cells = std::max(cells, CellsOf(Shown(job.name, view.utf8)));
  return std::min(cells, kMostName);
}

std::size_t DeviceCells(const TopView& view) {
  std::size_t cells = 3;  // "GPU", "cpu"
  for (const JobSnapshot& job : view.now.jobs)
    cells = std::max(cells, DeviceLabel(view.now, job.device).size());
  return cells;
}

struct Shape {
  std::size_t name = 0;
  std::size_t device = 0;
  std::vector<std::size_t> columns;  // of kColumns
};

// As many columns as fit, those from `first` on; a long name takes a quarter of the width at most.
Shape ShapeOf(const TopView& view, std::size_t first, std::size_t columns) {
  Shape out{NameCells(view), DeviceCells(view), {}};
  if (columns != 0) out.name = std::min(out.name, std::max(kLeastName, columns / 4));
  std::size_t used = out.name + kGap + out.device;
  for (std::size_t i = first; i < kColumns.size(); ++i) {
    if (columns != 0 && used + kGap + kColumns[i].cells > columns) break;
    out.columns.push_back(i);
    used += kGap + kColumns[i].cells;
  }
  return out;
}

TextLine TitleLine(const Shape& shape, const TopState& state) {
  TextLine out;
  const auto add = [&](const std::string& cell, std::size_t column) {
    const bool sorted = column == state.sort;
    out.push_back({cell, sorted ? Ink::kTitle : Ink::kBold});
  };
  add(Fit("JOB", shape.name), 0);
  add(Fit("  GPU", kGap + shape.device), kByDevice);
  for (const std::size_t i : shape.columns) {
    add(Fit(kColumns[i].title, kGap + kColumns[i].cells, true), kFixed + i);
  }
  return out;
}

TextLine JobLine(const Row& row, const Shape& shape, const TopView& view) {
  std::string text = Fit(Shown(row.job->name, view.utf8), shape.name);
  text += std::string(kGap, ' ') + Fit(DeviceLabel(view.now, row.job->device), shape.device);
  for (const std::size_t i : shape.columns) {
    text += std::string(kGap, ' ') + Fit(kColumns[i].cell(row), kColumns[i].cells, true);
  }
  return {{std::move(text), row.job->lingering ? Ink::kDim : Ink::kPlain}};
}

// Below 0: a comes first.
int Compare(const Row& a, const Row& b, std::size_t sort) {
  if (sort >= kFixed) {
    const auto& column = kColumns[sort - kFixed];
    const double left = column.weight(a);
    const double right = column.weight(b);
    if (left != right) return left > right ? -1 : 1;
  }
  const int name = a.job->name.compare(b.job->name);
  const int device = a.job->device.compare(b.job->device);
  if (sort == kByDevice && device != 0) return device;
  return name != 0 ? name : device;
}

}  // namespace

std::size_t SortColumns() {
  return kFixed + kColumns.size();
}

const char* SortName(std::size_t column) {
  if (column == 0) return "JOB";
  return column == kByDevice ? "GPU" : kColumns[std::min(column - kFixed, kColumns.size() - 1)].title;
}

std::vector<std::size_t> SortedJobs(const TopView& view, const TopState& state) {
  std::vector<std::size_t> order(view.now.jobs.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    const int compared = Compare(RowOf(view, a), RowOf(view, b), state.sort);
    return state.reverse ? compared > 0 : compared < 0;
  });
  return order;
}

Frame JobTable(const TopView& view, const TopState& state, std::size_t columns, std::size_t rows) {
  const Shape shape = ShapeOf(view, std::min(state.first_column, kColumns.size() - 1), columns);
  Frame out = {TitleLine(shape, state)};
  const std::vector<std::size_t> order = SortedJobs(view, state);
  const std::size_t last = rows == 0 ? order.size() : std::min(order.size(), state.first_row + rows);
  for (std::size_t i = rows == 0 ? 0 : state.first_row; i < last; ++i) {
    out.push_back(JobLine(RowOf(view, order[i]), shape, view));
  }
  if (order.empty()) out.push_back(TextLine{{"no jobs", Ink::kDim}});
  return out;
}

}  // namespace bitpager::cli
