#include "kernels/cuda/segments.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

#include "kernels/cuda/status.h"

namespace bitpager::kernels::cuda {
namespace {

using wire::Code;
using wire::Status;

CUmemLocation LocationOf(int ordinal) {
  CUmemLocation out{};
  out.type = CU_MEM_LOCATION_TYPE_DEVICE;
  out.id = ordinal;
  return out;
}

CUmemAllocationProp PropertiesOf(int ordinal, bool exported) {
  CUmemAllocationProp out{};
  out.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  out.location = LocationOf(ordinal);
  if (exported) out.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  return out;
}

}  // namespace

Segments::~Segments() {
  while (!segments_.empty()) Free(segments_.begin()->first);
  for (const auto& [bytes, at] : addresses_) static_cast<void>(driver_.MemAddressFree(at, bytes));
}

Status Segments::NoRoom(std::uint64_t bytes) const {
  std::size_t free = 0;
  std::size_t total = 0;
  static_cast<void>(cudaMemGetInfo(&free, &total));
  return {Code::kOutOfMemory, "no room on the device for " + std::to_string(bytes) + " bytes of frames: " +
                                  std::to_string(free) + " of its " + std::to_string(total) + " are free"};
}

Status Segments::Reserve(Segment* segment) {
  const auto kept = addresses_.find(segment->bytes);
  if (kept != addresses_.end()) {
    segment->at = kept->second;
    addresses_.erase(kept);
    return {};
  }
  return StatusOf(driver_.MemAddressReserve(&segment->at, segment->bytes, 0, 0, 0),
                  "reserve addresses for " + std::to_string(segment->bytes) + " bytes of frames");
}

Status Segments::Map(Segment* segment, bool exported) {
  const CUmemAllocationProp properties = PropertiesOf(options_.ordinal, exported);
  const CUresult made = driver_.MemCreate(&segment->handle, segment->bytes, &properties, 0);
  if (made == CUDA_ERROR_OUT_OF_MEMORY) return NoRoom(segment->bytes);
  if (made != CUDA_SUCCESS)
    return StatusOf(made, "allocate " + std::to_string(segment->bytes) + " bytes of frames");
  if (Status s = Reserve(segment); !s.ok()) return s;
  Status s = StatusOf(driver_.MemMap(segment->at, segment->bytes, 0, segment->handle, 0), "map frames");
  if (!s.ok()) return s;
  CUmemAccessDesc access{};
  access.location = LocationOf(options_.ordinal);
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  s = StatusOf(driver_.MemSetAccess(segment->at, segment->bytes, &access, 1), "open frames to the device");
  if (!s.ok() || !exported) return s;
  int fd = -1;
  s = StatusOf(
      driver_.MemExportToShareableHandle(&fd, segment->handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
      "export frames");
  segment->fd.Reset(fd);
  return s;
}

// Populated here and now, so that the next question for free memory counts it.
Status Segments::AllocateManaged(Segment* segment) {
  std::size_t free = 0;
  std::size_t total = 0;
  if (Status s = StatusOf(cudaMemGetInfo(&free, &total), "ask for free memory"); !s.ok()) return s;
  if (segment->bytes > free && !options_.beyond_free) return NoRoom(segment->bytes);
  void* at = nullptr;
  const cudaError_t made = cudaMallocManaged(&at, segment->bytes, cudaMemAttachGlobal);
  if (made != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return NoRoom(segment->bytes);
  }
  segment->at = reinterpret_cast<CUdeviceptr>(at);
  const CUmemLocation here = LocationOf(options_.ordinal);
  for (const CUmem_advise advice : {CU_MEM_ADVISE_SET_PREFERRED_LOCATION, CU_MEM_ADVISE_SET_ACCESSED_BY}) {
    Status s = StatusOf(driver_.MemAdvise(segment->at, segment->bytes, advice, here), "place managed frames");
    if (!s.ok()) return s;
  }
  if (segment->bytes > free) return {};  // it is to be moved by need
  const cudaStream_t stream = queues_.stream(Queue::kLoad);
  Status s = StatusOf(driver_.MemPrefetchAsync(segment->at, segment->bytes, here, 0, stream),
                      "bring managed frames to the device");
  if (!s.ok()) return s;
  return StatusOf(cudaStreamSynchronize(stream), "bring managed frames to the device");
}

void Segments::Unmap(Segment& segment) {
  if (options_.managed) {
    if (segment.at != 0) static_cast<void>(cudaFree(reinterpret_cast<void*>(segment.at)));
    return;
  }
  if (segment.at != 0) {
    // An unmapped range that was never mapped says so; there is nothing to undo then.
    static_cast<void>(driver_.MemUnmap(segment.at, segment.bytes));
    addresses_.emplace(segment.bytes, segment.at);
  }
  if (segment.handle != 0) static_cast<void>(driver_.MemRelease(segment.handle));
}

wire::Result<DeviceSegment> Segments::Allocate(std::uint32_t frames, std::uint64_t page_bytes,
                                               std::uint32_t domain) {
  std::uint64_t bytes = 0;
  if (frames == 0 || page_bytes == 0 || page_bytes % 4096 != 0 ||
      __builtin_mul_overflow(std::uint64_t{frames}, page_bytes, &bytes)) {
    return Status(Code::kInvalidArgument, "a segment of " + std::to_string(frames) + " frames of " +
                                              std::to_string(page_bytes) +
                                              " bytes: frames are multiples of 4096 bytes, at least one");
  }
  if (bytes > options_.total_bytes && !options_.managed) return NoRoom(bytes);
  const bool exported = domain != 0 && !options_.managed;
  const CUmemAllocationProp properties = PropertiesOf(options_.ordinal, exported);
  std::size_t piece = 0;
  Status s =
      StatusOf(driver_.MemGetAllocationGranularity(&piece, &properties, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
               "ask for the granularity of frames");
  if (!s.ok()) return s;
  Segment segment;
  if (bytes > ~std::uint64_t{0} - piece) return NoRoom(bytes);
  segment.bytes = (bytes + piece - 1) / piece * piece;
  s = options_.managed ? AllocateManaged(&segment) : Map(&segment, exported);
  if (!s.ok()) {
    Unmap(segment);
    return s;
  }
  const std::uint32_t id = next_++;
  mapped_bytes_ += segment.bytes;
  const DeviceSegment out{id, reinterpret_cast<std::byte*>(segment.at), frames, segment.fd.get(), 0};
  if (options_.managed) managed_.emplace(out.base, segment.bytes);
  segments_.emplace(id, std::move(segment));
  return out;
}

std::uint64_t Segments::InOneCopy(const std::byte* at, std::uint64_t bytes) const {
  auto after = managed_.upper_bound(at);
  if (after != managed_.begin()) {
    const auto& [start, length] = *std::prev(after);
    if (at < start + length) return std::min<std::uint64_t>(bytes, start + length - at);
  }
  // Outside of all; a range that runs into one ends where that begins.
  return after == managed_.end() ? bytes : std::min<std::uint64_t>(bytes, after->first - at);
}

void Segments::Free(std::uint32_t id) {
  const auto found = segments_.find(id);
  if (found == segments_.end()) return;
  managed_.erase(reinterpret_cast<const std::byte*>(found->second.at));
  Unmap(found->second);
  mapped_bytes_ -= found->second.bytes;
  segments_.erase(found);
}

}  // namespace bitpager::kernels::cuda
