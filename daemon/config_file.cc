#include "daemon/config_file.h"

#define TOML_EXCEPTIONS 0
#define TOML_HEADER_ONLY 1
#include <toml++/toml.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <optional>
#include <sstream>

#include "daemon/config_settings.h"

namespace bitpager::daemon {
namespace {

using wire::Code;
using wire::Status;

struct TypeName {
  SettingTypes type;
  const char* name;
};
constexpr TypeName kTypeNames[] = {
    {kText, "a string"}, {kInteger, "an integer"}, {kFloat, "a number"}, {kBoolean, "true or false"}};

std::string Expected(unsigned types) {
  std::string out;
  for (const TypeName& type : kTypeNames) {
    if ((types & type.type) != 0) out += (out.empty() ? "" : " or ") + std::string(type.name);
  }
  return out;
}

std::string Place(const std::string& path, const toml::source_region& region) {
  return path + ":" + std::to_string(region.begin.line);
}

// Edits from one to the other: insert, delete, replace.
std::size_t Distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

// The known key that was likely meant, or the keys of its table.
std::string KeyHint(const std::string& key) {
  const std::string last = key.substr(key.rfind('.') + 1);
  std::string best;
  std::size_t least = 4;
  std::string in_table;
  const std::string table = key.substr(0, key.find('.') + 1);
  for (const Setting& setting : Settings()) {
    const std::string known = setting.key;
    const std::size_t distance =
        std::min(Distance(key, known), Distance(last, known.substr(known.find('.') + 1)));
    if (distance < least) {
      least = distance;
      best = known;
    }
    if (!table.empty() && known.rfind(table, 0) == 0) in_table += " " + known.substr(table.size());
  }
  if (!best.empty()) return "Hint: did you mean " + best + "?";
  if (!in_table.empty()) return "Hint: [" + table.substr(0, table.size() - 1) + "] takes" + in_table;
  return "Hint: the tables are [socket] [memory] [device] [jobs] [limits] [log] [telemetry]";
}

struct Value {
  unsigned type = 0;
  std::string text;
};

std::optional<Value> ValueOf(const toml::node& node) {
  if (const auto* text = node.as_string()) return Value{kText, text->get()};
  if (const auto* integer = node.as_integer()) return Value{kInteger, std::to_string(integer->get())};
  if (const auto* boolean = node.as_boolean()) return Value{kBoolean, boolean->get() ? "true" : "false"};
  if (const auto* number = node.as_floating_point()) {
    std::ostringstream out;
    out.precision(std::numeric_limits<double>::max_digits10);
    out << number->get();
    return Value{kFloat, out.str()};
  }
  return std::nullopt;
}

Status Apply(const std::string& place, const std::string& key, const toml::node& node, Config& config) {
  const auto fail = [&](const std::string& what) {
    return Status(Code::kInvalidArgument, place + ": " + what);
  };
  const auto settings = Settings();
  const auto found =
      std::find_if(settings.begin(), settings.end(), [&](const Setting& s) { return key == s.key; });
  if (found == settings.end()) return fail("unknown key " + key + ". " + KeyHint(key));
  const std::optional<Value> value = ValueOf(node);
  if (!value || (value->type & found->types) == 0) {
    std::ostringstream written;
    written << toml::node_view<const toml::node>(node);
    return fail(key + " = " + written.str() + " has the wrong type. Hint: it takes " +
                Expected(found->types));
  }
  const Status set = found->set(config, value->text);
  return set.ok() ? Status() : fail(key + ": " + set.message());
}

Status ApplyTable(const std::string& path, const std::string& prefix, const toml::table& table,
                  Config& config) {
  for (auto&& [key, node] : table) {
    const std::string name = prefix + std::string(key.str());
    const bool known_table = prefix.empty() && node.is_table() &&
                             std::any_of(Settings().begin(), Settings().end(), [&](const Setting& s) {
                               return std::string(s.key).rfind(name + ".", 0) == 0;
                             });
    const Status status = known_table ? ApplyTable(path, name + ".", *node.as_table(), config)
                                      : Apply(Place(path, node.source()), name, node, config);
    if (!status.ok()) return status;
  }
  return {};
}

// 0, or the errno.
int ReadWhole(const std::string& path, std::string& out) {
  std::FILE* file = std::fopen(path.c_str(), "re");
  if (file == nullptr) return errno;
  char part[4096];
  while (const std::size_t bytes = std::fread(part, 1, sizeof(part), file)) out.append(part, bytes);
  const int error = std::ferror(file) != 0 ? errno : 0;
  std::fclose(file);
  return error;
}

}  // namespace

Status ReadConfigFile(const std::string& path, Config& config) {
  std::string text;
  const int error = ReadWhole(path, text);
  if (error != 0) {
    const Code code =
        error == ENOENT ? Code::kNotFound : (error == EACCES ? Code::kPermissionDenied : Code::kInternal);
    return {code, "cannot read the configuration " + path + " (" + std::strerror(error) +
                      "). Hint: --config takes a TOML file that this user may read"};
  }
  const toml::parse_result parsed = toml::parse(std::string_view(text), path);
  if (!parsed) {
    return {Code::kInvalidArgument, Place(path, parsed.error().source()) + ": " +
                                        std::string(parsed.error().description()) +
                                        ". Hint: the file is TOML: [table], then key = value"};
  }
  return ApplyTable(path, "", parsed.table(), config);
}

}  // namespace bitpager::daemon
