#include "daemon/buffer.h"

#include <sys/mman.h>

#include <algorithm>

namespace bitpager::daemon {

bool Buffer::EmptySome() {
  constexpr std::uint64_t kPieceBytes = 32U << 20;
  const std::uint64_t piece = std::min(kPieceBytes, import_.bytes - emptied_bytes_);
  // A refusal leaves the memory to the file's last user.
  if (piece == 0 || ::madvise(import_.base + emptied_bytes_, piece, MADV_REMOVE) != 0) return false;
  emptied_bytes_ += piece;
  return emptied_bytes_ < import_.bytes;
}

}  // namespace bitpager::daemon
