// The three streams of a device, and their events: completion of a queue is a number in a word of pinned host
// memory that the stream itself writes, so asking is one load. Loads and stores have a stream each, so that
// both directions run at once; kernels run at high priority. The device thread makes all calls but Done,
// which any thread may ask.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "client/wire/status.h"
#include "kernels/cuda/driver.h"
#include "kernels/device.h"

namespace bitpager::kernels::cuda {

// How queues tell and wait. Streams write and compare words by themselves where the device can; elsewhere
// host functions write and CUDA events order. Chosen by FindQueueOptions; tests choose.
struct QueueOptions {
  bool stream_writes = true;  // of 64-bit words
  bool stream_waits = true;   // on 64-bit words; needs stream_writes. Without them a wait for an older point
                              // is one for all that its queue holds
};

// What the current context's device can do.
[[nodiscard]] wire::Result<QueueOptions> FindQueueOptions(const Driver& driver, int ordinal);

class Queues {
 public:
  // The device must be current.
  [[nodiscard]] static wire::Result<std::unique_ptr<Queues>> Make(const Driver& driver, QueueOptions options);
  ~Queues();  // waits for all work, as far as the device still works
  Queues(const Queues&) = delete;
  Queues& operator=(const Queues&) = delete;

  [[nodiscard]] cudaStream_t stream(Queue queue) const { return lanes_[Index(queue)].stream; }
  // An event behind all that `queue` holds now.
  Event Publish(Queue queue);
  // Stores `value` into pinned or registered host memory, behind all that `queue` holds. After a fault it
  // stores nothing.
  void Store(Queue queue, std::atomic<std::uint64_t>* word, std::uint64_t value);
  void Wait(Queue queue, Event event);
  // After a fault nothing completes any more.
  [[nodiscard]] bool Done(Event event) const {
    // Partner of both: the stream's write of the word, or StoreWord; Note.
    return !faulted_.load(std::memory_order_acquire) &&
           lanes_[Index(event.queue)].word->load(std::memory_order_acquire) >= event.sequence;
  }
  // Returns when `event` is complete or the device has failed.
  void Synchronize(Event event);
  // The newest event of each queue.
  [[nodiscard]] std::array<Event, kQueues> Newest() const;

  // Keeps the first error. Ok is nothing.
  void Note(wire::Status status);
  // The first error so far, asynchronous ones included: asks the device, at most every 200 us.
  [[nodiscard]] wire::Status TakeFault();

 private:
  struct Lane {
    cudaStream_t stream = nullptr;
    cudaEvent_t order = nullptr;                 // recorded anew by each wait for the newest point
    std::atomic<std::uint64_t>* word = nullptr;  // last complete sequence
    std::uint64_t issued = 0;
  };
  struct Store64;  // a store by a host function

  Queues(const Driver& driver, QueueOptions options) : driver_(driver), options_(options) {}
  static std::size_t Index(Queue queue) { return static_cast<std::size_t>(queue); }
  [[nodiscard]] wire::Status Open();
  void AskDevice();

  const Driver& driver_;
  const QueueOptions options_;
  std::array<Lane, kQueues> lanes_;
  void* words_ = nullptr;  // pinned; a cache line for each lane
  wire::Status fault_;
  std::atomic<bool> faulted_{false};  // fault_ is set; partner: Done on other threads
  std::chrono::steady_clock::time_point asked_{};
};

}  // namespace bitpager::kernels::cuda
