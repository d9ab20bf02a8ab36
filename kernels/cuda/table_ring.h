// Device memory for the tables of launches (spans, hypers): a ring, filled by one copy from a pinned twin,
// and reused only behind the launch that read it. A large table is copied beside the launches before, on a
// stream of its own: its kernel is small enough to find room on a device that a step fills. Grows when a
// table does not fit; where the device has no memory for that, waits for the launches before. The device
// thread.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "client/wire/status.h"
#include "kernels/cuda/queues.h"

namespace bitpager::kernels::cuda {

class TableRing {
 public:
  explicit TableRing(Queues& queues) : queues_(queues) {}
  ~TableRing();  // the compute queue must be idle
  TableRing(const TableRing&) = delete;
  TableRing& operator=(const TableRing&) = delete;

  // Makes the first ring, which Put does otherwise, and what large tables are copied by beside launches;
  // without it they are copied behind those.
  [[nodiscard]] wire::Status Prepare();
  // Copies `host` to device memory before what the compute stream is given next. kOutOfMemory: it would not
  // fit an empty ring, and there is no memory for a larger one.
  [[nodiscard]] wire::Result<const void*> Put(const void* host, std::size_t bytes, std::size_t align);
  // What was put since the last call is free once `event` is complete.
  void Seal(Event event);
  [[nodiscard]] std::size_t bytes() const { return ring_.bytes; }

 private:
  struct Ring {
    std::byte* host = nullptr;  // pinned
    std::byte* device = nullptr;
    std::size_t bytes = 0;
  };
  // [.., end) of the ring is free once `event` is complete.
  struct Mark {
    std::size_t end;
    Event event;
  };

  [[nodiscard]] wire::Status Grow(std::size_t least);
  // Makes room for `bytes` by growing or by waiting.
  [[nodiscard]] wire::Status MakeRoom(std::size_t bytes);
  [[nodiscard]] wire::Status Copy(std::size_t at, std::size_t bytes);
  // Where `bytes` fit now; the ring's size when nowhere.
  [[nodiscard]] std::size_t Place(std::size_t bytes, std::size_t align) const;
  void Reclaim();
  static void Free(const Ring& ring);

  Queues& queues_;
  cudaStream_t beside_ = nullptr;  // for large tables while launches run
  cudaEvent_t copied_ = nullptr;
  Ring ring_;
  std::size_t head_ = 0;  // next byte to give
  std::size_t tail_ = 0;  // first byte in use; head_ when none is
  bool open_ = false;     // something was put since the last Seal
  std::deque<Mark> marks_;
  std::vector<Ring> retired_;  // outgrown; each is at most half of the next, so all are less than ring_
};

}  // namespace bitpager::kernels::cuda
