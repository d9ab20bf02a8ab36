#include "kernels/cuda/queues.h"

#include <sched.h>
#include <unistd.h>

#include <cstdlib>
#include <new>
#include <utility>

#include "kernels/cuda/status.h"

namespace bitpager::kernels::cuda {
namespace {

using wire::Code;
using wire::Status;

constexpr std::size_t kLineBytes = 128;
constexpr std::chrono::microseconds kAskEvery{200};
// Spinning costs a processor, sleeping some 60 us of wake-up.
constexpr std::chrono::microseconds kSpin{200};
constexpr unsigned kSleepUs = 20;

CUdeviceptr AddressOf(const void* at) {
  return reinterpret_cast<CUdeviceptr>(at);
}

}  // namespace

// One pending store by a host function; freed by it.
struct Queues::Store64 {
  std::atomic<std::uint64_t>* word;
  std::uint64_t value;

  static void CUDART_CB Run(void* data) {
    const std::unique_ptr<Store64> store(static_cast<Store64*>(data));
    store->word->store(store->value, std::memory_order_release);  // partners: Done, the client's wait
  }
};

wire::Result<QueueOptions> FindQueueOptions(const Driver& driver, int ordinal) {
  int can = 0;
  const CUresult asked =
      driver.DeviceGetAttribute(&can, CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS, ordinal);
  if (asked != CUDA_SUCCESS) return StatusOf(asked, "ask for stream memory operations");
  return QueueOptions{can != 0, can != 0};
}

wire::Result<std::unique_ptr<Queues>> Queues::Make(const Driver& driver, QueueOptions options) {
  std::unique_ptr<Queues> queues(new Queues(driver, options));
  if (Status s = queues->Open(); !s.ok()) return s;
  return queues;
}

Status Queues::Open() {
  const cudaError_t made =
      cudaHostAlloc(&words_, kLineBytes * kQueues, cudaHostAllocMapped | cudaHostAllocPortable);
  if (made != cudaSuccess) return StatusOf(made, "pin the words of the queues");
  for (int q = 0; q < kQueues; ++q) {
    lanes_[q].word = new (static_cast<std::byte*>(words_) + kLineBytes * static_cast<std::size_t>(q))
        std::atomic<std::uint64_t>(0);
  }
  int least = 0;
  int greatest = 0;
  if (Status s = StatusOf(cudaDeviceGetStreamPriorityRange(&least, &greatest), "ask for priorities"); !s.ok())
    return s;
  for (int q = 0; q < kQueues; ++q) {
    const int priority = static_cast<Queue>(q) == Queue::kCompute ? greatest : least;
    Status s = StatusOf(cudaStreamCreateWithPriority(&lanes_[q].stream, cudaStreamNonBlocking, priority),
                        "create a stream");
    if (!s.ok()) return s;
    s = StatusOf(cudaEventCreateWithFlags(&lanes_[q].order, cudaEventDisableTiming), "create an event");
    if (!s.ok()) return s;
  }
  return {};
}

Queues::~Queues() {
  for (const Lane& lane : lanes_) {
    if (lane.stream != nullptr) static_cast<void>(cudaStreamSynchronize(lane.stream));
  }
  for (const Lane& lane : lanes_) {
    if (lane.order != nullptr) static_cast<void>(cudaEventDestroy(lane.order));
    if (lane.stream != nullptr) static_cast<void>(cudaStreamDestroy(lane.stream));
  }
  if (words_ != nullptr) static_cast<void>(cudaFreeHost(words_));
}

void Queues::Store(Queue queue, std::atomic<std::uint64_t>* word, std::uint64_t value) {
  // What was refused before this never ran, so nobody may be told that it is done.
  if (faulted_.load(std::memory_order_relaxed)) return;  // set on this thread
  if (options_.stream_writes) {
    // By default the write is behind a barrier for the whole system: whoever sees it sees the work before.
    Note(StatusOf(
        driver_.StreamWriteValue64(stream(queue), AddressOf(word), value, CU_STREAM_WRITE_VALUE_DEFAULT),
        "write a word behind a queue"));
    return;
  }
  auto store = std::make_unique<Store64>(Store64{word, value});
  const cudaError_t pushed = cudaLaunchHostFunc(stream(queue), &Store64::Run, store.get());
  if (pushed == cudaSuccess) static_cast<void>(store.release());
  Note(StatusOf(pushed, "write a word behind a queue"));
}

Event Queues::Publish(Queue queue) {
  Lane& lane = lanes_[Index(queue)];
  Store(queue, lane.word, ++lane.issued);
  return {queue, lane.issued};
}

void Queues::Wait(Queue queue, Event event) {
  const Lane& other = lanes_[Index(event.queue)];
  // Only what was enqueued before can be waited for: so no cycle of waits exists.
  if (event.sequence > other.issued) std::abort();
  if (queue == event.queue || Done(event)) return;
  // What was published since is never seen to be done, so that a queue would wait for ever.
  if (faulted_.load(std::memory_order_relaxed)) return;  // set on this thread
  // An event is the cheaper one (3.9 us a crossing on an H200 against 5.1), but is behind all that the other
  // queue holds by now. So it serves for the newest point only; a wait for an older one compares the word.
  if (options_.stream_waits && event.sequence != other.issued) {
    Note(StatusOf(driver_.StreamWaitValue64(stream(queue), AddressOf(other.word), event.sequence,
                                            CU_STREAM_WAIT_VALUE_GEQ),
                  "let a queue wait"));
    return;
  }
  Note(StatusOf(cudaEventRecord(other.order, other.stream), "record an event"));
  Note(StatusOf(cudaStreamWaitEvent(stream(queue), other.order, 0), "let a queue wait"));
}

void Queues::Synchronize(Event event) {
  const auto start = std::chrono::steady_clock::now();
  while (!Done(event)) {
    if (faulted_.load(std::memory_order_relaxed)) {  // set on this thread
      static_cast<void>(cudaStreamSynchronize(stream(event.queue)));
      return;
    }
    if (std::chrono::steady_clock::now() - start < kSpin) {
      sched_yield();
      continue;
    }
    AskDevice();
    usleep(kSleepUs);
  }
}

std::array<Event, kQueues> Queues::Newest() const {
  std::array<Event, kQueues> out;
  for (int q = 0; q < kQueues; ++q) out[q] = {static_cast<Queue>(q), lanes_[q].issued};
  return out;
}

void Queues::Note(Status status) {
  if (status.ok() || !fault_.ok()) return;
  fault_ = Status(Code::kDeviceFault, status.message());
  faulted_.store(true, std::memory_order_release);  // partner: Done
}

// A kernel that fails never writes its word, so work that stays open is what to ask about.
void Queues::AskDevice() {
  const auto now = std::chrono::steady_clock::now();
  if (faulted_.load(std::memory_order_relaxed) || now - asked_ < kAskEvery) return;
  asked_ = now;
  for (int q = 0; q < kQueues; ++q) {
    if (Done({static_cast<Queue>(q), lanes_[q].issued})) continue;
    const cudaError_t state = cudaStreamQuery(lanes_[q].stream);
    if (state != cudaErrorNotReady) Note(StatusOf(state, "finish what was enqueued"));
  }
}

Status Queues::TakeFault() {
  AskDevice();
  return fault_;
}

}  // namespace bitpager::kernels::cuda
