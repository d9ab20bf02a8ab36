// What a file must be to stand behind an import of client memory: shared by all devices. Any thread.
#pragma once

#include <cstdint>

#include "client/wire/status.h"
#include "kernels/device.h"

namespace bitpager::kernels {

struct ClientFile {
  std::uint64_t map_bytes = 0;      // length to map: whole pages of the file's system
  std::uint64_t present_bytes = 0;  // memory that it already takes
  bool guarded = false;  // touching it may raise SIGBUS: it can shrink, or its huge pages can run out
                         // although its size is sealed
};

// Checks a source of MemoryKind::kFile. kInvalidArgument: no memory file, no bytes, not sealed as announced;
// kOutOfRange: shorter than announced; kUnsupported: another kind of memory.
[[nodiscard]] wire::Result<ClientFile> CheckClientFile(const ImportSource& source);

}  // namespace bitpager::kernels
