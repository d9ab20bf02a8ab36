// What `bitpager top` shows, as pure functions: snapshots in, lines of spans out, keys in, state out. Curses
// and sockets are elsewhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "daemon/snapshot.h"
#include "tools/cli/event.h"
#include "tools/cli/rates.h"

namespace bitpager::cli {

enum class Ink : std::uint8_t { kPlain, kBold, kTitle, kGood, kWarning, kBad, kDim };

struct Span {
  std::string text;  // shown text (cells.h)
  Ink ink = Ink::kPlain;
};
using TextLine = std::vector<Span>;
using Frame = std::vector<TextLine>;

struct TopSize {
  std::size_t columns = 0;  // 0: as many as there are
  std::size_t rows = 0;     // likewise; then neither keys nor titles for them are shown
};

struct TopView {
  daemon::Snapshot now;
  std::optional<Rates> rates;  // against the sample before; none after the first
  std::vector<Event> newest;   // events, the newest last
  std::string trouble;         // set while the daemon is away
  bool utf8 = false;
};

struct TopState {
  std::size_t sort = 2;  // column, as SortName counts them; 2: what is resident
  bool reverse = false;
  std::size_t first_row = 0;     // of the jobs
  std::size_t first_column = 0;  // of those after the name and the device
  bool help = false;
};

enum class Key : std::uint8_t {
  kNone,
  kQuit,
  kSort,
  kReverse,
  kHelp,
  kUp,
  kDown,
  kPageUp,
  kPageDown,
  kHome,
  kEnd,
  kLeft,
  kRight
};

// Lines of exactly size.columns cells at most, size.rows lines at most.
[[nodiscard]] Frame LayOut(const TopView& view, const TopState& state, TopSize size);
// The state after a key; scrolling stays within the table.
[[nodiscard]] TopState After(Key key, const TopView& view, TopState state, TopSize size);

// "0" of GPU 0, "cpu"; "?" for a device that is not served.
[[nodiscard]] std::string DeviceLabel(const daemon::Snapshot& snapshot, const std::string& uuid);

// ---- the parts, for tests and for each other
// Jobs in the state's order, as indices into the snapshot's jobs. Equal ones by name and device.
[[nodiscard]] std::vector<std::size_t> SortedJobs(const TopView& view, const TopState& state);
[[nodiscard]] std::size_t SortColumns();
[[nodiscard]] const char* SortName(std::size_t column);
// The title line and `rows` jobs from state.first_row (0: all); the columns that fit into `columns` cells (0:
// all).
[[nodiscard]] Frame JobTable(const TopView& view, const TopState& state, std::size_t columns,
                             std::size_t rows);

}  // namespace bitpager::cli
