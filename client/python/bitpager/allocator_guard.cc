// Has bitpagerd make room before PyTorch's allocator takes more of a GPU's memory. The allocator runs its
// free-memory callbacks each time its cache has no block that fits, before it asks CUDA for a segment; it
// does not say how large. So the callback keeps a reserve free: it looks at the device's free memory, and
// when that falls under the reserve it asks the daemon, for twice as much each time that it must ask again
// soon.
//
// bitpager/allocator.py compiles this file for the installed PyTorch, whose header Registry.h is all that it
// needs; every function of others comes in as a pointer. Threads: the callback runs in whichever thread
// allocates, with the allocator's lock held and with or without Python's; it never waits for either. Nothing
// throws.
#include <c10/util/Registry.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#define BP_GUARD_API extern "C" __attribute__((visibility("default")))

// As c10/cuda/CUDACachingAllocator.h declares them; that header itself would need CUDA's.
namespace c10 {
class FreeMemoryCallback {
 public:
  virtual ~FreeMemoryCallback() = default;
  virtual bool Execute() = 0;
};
}  // namespace c10

namespace {

using Callbacks = c10::Registry<std::string, std::unique_ptr<c10::FreeMemoryCallback>>;
using RegistryOf = Callbacks* (*)();
using MakeRoom = int (*)(void* session, std::uint64_t bytes, std::uint64_t limit_ms,
                         std::uint64_t* free_bytes);
using RequestCount = int (*)(void* session, std::uint64_t* count);
using CurrentDevice = int (*)(int*);                     // cuCtxGetDevice
using MemoryInfo = int (*)(std::size_t*, std::size_t*);  // cuMemGetInfo

constexpr int kDevices = 64;
constexpr const char* kName = "bitpager_make_room";
// Of bp_code.
constexpr int kOk = 0;
constexpr int kPending = 2;
constexpr int kBudgetExceeded = 21;

std::uint64_t NowMs() {
  using namespace std::chrono;
  return static_cast<std::uint64_t>(
      duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count());
}

}  // namespace

extern "C" {

struct bp_guard_options {
  std::uint64_t
      reserve_bytes;       // to be free before a segment is taken; 0: a 32nd of the device, 512 MiB to 4 GiB
  std::uint32_t limit_ms;  // of one request for room
  std::uint32_t rest_ms;   // a request that comes so much later starts from the reserve again
  std::uint32_t pause_ms;  // nothing is asked so long after all pages have left, or after an error, while no
                           // session makes a request: a step brings pages back, and lends gradients
  std::uint32_t reserved;
};

struct bp_guard_counts {
  std::uint64_t looks;     // segments that the allocator was about to take
  std::uint64_t requests;  // for room
  std::uint64_t refused;   // of them: no more could leave, or not in time
  std::uint64_t failed;    // of them: the session had an error
  std::uint64_t waited_ms;
  std::uint64_t largest_bytes;  // asked for
};

}  // extern "C"

namespace {

// One GPU. Its mutex is held for the length of a request, so that a session can be taken away safely; who
// finds it taken does without.
class Device {
 public:
  void Attach(void* session, MakeRoom make_room, RequestCount request_count,
              const bp_guard_options& options) {
    const std::lock_guard<std::mutex> lock(mutex_);
    // A session without a wish leaves the reserve that another one asked for.
    const std::uint64_t kept = sessions_.empty() ? 0 : options_.reserve_bytes;
    options_ = options;
    if (options_.reserve_bytes == 0) options_.reserve_bytes = kept;
    if (sessions_.empty()) expected_ = 0;
    last_request_ms_ = quiet_until_ms_ = 0;  // this one's pages have not been asked for
    sessions_.push_back({session, make_room, request_count});
    attached_ = true;
  }

  void Detach(const void* session) {
    const std::lock_guard<std::mutex> lock(mutex_);
    sessions_.erase(std::remove_if(sessions_.begin(), sessions_.end(),
                                   [&](const Session& each) { return each.handle == session; }),
                    sessions_.end());
    attached_ = !sessions_.empty();
  }

  // At least `bytes` are wanted from now on: what an allocation that failed would have needed.
  void Expect(std::uint64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    expected_ = std::max(expected_, bytes);
  }

  bp_guard_counts Counts() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return counts_;
  }

  bool attached() {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    return lock.owns_lock() && attached_;
  }

