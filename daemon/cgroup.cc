#include "daemon/cgroup.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>
#include <sstream>
#include <string_view>
#include <vector>

namespace bitpager::daemon {
namespace {

// cgroup v1 writes "no limit" as the greatest multiple of the page size that fits.
constexpr std::uint64_t kV1Unlimited = std::uint64_t{1} << 62;

struct Hierarchy {
  int version = 0;
  std::string mount;  // with the root before it
  std::string path;   // below the mount: "/" or "/a/b"
};

std::optional<std::string> ReadText(const std::string& path) {
  std::ifstream file(path);
  if (!file) return std::nullopt;
  std::ostringstream out;
  out << file.rdbuf();
  return out.str();
}

std::optional<std::uint64_t> Number(std::string_view text) {
  std::uint64_t value = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  if (parsed.ec != std::errc()) return std::nullopt;  // "max", "-1", empty
  return value;
}

std::optional<std::uint64_t> ReadNumber(const std::string& path) {
  const auto text = ReadText(path);
  return text ? Number(*text) : std::nullopt;
}

// "name value" lines, as in memory.stat.
std::uint64_t StatValue(const std::string& path, std::string_view name) {
  std::ifstream file(path);
  std::string key;
  std::uint64_t value = 0;
  while (file >> key >> value) {
    if (key == name) return value;
  }
  return 0;
}

bool HasWord(const std::string& comma_list, std::string_view word) {
  std::istringstream in(comma_list);
  std::string item;
  while (std::getline(in, item, ',')) {
    if (item == word) return true;
  }
  return false;
}

// Path of this process in the v1 hierarchy of `controller`, or in v2 when that is empty.
std::optional<std::string> CgroupPath(const std::string& root, std::string_view controller) {
  std::ifstream file(root + "/proc/self/cgroup");
  std::string line;
  while (std::getline(file, line)) {  // id:controllers:path
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool match = controller.empty() ? controllers.empty() : HasWord(controllers, controller);
    if (match) return line.substr(second + 1);
  }
  return std::nullopt;
}

struct Mount {
  std::string subtree;  // of the hierarchy, that is mounted
  std::string at;
};

// mountinfo: id parent major:minor subtree at options [optional]... - type source super_options
std::optional<Mount> FindMount(const std::string& root, std::string_view controller) {
  std::ifstream file(root + "/proc/self/mountinfo");
  std::string line;
  while (std::getline(file, line)) {
    const std::size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream head(line.substr(0, dash));
    std::istringstream tail(line.substr(dash + 3));
    std::string skip;
    Mount mount;
    std::string type;
    std::string source;
    std::string super_options;
    head >> skip >> skip >> skip >> mount.subtree >> mount.at;
    tail >> type >> source >> super_options;
    const bool match =
        controller.empty() ? type == "cgroup2" : (type == "cgroup" && HasWord(super_options, controller));
    if (match) return mount;
  }
  return std::nullopt;
}

// The path below the mount. Outside the mounted subtree (no cgroup namespace, or a parent of it) only the
// mount's own top is visible.
std::string BelowMount(const std::string& path, const std::string& subtree) {
  if (path.rfind("/..", 0) == 0) return "/";
  if (subtree == "/") return path;
  if (path == subtree) return "/";
  if (path.rfind(subtree + "/", 0) == 0) return path.substr(subtree.size());
  return "/";
}

std::optional<Hierarchy> FindHierarchy(const std::string& root, const std::string& controller) {
  for (const int version : {1, 2}) {
    const std::string name = version == 1 ? controller : std::string();
    const auto path = CgroupPath(root, name);
    const auto mount = FindMount(root, name);
    if (path && mount) return Hierarchy{version, root + mount->at, BelowMount(*path, mount->subtree)};
  }
  return std::nullopt;
}

// "/a/b", "/a", "/".
std::vector<std::string> Levels(std::string path) {
  std::vector<std::string> out;
  while (path.size() > 1) {
    out.push_back(path);
    path.erase(path.rfind('/'));
  }
  out.emplace_back("/");
  return out;
}

struct MemoryFiles {
  std::vector<const char*> limits;
  const char* usage;
  const char* cache;
};

const MemoryFiles& FilesOf(int version) {
  static const MemoryFiles v1{{"/memory.limit_in_bytes"}, "/memory.usage_in_bytes", "total_inactive_file"};
  static const MemoryFiles v2{{"/memory.max", "/memory.high"}, "/memory.current", "inactive_file"};
  return version == 1 ? v1 : v2;
}

struct Level {
  std::uint64_t limit = 0;
  std::uint64_t usage = 0;
  [[nodiscard]] std::uint64_t Room() const { return limit > usage ? limit - usage : 0; }
};

std::optional<Level> ReadLevel(const std::string& dir, int version) {
  const MemoryFiles& files = FilesOf(version);
  Level out;
  out.limit = std::numeric_limits<std::uint64_t>::max();
  for (const char* name : files.limits) {
    const auto limit = ReadNumber(dir + name);
    if (limit && *limit < kV1Unlimited) out.limit = std::min(out.limit, *limit);
  }
  if (out.limit == std::numeric_limits<std::uint64_t>::max()) return std::nullopt;
  const std::uint64_t usage = ReadNumber(dir + files.usage).value_or(0);
  const std::uint64_t cache = StatValue(dir + "/memory.stat", files.cache);
  out.usage = usage > cache ? usage - cache : 0;
  return out;
}

// Processors granted at one level: v1 quota over period, v2 "quota period" in one file.
std::optional<double> QuotaAt(const std::string& dir, int version) {
  std::string quota_text;
  std::string period_text;
  if (version == 1) {
    quota_text = ReadText(dir + "/cpu.cfs_quota_us").value_or("");
    period_text = ReadText(dir + "/cpu.cfs_period_us").value_or("");
  } else {
    std::istringstream both(ReadText(dir + "/cpu.max").value_or(""));
    both >> quota_text >> period_text;
  }
  const auto quota = Number(quota_text);
  const auto period = Number(period_text);
  if (!quota || !period || *period == 0) return std::nullopt;
  return static_cast<double>(*quota) / static_cast<double>(*period);
}

}  // namespace

CgroupMemory ReadCgroupMemory(const std::string& root) {
  CgroupMemory out;
  const auto hierarchy = FindHierarchy(root, "memory");
  if (!hierarchy) return out;
  out.version = hierarchy->version;
  out.path = hierarchy->path;
  std::optional<Level> tightest;
  for (const std::string& level : Levels(hierarchy->path)) {
    const auto here = ReadLevel(hierarchy->mount + level, hierarchy->version);
    if (!here || (tightest && tightest->Room() <= here->Room())) continue;
    tightest = here;
    out.limited_at = level;
  }
  if (tightest) {
    out.limit_bytes = tightest->limit;
    out.usage_bytes = tightest->usage;
  }
  return out;
}

std::optional<double> ReadCpuQuota(const std::string& root) {
  const auto hierarchy = FindHierarchy(root, "cpu");
  if (!hierarchy) return std::nullopt;
  std::optional<double> least;
  for (const std::string& level : Levels(hierarchy->path)) {
    const auto quota = QuotaAt(hierarchy->mount + level, hierarchy->version);
    if (quota && (!least || *quota < *least)) least = quota;
  }
  return least;
}

}  // namespace bitpager::daemon
