// What the allocator guard meets of PyTorch's CUDA libraries and of the driver, for a machine without a GPU:
// the registry of free-memory callbacks, an allocator that runs them as PyTorch's does, and the device's
// memory as the test says.
#include <c10/util/Registry.h>

#include <atomic>
#include <cstdint>

namespace c10 {
class FreeMemoryCallback {
 public:
  virtual ~FreeMemoryCallback() = default;
  virtual bool Execute() = 0;
};
C10_DECLARE_REGISTRY(FreeCudaMemoryCallbacksRegistry, FreeMemoryCallback);
C10_DEFINE_REGISTRY(FreeCudaMemoryCallbacksRegistry, FreeMemoryCallback)
}  // namespace c10

namespace {
std::atomic<std::uint64_t> free_bytes{0};
std::atomic<std::uint64_t> total_bytes{0};
std::atomic<std::uint64_t> evictable_bytes{0};
std::atomic<int> device{0};
std::atomic<int> requests{0};
std::atomic<std::uint64_t> last_wanted{0};
std::atomic<int> room_code{-1};  // -1: as the memory allows
std::atomic<bool> in_room{false};
std::atomic<bool> hold{false};
std::atomic<std::uint64_t> made{0};
bool allocate_inside = false;

bool RunCallbacks() {
  bool freed = false;
  for (const auto& name : c10::FreeCudaMemoryCallbacksRegistry()->Keys()) {
    freed |= c10::FreeCudaMemoryCallbacksRegistry()->Create(name)->Execute();
  }
  return freed;
}
}  // namespace

extern "C" {
int cuCtxGetDevice(int* out) {
  *out = device;
  return device < 0 ? 201 : 0;
}
int cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
  *free = free_bytes;
  *total = total_bytes;
  return device < 0 ? 201 : 0;
}

// bp_make_room of a daemon whose pages take `evictable` bytes.
int fake_make_room(void*, std::uint64_t bytes, std::uint64_t, std::uint64_t* now_free) {
  ++requests;
  last_wanted = bytes;
  in_room = true;
  while (hold) {
  }
  in_room = false;
  if (allocate_inside) RunCallbacks();
  const std::uint64_t lacking = bytes > free_bytes ? bytes - free_bytes : 0;
  const std::uint64_t leaves = lacking < evictable_bytes ? lacking : evictable_bytes.load();
  evictable_bytes -= leaves;
  free_bytes += leaves;
  *now_free = free_bytes;
  if (room_code >= 0) return room_code;
  return free_bytes >= bytes ? 0 : 21;
}

// bp_request_count of a session that made so many.
int fake_request_count(void*, std::uint64_t* count) {
  *count = made;
  return 0;
}
void fake_make_request() {
  ++made;
}

// cudaMalloc behind the callbacks: 0, or 2 when there is no room even so. 7: a callback said that the cache
// grew.
int fake_segment(std::uint64_t bytes) {
  if (RunCallbacks()) return 7;
  if (bytes > free_bytes) return 2;
  free_bytes -= bytes;
  return 0;
}

void fake_memory(std::uint64_t free, std::uint64_t total, std::uint64_t evictable) {
  free_bytes = free;
  total_bytes = total;
  evictable_bytes = evictable;
}
void fake_device(int ordinal) {
  device = ordinal;
}
void fake_code(int code) {
  room_code = code;
}
void fake_nested(int on) {
  allocate_inside = on != 0;
}
void fake_hold(int on) {
  hold = on != 0;
}
int fake_in_room() {
  return in_room ? 1 : 0;
}
int fake_requests() {
  return requests.exchange(0);
}
std::uint64_t fake_wanted() {
  return last_wanted;
}
std::uint64_t fake_free() {
  return free_bytes;
}
}