  // free_bytes, total_bytes: of the device; total 0: not known.
  void Look(std::uint64_t free_bytes, std::uint64_t total_bytes) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock() || sessions_.empty()) return;
    ++counts_.looks;
    const std::uint64_t now = NowMs();
    const std::uint64_t reserve = std::max(Reserve(total_bytes), std::min(expected_, total_bytes / 2));
    if (last_request_ms_ == 0 || now - last_request_ms_ > options_.rest_ms) wanted_ = reserve;
    // A quarter of slack, so that one small segment more is not one request more.
    if (total_bytes != 0 && free_bytes >= reserve - reserve / 4) return;
    // Only now: a session that another thread waits in would keep this one too.
    if (now < quiet_until_ms_ && Requests() == quiet_at_) return;
    Request(std::max(wanted_, reserve), total_bytes, now);
  }

 private:
  struct Session {
    void* handle;
    MakeRoom make_room;
    RequestCount request_count;
  };

  // Of all sessions; one that cannot tell counts none.
  std::uint64_t Requests() const {
    std::uint64_t sum = 0;
    for (const Session& session : sessions_) {
      std::uint64_t made = 0;
      if (session.request_count(session.handle, &made) == kOk) sum += made;
    }
    return sum;
  }

  std::uint64_t Reserve(std::uint64_t total_bytes) const {
    if (options_.reserve_bytes != 0) return options_.reserve_bytes;
    constexpr std::uint64_t kLeast = 512ULL << 20;
    constexpr std::uint64_t kMost = 4ULL << 30;
    return std::min(std::max(total_bytes / 32, kLeast), kMost);
  }

  void Request(std::uint64_t wanted, std::uint64_t total_bytes, std::uint64_t now) {
    int code = kBudgetExceeded;
    for (const Session& session : sessions_) {
      std::uint64_t free_now = 0;
      ++counts_.requests;
      code = session.make_room(session.handle, wanted, options_.limit_ms, &free_now);
      if (code == kOk) break;
      ++(code == kBudgetExceeded || code == kPending ? counts_.refused : counts_.failed);
    }
    const std::uint64_t after = NowMs();
    counts_.waited_ms += after - now;
    counts_.largest_bytes = std::max(counts_.largest_bytes, wanted);
    last_request_ms_ = after;
    if (code == kOk) {
      wanted_ = std::min(2 * wanted, std::max(total_bytes / 4, wanted));
    } else if (code != kPending) {
      quiet_until_ms_ = after + options_.pause_ms;
      quiet_at_ = Requests();
    }
  }

  std::mutex mutex_;  // guards all below
  std::vector<Session> sessions_;
  bp_guard_options options_{};
  bp_guard_counts counts_{};
  bool attached_ = false;
  std::uint64_t wanted_ = 0;
  std::uint64_t expected_ = 0;
  std::uint64_t last_request_ms_ = 0;
  std::uint64_t quiet_until_ms_ = 0;
  std::uint64_t quiet_at_ = 0;  // Requests() then
};

struct State {
  CurrentDevice current_device = nullptr;
  MemoryInfo memory_info = nullptr;
  Device devices[kDevices];
};

// Leaked: threads may allocate after static destructors.
State& TheState() {
  static State* const state = new State;
  return *state;
}

// Of the calling thread. Without a context of its own: the only guarded one, or -1.
int DeviceOf(State& state) {
  int ordinal = -1;
  if (state.current_device(&ordinal) == 0) return ordinal;
  int only = -1;
  for (int i = 0; i < kDevices; ++i) {
    if (!state.devices[i].attached()) continue;
    if (only >= 0) return -1;
    only = i;
  }
  return only;
}

class MakeRoomCallback final : public c10::FreeMemoryCallback {
 public:
  // False: nothing came into the allocator's own cache.
  bool Execute() override {
    static thread_local bool inside = false;
    if (inside) return false;
    inside = true;
    State& state = TheState();
    const int ordinal = DeviceOf(state);
    if (ordinal >= 0 && ordinal < kDevices) {
      std::size_t free_bytes = 0;
      std::size_t total_bytes = 0;
      if (state.memory_info(&free_bytes, &total_bytes) != 0) free_bytes = total_bytes = 0;
      state.devices[ordinal].Look(free_bytes, total_bytes);
    }
    inside = false;
    return false;
  }
};

Device* DeviceAt(int ordinal) {
  return ordinal < 0 || ordinal >= kDevices ? nullptr : &TheState().devices[ordinal];
}

}  // namespace

BP_GUARD_API std::uint32_t bp_guard_abi_version() {
  return 2;
}

// registry: c10::FreeCudaMemoryCallbacksRegistry. To be called once, before anything is attached. 0; 1:
// another copy of this library registered before.
BP_GUARD_API int bp_guard_install(void* registry, void* current_device, void* memory_info) {
  RegistryOf registry_of = nullptr;
  std::memcpy(&registry_of, &registry, sizeof(registry));
  State& state = TheState();
  std::memcpy(&state.current_device, &current_device, sizeof(current_device));
  std::memcpy(&state.memory_info, &memory_info, sizeof(memory_info));
  Callbacks* const callbacks = registry_of();
  if (callbacks->Has(kName)) return 1;  // registering a name twice ends the process
  callbacks->Register(kName, [] { return std::unique_ptr<c10::FreeMemoryCallback>(new MakeRoomCallback); });
  return 0;
}

// make_room: bp_make_room; request_count: bp_request_count. ordinal: of the driver. 0; 1: no such device.
BP_GUARD_API int bp_guard_attach(int ordinal, void* session, void* make_room, void* request_count,
                                 const bp_guard_options* options) {
  Device* const device = DeviceAt(ordinal);
  if (device == nullptr) return 1;
  MakeRoom call = nullptr;
  std::memcpy(&call, &make_room, sizeof(make_room));
  RequestCount count = nullptr;
  std::memcpy(&count, &request_count, sizeof(request_count));
  device->Attach(session, call, count, *options);
  return 0;
}

// Waits for a request under way. Afterwards the session is not used any more.
BP_GUARD_API void bp_guard_detach(int ordinal, void* session) {
  if (Device* const device = DeviceAt(ordinal); device != nullptr) device->Detach(session);
}

BP_GUARD_API void bp_guard_expect(int ordinal, std::uint64_t bytes) {
  if (Device* const device = DeviceAt(ordinal); device != nullptr) device->Expect(bytes);
}

BP_GUARD_API void bp_guard_read_counts(int ordinal, bp_guard_counts* out) {
  if (Device* const device = DeviceAt(ordinal); device != nullptr) *out = device->Counts();
}
