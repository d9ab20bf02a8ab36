#include "daemon/pidfd.h"

#include <fcntl.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>

namespace bitpager::daemon {

bool IsPidfd(int fd) {
  std::ifstream info("/proc/self/fdinfo/" + std::to_string(fd));
  std::string line;
  while (std::getline(info, line)) {
    if (line.rfind("Pid:", 0) == 0) return true;
  }
  return false;
}

wire::Result<wire::UniqueFd> ReopenReadOnly(int fd) {
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  wire::UniqueFd opened(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!opened) {
    return wire::Status(wire::Code::kUnsupported, std::string("cannot open shared frames for reading: ") +
                                                      std::strerror(errno) + ". Hint: is /proc mounted?");
  }
  return opened;
}

}  // namespace bitpager::daemon
