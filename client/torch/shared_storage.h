// Places parameters on the CPU where the daemon can reach them: their storages are moved into shared memory
// in place (the address changes, views follow) and registered once. Storages that cannot move stay where they
// are and are copied through the session's slab at every step. One caller at a time.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/StorageImpl.h>
#include <c10/util/intrusive_ptr.h>

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>

#include "client/buffer.h"
#include "client/session.h"
#include "client/wire/records.h"

namespace bitpager::optim {

class SharedStorages {
 public:
  explicit SharedStorages(std::shared_ptr<client::Session> session) : session_(std::move(session)) {}

  // Where the daemon finds the first element of `tensor`; buffer 0 when it stays in private memory. `tensor`
  // is dense, on the CPU. Error of the daemon when it refuses the buffer.
  [[nodiscard]] wire::Slice Locate(const at::Tensor& tensor);
  // Why the last storage that stayed private did; empty when none did, or after it was taken.
  [[nodiscard]] std::string TakeReason() { return std::exchange(reason_, {}); }

 private:
  struct Entry {
    c10::weak_intrusive_ptr<c10::StorageImpl> storage;  // keeps its address from being used again
    const void* data = nullptr;
    std::uint64_t bytes = 0;
    std::unique_ptr<client::Buffer> buffer;  // null: private
  };

  // Releases the buffers of storages that are gone.
  void Sweep();
  Entry Register(const at::Tensor& tensor);

  const std::shared_ptr<client::Session> session_;
  std::unordered_map<const c10::StorageImpl*, Entry> entries_;
  std::string reason_;
};

}  // namespace bitpager::optim
