#include "daemon/user_namespace.h"

#include <fstream>
#include <sstream>

namespace bitpager::daemon {
namespace {

constexpr std::uint32_t kUsualOverflow = 65534;
constexpr std::uint64_t kAllUids = 0xFFFFFFFFULL;  // 2^32 - 1: the last value is no uid

std::string ReadAll(const char* path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

std::optional<std::uint32_t> AmbiguousUid(const std::string& uid_map, const std::string& overflow) {
  std::uint64_t mapped = 0;
  std::istringstream lines(uid_map);
  for (std::uint64_t inside = 0, outside = 0, count = 0; lines >> inside >> outside >> count;)
    mapped += count;
  // Kernels without user namespaces have no map.
  if (uid_map.empty() || mapped >= kAllUids) return std::nullopt;
  std::uint32_t uid = kUsualOverflow;
  std::istringstream(overflow) >> uid;
  return uid;
}

std::optional<std::uint32_t> AmbiguousUid() {
  return AmbiguousUid(ReadAll("/proc/self/uid_map"), ReadAll("/proc/sys/kernel/overflowuid"));
}

}  // namespace bitpager::daemon
