#include "tools/cli/screen.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

// After everything else: curses defines macros with short names.
#include <ncurses.h>
#include <term.h>

namespace bitpager::cli {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

constexpr int kEscapeDelayMs = 25;
constexpr short kGreenPair = 1;
constexpr short kYellowPair = 2;
constexpr short kRedPair = 3;

// Of a capability that is a text in terminfo. Curses takes its name as char*.
bool HasText(std::string capability) {
  return ::tigetstr(capability.data()) != nullptr;
}

Status CheckTerminal() {
  if (::isatty(STDIN_FILENO) == 0 || ::isatty(STDOUT_FILENO) == 0) {
    return {Code::kUnsupported,
            "top needs a terminal. Hint: --once for one sample as text, --json for programs"};
  }
  const char* named = std::getenv("TERM");
  const std::string name = named == nullptr ? "" : named;
  if (name.empty()) {
    return {Code::kUnsupported, "the terminal is not known: TERM is not set. Hint: TERM=xterm, or --once"};
  }
  int error = 0;
  if (::setupterm(nullptr, STDOUT_FILENO, &error) != OK) {
    return {Code::kUnsupported, "the terminal '" + name +
                                    "' is not in this machine's terminfo. Hint: TERM=xterm, install "
                                    "ncurses-term or ncurses-base, or --once for one sample as text"};
  }
  if (HasText("cup") && HasText("clear")) return {};
  return {Code::kUnsupported,
          "the terminal '" + name + "' cannot place its cursor. Hint: --once for one sample as text"};
}

attr_t AttributesOf(Ink ink, bool color) {
  switch (ink) {
    case Ink::kPlain:
      return A_NORMAL;
    case Ink::kBold:
      return A_BOLD;
    case Ink::kTitle:
      return A_BOLD | A_REVERSE;
    case Ink::kGood:
      return color ? static_cast<attr_t>(COLOR_PAIR(kGreenPair)) : A_NORMAL;
    case Ink::kWarning:
      return A_BOLD | (color ? static_cast<attr_t>(COLOR_PAIR(kYellowPair)) : A_NORMAL);
    case Ink::kBad:
      return A_BOLD | (color ? static_cast<attr_t>(COLOR_PAIR(kRedPair)) : A_REVERSE);
    case Ink::kDim:
      return A_DIM;
  }
  return A_NORMAL;
}

Key KeyOf(int code) {
  switch (code) {
    case 'q':
    case 'Q':
      return Key::kQuit;
    case 's':
      return Key::kSort;
    case 'r':
      return Key::kReverse;
    case 'h':
    case '?':
      return Key::kHelp;
    case KEY_UP:
    case 'k':
      return Key::kUp;
    case KEY_DOWN:
    case 'j':
      return Key::kDown;
    case KEY_PPAGE:
      return Key::kPageUp;
    case KEY_NPAGE:
    case ' ':
      return Key::kPageDown;
    case KEY_HOME:
      return Key::kHome;
    case KEY_END:
      return Key::kEnd;
    case KEY_LEFT:
      return Key::kLeft;
    case KEY_RIGHT:
      return Key::kRight;
    default:
      return Key::kNone;
  }
}

bool InputEnded() {
  pollfd item{STDIN_FILENO, POLLIN, 0};
  return ::poll(&item, 1, 0) > 0 && (item.revents & (POLLHUP | POLLERR | POLLNVAL)) != 0;
}

}  // namespace

struct Screen::Terminal {
  SCREEN* screen = nullptr;
  bool color = false;
};

Result<std::unique_ptr<Screen>> Screen::Open(bool color) {
  Status known = CheckTerminal();
  if (!known.ok()) return known;
  SCREEN* screen = ::newterm(nullptr, stdout, stdin);
  if (screen == nullptr) {
    return Status(Code::kUnsupported, "curses cannot use this terminal. Hint: --once for one sample as text");
  }
  auto terminal = std::make_unique<Terminal>();
  terminal->screen = screen;
  terminal->color = color && ::has_colors() && ::start_color() == OK;
  if (terminal->color) {
    const short background = ::use_default_colors() == OK ? short{-1} : short{COLOR_BLACK};
    ::init_pair(kGreenPair, COLOR_GREEN, background);
    ::init_pair(kYellowPair, COLOR_YELLOW, background);
    ::init_pair(kRedPair, COLOR_RED, background);
  }
  ::set_escdelay(kEscapeDelayMs);
  ::cbreak();
  ::noecho();
  ::nonl();
  ::keypad(stdscr, true);
  ::nodelay(stdscr, true);
  ::curs_set(0);
  return std::unique_ptr<Screen>(new Screen(std::move(terminal)));
}

Screen::Screen(std::unique_ptr<Terminal> terminal) : terminal_(std::move(terminal)) {}

Screen::~Screen() {
  ::endwin();
  ::delscreen(terminal_->screen);
}

TopSize Screen::size() const {
  return {static_cast<std::size_t>(std::max(COLS, 1)), static_cast<std::size_t>(std::max(LINES, 1))};
}

void Screen::Resize() {
  winsize now{};
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &now) == 0 && now.ws_row > 0 && now.ws_col > 0) {
    ::resizeterm(now.ws_row, now.ws_col);
  }
  ::clearok(curscr, true);  // a terminal may have moved what it showed
}

void Screen::Draw(const Frame& frame) {
  ::erase();
  for (std::size_t row = 0; row < frame.size() && row < size().rows; ++row) {
    ::move(static_cast<int>(row), 0);
    for (const Span& span : frame[row]) {
      ::attrset(static_cast<int>(AttributesOf(span.ink, terminal_->color)));
      ::addstr(span.text.c_str());
    }
  }
  ::attrset(A_NORMAL);
  ::refresh();
}

Key Screen::Read() {
  for (int code = ::getch(); code != ERR; code = ::getch()) {
    if (const Key key = KeyOf(code); key != Key::kNone) return key;
  }
  return InputEnded() ? Key::kQuit : Key::kNone;
}

}  // namespace bitpager::cli
