// A GPU's driver made of this process's memory, for tests of the client: allocations that come and go, and
// streams whose queues one thread works off. Device addresses of registered host memory differ from the
// processor's, so that a mix-up crashes.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "client/cuda_driver.h"

namespace bitpager::testing {

inline constexpr const char* kFakeUuid = "GPU-00000000-0000-0000-0000-000000000000";
inline constexpr const char* kOtherUuid = "GPU-11111111-1111-1111-1111-111111111111";

class FakeCuda final : public client::CudaDriver {
 public:
  FakeCuda();
  ~FakeCuda() override;

  // ---- what tests do ----
  // One allocation that can be passed on by its handle.
  void Allocate(client::DeviceAddress base, std::uint64_t bytes, int ordinal = 0);
  // `count` physical pieces mapped side by side.
  void Map(client::DeviceAddress base, std::uint64_t piece_bytes, std::size_t count, bool exportable = true);
  // A pool of CUDA's own: neither way works.
  void AllocateFromPool(client::DeviceAddress base, std::uint64_t bytes);
  void Free(client::DeviceAddress base);  // an allocation or one piece
  // A kernel that runs until `gate` is true.
  void Launch(client::StreamHandle stream, const std::atomic<bool>& gate);
  // Everything the stream holds is done, within `limit_ms`.
  [[nodiscard]] bool Drained(client::StreamHandle stream, int limit_ms);
  std::atomic<bool> capturing{false};
  std::atomic<int> current{0};  // device
  // From now on every thread needs a context of its own: calls of one that has none fail.
  void ForgetContexts();
  std::atomic<bool> stream_words{true};
  std::atomic<bool> refuse_waits{false};
  std::atomic<bool> faulted{false};  // the context has failed: nothing that is in a stream runs any more
  std::atomic<int> enqueued{0};      // writes and waits
  std::atomic<int> identity_looks{0};
  std::atomic<int> synchronized{0};
  std::atomic<int> shared_maps{0};  // mappings of shared memory now
  [[nodiscard]] bool registered();

  // ---- CudaDriver ----
  wire::Result<int> DeviceCount() override { return 2; }
  wire::Result<std::string> Uuid(int ordinal) override {
    return std::string(ordinal == 0 ? kFakeUuid : kOtherUuid);
  }
  wire::Result<int> CurrentDevice() override;
  wire::Status UsePrimaryContext(int ordinal) override;
  bool HasStreamWords(int) override { return stream_words; }
  wire::Result<client::DeviceAllocation> Describe(client::DeviceAddress at) override;
  std::uint64_t AllocationId(client::DeviceAddress at, bool ipc_capable) override;
  wire::Result<IpcHandle> GetIpcHandle(client::DeviceAddress base) override;
  wire::Result<wire::UniqueFd> ExportMapped(client::DeviceAddress at) override;
  wire::Result<client::DeviceRange> MapShared(int fd, std::uint64_t bytes, int ordinal) override;
  void UnmapShared(const client::DeviceRange& range) override;
  wire::Result<client::DeviceAddress> RegisterHost(void* at, std::uint64_t bytes) override;
  void UnregisterHost(void* at) override;
  wire::Status WriteWord(client::StreamHandle stream, client::DeviceAddress word,
                         std::uint64_t value) override;
  wire::Status WaitWord(client::StreamHandle stream, client::DeviceAddress word,
                        std::uint64_t value) override;
  std::uint64_t StreamId(client::StreamHandle stream) override {
    return reinterpret_cast<std::uint64_t>(stream);
  }
  wire::Result<bool> IsCapturing(client::StreamHandle) override;
  bool IsIdle(client::StreamHandle stream) override;
  wire::Status ContextFault(const void* host) override;
  std::atomic<int> fault_looks{0};
  wire::Status Synchronize(client::StreamHandle stream) override;

 private:
  struct Memory {
    client::DeviceAllocation allocation;
    bool exportable = false;
  };
  // True when it is done.
  using Work = std::function<bool()>;

  [[nodiscard]] wire::Status NeedContext();
  void Run();
  void Enqueue(client::StreamHandle stream, Work work);
  [[nodiscard]] const Memory* At(client::DeviceAddress at) const;  // under mutex_
  std::atomic<std::uint64_t>* Word(client::DeviceAddress word);

  std::mutex mutex_;
  std::map<client::DeviceAddress, Memory> memory_;            // guarded by mutex_
  std::map<client::StreamHandle, std::deque<Work>> streams_;  // guarded by mutex_
  std::optional<std::map<std::thread::id, int>> contexts_;    // device by thread; guarded by mutex_
  std::uint64_t last_id_ = 0;
  client::DeviceAddress next_shared_ = 0;  // guarded by mutex_
  void* host_ = nullptr;
  std::uint64_t host_bytes_ = 0;
  bool stop_ = false;
  std::thread thread_;  // the GPU
};

}  // namespace bitpager::testing
