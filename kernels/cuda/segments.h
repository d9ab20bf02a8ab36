// Device frames: segments of the device's memory, physical handles mapped into reserved addresses, so that a
// freed segment gives its memory back at once and its addresses serve the next. Segments of a share domain
// are exported by fd. With `managed`, segments are managed memory that prefers the device. The device thread.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <map>

#include "client/wire/status.h"
#include "client/wire/unique_fd.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/queues.h"
#include "kernels/device.h"

namespace bitpager::kernels::cuda {

class Segments {
 public:
  struct Options {
    int ordinal = 0;
    bool managed = false;
    bool beyond_free = false;                       // managed: more than the device has free
    std::uint64_t total_bytes = ~std::uint64_t{0};  // of the device: more is refused without asking it
  };
  Segments(const Driver& driver, Queues& queues, Options options)
      : driver_(driver), queues_(queues), options_(options) {}
  ~Segments();  // no queued work may use a segment
  Segments(const Segments&) = delete;
  Segments& operator=(const Segments&) = delete;

  [[nodiscard]] wire::Result<DeviceSegment> Allocate(std::uint32_t frames, std::uint64_t page_bytes,
                                                     std::uint32_t domain);
  void Free(std::uint32_t id);
  // How many of the `bytes` from `at` one copy may take. Managed segments can lie side by side, and the
  // driver refuses a copy over two of them; ranges that were mapped here are one to it.
  [[nodiscard]] std::uint64_t InOneCopy(const std::byte* at, std::uint64_t bytes) const;
  [[nodiscard]] std::uint64_t mapped_bytes() const { return mapped_bytes_; }

 private:
  struct Segment {
    CUdeviceptr at = 0;
    std::uint64_t bytes = 0;  // as mapped
    CUmemGenericAllocationHandle handle = 0;
    wire::UniqueFd fd;
  };

  [[nodiscard]] wire::Status Map(Segment* segment, bool exported);
  [[nodiscard]] wire::Status Reserve(Segment* segment);
  [[nodiscard]] wire::Status AllocateManaged(Segment* segment);
  void Unmap(Segment& segment);
  [[nodiscard]] wire::Status NoRoom(std::uint64_t bytes) const;

  const Driver& driver_;
  Queues& queues_;
  const Options options_;
  std::map<std::uint32_t, Segment> segments_;
  std::map<const std::byte*, std::uint64_t> managed_;    // bytes of each managed segment, by its start
  std::multimap<std::uint64_t, CUdeviceptr> addresses_;  // reserved ranges in no use, by size
  std::uint64_t mapped_bytes_ = 0;                       // of all segments
  std::uint32_t next_ = 1;
};

}  // namespace bitpager::kernels::cuda
