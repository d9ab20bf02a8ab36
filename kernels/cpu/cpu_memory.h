// Memory of the CPU device: segments of device frames, host regions, imports of client memory. Owns every
// mapping it made and unmaps what is left at its end. One thread (the device thread) makes all calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "client/wire/status.h"
#include "kernels/cpu/sigbus_guard.h"
#include "kernels/device.h"

namespace bitpager::kernels::cpu {

class CpuMemory {
 public:
  CpuMemory() = default;
  ~CpuMemory();
  CpuMemory(const CpuMemory&) = delete;
  CpuMemory& operator=(const CpuMemory&) = delete;

  // Private segments (domain 0) are anonymous memory. The exported segments of one domain lie in one sparse
  // memfd, sealed against resizing, mode 0400; the fd given out is read-only.
  [[nodiscard]] wire::Result<DeviceSegment> AllocateSegment(std::uint32_t frames, std::uint64_t page_bytes,
                                                            std::uint32_t domain);
  void FreeSegment(std::uint32_t segment_id);
  [[nodiscard]] wire::Result<HostRegion> ReserveHost(std::uint64_t bytes);
  static void DecommitHost(std::byte* at, std::uint64_t bytes);
  [[nodiscard]] wire::Result<Import> ImportMemory(const ImportSource& source);
  void ReleaseImport(std::uint64_t import_id);
  [[nodiscard]] bool ImportFailed(std::uint64_t import_id) const;
  [[nodiscard]] std::uint64_t segment_bytes() const { return segment_bytes_; }

 private:
  struct Mapping {
    std::byte* base = nullptr;
    std::uint64_t bytes = 0;
  };
  struct Segment {
    Mapping mapping;
    std::uint32_t domain = 0;
  };
  // One sparse memory file, mapped whole at once; ranges of it become segments.
  struct Domain {
    Mapping mapping;
    int file = -1;                                // read-write, kept here
    int read_only = -1;                           // what clients get
    std::map<std::uint64_t, std::uint64_t> used;  // offset -> bytes, of live segments
  };
  struct Imported {
    Mapping mapping;
    GuardSlot* guard = nullptr;  // null when no access can fail
  };

  [[nodiscard]] static wire::Status OpenDomain(Domain* domain);
  static void CloseDomain(Domain& domain);
  [[nodiscard]] wire::Result<DeviceSegment> AllocateExported(std::uint32_t frames, std::uint64_t bytes,
                                                             std::uint32_t domain_id);
  // A free range by first fit; null when the file has none.
  [[nodiscard]] static std::byte* TakeRange(Domain& domain, std::uint64_t bytes);

  std::map<std::uint32_t, Segment> segments_;
  std::map<std::uint32_t, Domain> domains_;
  std::map<std::uint64_t, Imported> imports_;
  std::uint64_t segment_bytes_ = 0;   // of all segments
  std::uint64_t imported_bytes_ = 0;  // as mapped
  std::vector<Mapping> regions_;
  std::uint32_t next_segment_ = 1;
  std::uint64_t next_import_ = 1;
};

}  // namespace bitpager::kernels::cpu
