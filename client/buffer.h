// Memory that the daemon can reach: sealed buffers that it made, and the caller's own memory files. Any
// thread.
#pragma once

#include <cstdint>
#include <memory>

#include "client/session.h"
#include "client/wire/status.h"

namespace bitpager::client {

class Buffer {
 public:
  // A sealed shared buffer of `bytes`, mapped here at data(). Counts against the job's host quota.
  [[nodiscard]] static wire::Result<std::unique_ptr<Buffer>> Create(const Session& session,
                                                                    std::uint64_t bytes);
  // Registers `bytes` of a memfd or shm_open file; the fd is not kept, data() is null. kInvalidArgument: not
  // such a file; kOutOfRange: it is shorter.
  [[nodiscard]] static wire::Result<std::unique_ptr<Buffer>> Register(const Session& session, int fd,
                                                                      std::uint64_t bytes);
  // Releases the buffer; data() ends.
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // As the destructor, and says how it went.
  [[nodiscard]] wire::Status Release();

  [[nodiscard]] std::uint64_t id() const { return id_; }
  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }

 private:
  Buffer(std::shared_ptr<Connection> connection, std::uint64_t id, std::byte* data, std::uint64_t bytes)
      : connection_(std::move(connection)), id_(id), data_(data), bytes_(bytes) {}

  std::shared_ptr<Connection> connection_;
  std::uint64_t id_;
  std::byte* data_;
  std::uint64_t bytes_;
};

}  // namespace bitpager::client
