#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>
#include <optional>

#include "daemon/config.h"

namespace bitpager::daemon {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

constexpr std::string_view kSizeHint = "Hint: write bytes or a size such as 8GiB, 512MiB or 2M";

struct NumberAndUnit {
  double number = 0;
  bool whole = false;  // written without a fraction: `integer` is exact
  std::uint64_t integer = 0;
  std::string unit;  // lower case
};

std::string_view Trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

bool IsDigit(char c) {
  return c >= '0' && c <= '9';
}

// Digits, perhaps a fraction, perhaps spaces, perhaps a unit. No sign, no exponent.
std::optional<NumberAndUnit> Split(std::string_view text) {
  text = Trim(text);
  std::size_t end = 0;
  while (end < text.size() && IsDigit(text[end])) ++end;
  if (end == 0) return std::nullopt;
  NumberAndUnit out;
  const auto parsed = std::from_chars(text.data(), text.data() + end, out.integer);
  if (parsed.ec != std::errc()) return std::nullopt;
  out.whole = true;
  if (end < text.size() && text[end] == '.') {
    const std::size_t dot = end++;
    while (end < text.size() && IsDigit(text[end])) ++end;
    if (end == dot + 1) return std::nullopt;
    out.whole = false;
  }
  if (std::from_chars(text.data(), text.data() + end, out.number).ec != std::errc()) return std::nullopt;
  for (const char c : Trim(text.substr(end))) {
    out.unit += (c >= 'A' && c <= 'Z') ? static_cast<char>(c - 'A' + 'a') : c;
  }
  return out;
}

// log2 of the unit's bytes.
std::optional<int> UnitShift(std::string_view unit) {
  if (unit.empty() || unit == "b") return 0;
  const std::size_t power = std::string_view("kmgt").find(unit[0]);
  if (power == std::string_view::npos) return std::nullopt;
  const std::string_view rest = unit.substr(1);
  if (!rest.empty() && rest != "b" && rest != "i" && rest != "ib") return std::nullopt;
  return 10 * (static_cast<int>(power) + 1);
}

std::string Quoted(std::string_view text) {
  std::string out(1, '\'');
  out.append(text).push_back('\'');
  return out;
}

Status BadSize(std::string_view text, std::string_view why, std::string_view hint) {
  std::string message = Quoted(text);
  message.append(" is not a size: ").append(why).append(". ").append(hint);
  return {Code::kInvalidArgument, std::move(message)};
}

Result<SizeSetting> Percent(std::string_view text, double percent) {
  if (percent > 0 && percent <= 100) return SizeSetting{SizeSetting::Kind::kPercent, 0, percent};
  return BadSize(text, "a share lies above 0% and up to 100%", "Hint: write for example 40%");
}

}  // namespace

Result<SizeSetting> ParseSize(std::string_view text) {
  const auto split = Split(text);
  if (!split) return BadSize(text, "it must start with a number below 2^64", kSizeHint);
  if (split->unit == "%") return Percent(text, split->number);
  const auto shift = UnitShift(split->unit);
  if (!shift) return BadSize(text, "unknown unit " + Quoted(split->unit), kSizeHint);
  SizeSetting out{SizeSetting::Kind::kBytes, 0, 0};
  if (split->whole) {
    out.bytes = split->integer << *shift;
    if (out.bytes >> *shift != split->integer) return BadSize(text, "it is above 2^64 bytes", kSizeHint);
    return out;
  }
  const double bytes = std::floor(std::ldexp(split->number, *shift));
  if (bytes >= 0x1p63) return BadSize(text, "it is too large", kSizeHint);
  if (*shift == 0) return BadSize(text, "there are no parts of a byte", kSizeHint);
  out.bytes = static_cast<std::uint64_t>(bytes);
  return out;
}

Result<std::uint64_t> ParseBytes(std::string_view text) {
  const Result<SizeSetting> size = ParseSize(text);
  if (!size.ok()) return size.status();
  if (size->kind == SizeSetting::Kind::kPercent) {
    return BadSize(text, "a share has no meaning here", kSizeHint);
  }
  return size->bytes;
}

Result<std::int64_t> ParseDurationMs(std::string_view text) {
  const auto bad = [&](std::string_view why) {
    std::string message = Quoted(text);
    message.append(" is not a duration: ").append(why).append(". Hint: write 250ms, 30s, 10m, 2h or 0");
    return Status(Code::kInvalidArgument, std::move(message));
  };
  const auto split = Split(text);
  if (!split) return bad("it must start with a number");
  double unit_ms = 0;
  if (split->unit == "ms") unit_ms = 1;
  if (split->unit == "s") unit_ms = 1e3;
  if (split->unit == "m" || split->unit == "min") unit_ms = 60e3;
  if (split->unit == "h") unit_ms = 3600e3;
  if (split->unit == "d") unit_ms = 24 * 3600e3;
  if (split->number == 0 && split->unit.empty()) return std::int64_t{0};
  if (unit_ms == 0)
    return bad(split->unit.empty() ? "it has no unit" : "unknown unit " + Quoted(split->unit));
  const double ms = split->number * unit_ms;
  if (ms > 1e14) return bad("it is too long");
  return static_cast<std::int64_t>(std::llround(ms));
}

std::string FormatBytes(std::uint64_t bytes) {
  static constexpr std::array<const char*, 7> kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (unit + 1 < kUnits.size() && value >= 1023.95) {
    value /= 1024;
    ++unit;
  }
  char text[32];
  const bool whole = std::abs(value - std::round(value)) < 0.05;
  std::snprintf(text, sizeof(text), whole ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text;
}

Result<paging::Policy> ParsePolicy(std::string_view text) {
  if (text == "scan") return paging::Policy::kScanAware;
  if (text == "lru") return paging::Policy::kLru;
  if (text == "clock") return paging::Policy::kClock;
  return Status(Code::kInvalidArgument, Quoted(text) + " is not a policy. Hint: one of scan, lru, clock");
}

std::string_view PolicyName(paging::Policy policy) {
  switch (policy) {
    case paging::Policy::kScanAware:
      return "scan";
    case paging::Policy::kLru:
      return "lru";
    case paging::Policy::kClock:
      return "clock";
  }
  return "unknown";
}

}  // namespace bitpager::daemon
