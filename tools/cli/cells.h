// Text in the cells of a terminal. What comes from elsewhere passes through Shown before it is printed.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace bitpager::cli {

// Takes the locale from the environment. True when its text is UTF-8; call it before anything else here.
bool EnterLocale();

// `text` without what could move the cursor or deceive: control characters, invisible ones, those that turn
// the direction of writing, and what is no UTF-8 become '?'; where `utf8` is false, so does all but ASCII.
[[nodiscard]] std::string Shown(std::string_view text, bool utf8);

// How many cells shown text takes: 2 for a wide character, 0 for a combining mark.
[[nodiscard]] std::size_t CellsOf(std::string_view shown);

// Exactly `cells` wide: filled up with blanks, on the left when `right_aligned`, or cut, with '~' for the
// rest.
[[nodiscard]] std::string Fit(std::string_view shown, std::size_t cells, bool right_aligned = false);

}  // namespace bitpager::cli
