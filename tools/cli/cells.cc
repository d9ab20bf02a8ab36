#include "tools/cli/cells.h"

#include <langinfo.h>
#include <wchar.h>

#include <array>
#include <clocale>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace bitpager::cli {
namespace {

constexpr int kMostMarks = 2;  // combining marks on one character

struct Decoded {
  char32_t point = 0;
  std::size_t bytes = 0;  // 0: no UTF-8
};

Decoded Decode(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  if (lead < 0x80) return {lead, 1};
  const std::size_t bytes = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < bytes) return {};
  char32_t point = lead & (0x7FU >> bytes);
  for (std::size_t i = 1; i < bytes; ++i) {
    const auto next = static_cast<unsigned char>(text[i]);
    if ((next & 0xC0U) != 0x80) return {};
    point = (point << 6U) | (next & 0x3FU);
  }
  constexpr std::array<char32_t, 5> kLeast = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = point >= 0xD800 && point < 0xE000;
  return point < kLeast[bytes] || point > 0x10FFFF || surrogate ? Decoded{} : Decoded{point, bytes};
}

// Characters that show nothing or turn the direction of writing.
bool Deceives(char32_t point) {
  constexpr std::array<std::pair<char32_t, char32_t>, 12> kRanges = {{{0x00AD, 0x00AD},
                                                                      {0x034F, 0x034F},
                                                                      {0x061C, 0x061C},
                                                                      {0x115F, 0x1160},
                                                                      {0x17B4, 0x17B5},
                                                                      {0x180B, 0x180F},
                                                                      {0x200B, 0x200F},
                                                                      {0x2028, 0x202E},
                                                                      {0x2060, 0x206F},
                                                                      {0xFE00, 0xFE0F},
                                                                      {0xFEFF, 0xFEFF},
                                                                      {0xE0000, 0xE0FFF}}};
  for (const auto& [first, last] : kRanges) {
    if (point >= first && point <= last) return true;
  }
  return false;
}

int WidthOf(char32_t point) {
  return ::wcwidth(static_cast<wchar_t>(point));
}

}  // namespace

bool EnterLocale() {
  if (std::setlocale(LC_CTYPE, "") == nullptr) {
    // A locale that is not installed here: its text is still UTF-8 when its name says so.
    const char* name = std::getenv("LC_ALL");
    if (name == nullptr || *name == '\0') name = std::getenv("LC_CTYPE");
    if (name == nullptr || *name == '\0') name = std::getenv("LANG");
    const std::string wanted = name == nullptr ? "" : name;
    const bool utf8 = wanted.find("UTF-8") != std::string::npos || wanted.find("utf8") != std::string::npos;
    if (!utf8 || std::setlocale(LC_CTYPE, "C.UTF-8") == nullptr) return false;
  }
  return std::strcmp(::nl_langinfo(CODESET), "UTF-8") == 0;
}

std::string Shown(std::string_view text, bool utf8) {
  std::string out;
  int marks = kMostMarks;  // of the character before; a mark needs one
  while (!text.empty()) {
    const Decoded next = Decode(text);
    const bool ascii = next.bytes == 1 && next.point >= 0x20 && next.point < 0x7F;
    const int width = ascii ? 1 : next.bytes < 2 || !utf8 || Deceives(next.point) ? -1 : WidthOf(next.point);
    const bool taken = width > 0 || (width == 0 && marks < kMostMarks);
    out += taken ? text.substr(0, next.bytes) : std::string_view("?");
    marks = width == 0 && taken ? marks + 1 : 0;
    text.remove_prefix(next.bytes == 0 ? 1 : next.bytes);
  }
  return out;
}

std::size_t CellsOf(std::string_view shown) {
  std::size_t cells = 0;
  while (!shown.empty()) {
    const Decoded next = Decode(shown);
    const int width = next.bytes == 0 ? 1 : WidthOf(next.point);
    cells += width > 0 ? static_cast<std::size_t>(width) : 0;
    shown.remove_prefix(next.bytes == 0 ? 1 : next.bytes);
  }
  return cells;
}

std::string Fit(std::string_view shown, std::size_t cells, bool right_aligned) {
  const std::size_t all = CellsOf(shown);
  if (all <= cells) {
    const std::string blanks(cells - all, ' ');
    return right_aligned ? blanks + std::string(shown) : std::string(shown) + blanks;
  }
  if (cells == 0) return "";
  std::string out;
  std::size_t used = 0;
  while (!shown.empty()) {
    const Decoded next = Decode(shown);
    const std::size_t bytes = next.bytes == 0 ? 1 : next.bytes;
    const std::size_t width = CellsOf(shown.substr(0, bytes));
    if (used + width > cells - 1) break;
    out += shown.substr(0, bytes);
    used += width;
    shown.remove_prefix(bytes);
  }
  return out + "~" + std::string(cells - 1 - used, ' ');
}

}  // namespace bitpager::cli
