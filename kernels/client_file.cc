#include "kernels/client_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <string>

namespace bitpager::kernels {

using wire::Code;
using wire::Status;

wire::Result<ClientFile> CheckClientFile(const ImportSource& source) {
  if (source.kind != MemoryKind::kFile) {
    return Status(Code::kUnsupported, "import: this is no file, and only memory of files is reached here");
  }
  struct stat file {};
  struct statfs system {};
  if (source.fd < 0 || fstat(source.fd, &file) != 0 || fstatfs(source.fd, &system) != 0) {
    return Status(Code::kInvalidArgument, "import: fd " + std::to_string(source.fd) + " is not an open file");
  }
  const bool in_memory = system.f_type == TMPFS_MAGIC || system.f_type == HUGETLBFS_MAGIC;
  if (!S_ISREG(file.st_mode) || !in_memory) {
    return Status(Code::kInvalidArgument,
                  "import: the fd is not a memory file: pass a memfd, a shm_open object or a file on tmpfs");
  }
  if (source.bytes == 0) return Status(Code::kInvalidArgument, "import: zero bytes");
  if (static_cast<std::uint64_t>(file.st_size) < source.bytes) {
    return Status(Code::kOutOfRange, "import: the file holds " + std::to_string(file.st_size) + " bytes, " +
                                         std::to_string(source.bytes) + " were announced");
  }
  if (source.sealed) {
    const int seals = fcntl(source.fd, F_GET_SEALS);
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
      return Status(
          Code::kInvalidArgument,
          "import: announced as sealed, but F_SEAL_SHRINK is not set: seal it or announce it unsealed");
    }
  }
  const auto block = static_cast<std::uint64_t>(system.f_bsize);
  return ClientFile{(source.bytes + block - 1) / block * block,
                    static_cast<std::uint64_t>(file.st_blocks) * 512,
                    !source.sealed || system.f_type == HUGETLBFS_MAGIC};
}

}  // namespace bitpager::kernels
