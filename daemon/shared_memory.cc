#include "daemon/shared_memory.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

namespace bitpager::daemon {

wire::Result<wire::UniqueFd> MakeSealedMemory(const char* name, std::uint64_t bytes) {
  wire::UniqueFd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0 ||
      ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return wire::Status(
        wire::Code::kOutOfMemory,
        "cannot make " + std::to_string(bytes) + " bytes of shared memory: " + std::strerror(errno) + ".");
  }
  return fd;
}

wire::Result<wire::UniqueFd> MakeBell() {
  wire::UniqueFd fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd) {
    return wire::Status(wire::Code::kOutOfMemory, std::string("cannot make an eventfd: ") +
                                                      std::strerror(errno) +
                                                      ". Hint: raise the limit of open files (ulimit -n).");
  }
  return fd;
}

void Ring(int bell) {
  const std::uint64_t one = 1;
  // A full counter (EAGAIN) already reads as rung.
  [[maybe_unused]] const ssize_t written = ::write(bell, &one, sizeof(one));
}

void Quiet(int bell) {
  std::uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = ::read(bell, &count, sizeof(count));
}

}  // namespace bitpager::daemon
