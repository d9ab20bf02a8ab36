// The terminal, through curses. One at a time, one thread; signals are the caller's (signals.h), but the stop
// from the keyboard, which curses handles.
#pragma once

#include <memory>

#include "client/wire/status.h"
#include "tools/cli/top_view.h"

namespace bitpager::cli {

class Screen {
 public:
  // Takes over the terminal at stdin and stdout. kUnsupported, with a hint, when they are none, when TERM is
  // not known on this machine, or when that terminal cannot place its cursor.
  [[nodiscard]] static wire::Result<std::unique_ptr<Screen>> Open(bool color);
  ~Screen();  // gives the terminal back as it was
  Screen(const Screen&) = delete;
  Screen& operator=(const Screen&) = delete;

  [[nodiscard]] TopSize size() const;
  void Resize();  // after SIGWINCH
  void Draw(const Frame& frame);
  [[nodiscard]] Key Read();  // kNone when none waits; kQuit when the terminal has gone

 private:
  struct Terminal;
  explicit Screen(std::unique_ptr<Terminal> terminal);
  std::unique_ptr<Terminal> terminal_;
};

}  // namespace bitpager::cli
