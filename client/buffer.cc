#include "client/buffer.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <string>

namespace bitpager::client {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

// The request for a caller's file, as far as it can be judged here.
Result<wire::RegisterBufferBody> Describe(int fd, std::uint64_t bytes) {
  struct stat file {};
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fstat(fd, &file) != 0) {
    return Status(Code::kInvalidArgument, "fd " + std::to_string(fd) + " is not an open file");
  }
  if (!S_ISREG(file.st_mode)) {
    return Status(Code::kInvalidArgument,
                  "fd " + std::to_string(fd) +
                      " is not a memory file. Hint: memfd_create, shm_open, or a torch "
                      "tensor after share_memory_()");
  }
  if (bytes == 0 || static_cast<std::uint64_t>(file.st_size) < bytes) {
    return Status(Code::kOutOfRange, "the file has " + std::to_string(file.st_size) + " bytes, " +
                                         std::to_string(bytes) + " are to be registered");
  }
  const int seals = ::fcntl(fd, F_GET_SEALS);
  wire::RegisterBufferBody body;
  body.bytes = bytes;
  body.writable = (flags & O_ACCMODE) == O_RDWR ? 1 : 0;
  body.sealed = seals >= 0 && (seals & F_SEAL_SHRINK) != 0 ? 1 : 0;
  return body;
}

}  // namespace

Result<std::unique_ptr<Buffer>> Buffer::Create(const Session& session, std::uint64_t bytes) {
  if (bytes == 0) return Status(Code::kInvalidArgument, "a buffer of 0 bytes");
  const std::shared_ptr<Connection>& connection = session.connection();
  const Result<Connection::Lock> lock = connection->Enter();
  if (!lock.ok()) return lock.status();
  std::uint64_t id = 0;
  Result<wire::Mapping> mapping = connection->MakeBuffer(bytes, id);
  if (!mapping.ok()) return mapping.status();
  std::byte* const data = mapping->base();
  connection->buffers()[id] = std::move(*mapping);
  return std::unique_ptr<Buffer>(new Buffer(connection, id, data, bytes));
}

Result<std::unique_ptr<Buffer>> Buffer::Register(const Session& session, int fd, std::uint64_t bytes) {
  const Result<wire::RegisterBufferBody> body = Describe(fd, bytes);
  if (!body.ok()) return body.status();
  const std::shared_ptr<Connection>& connection = session.connection();
  const Result<Connection::Lock> lock = connection->Enter();
  if (!lock.ok()) return lock.status();
  Result<Reply> reply =
      connection->Ask(wire::MessageType::kRegisterBuffer, *body, std::span<const int>(&fd, 1));
  if (!reply.ok()) return reply.status();
  return std::unique_ptr<Buffer>(new Buffer(connection, reply->body.values[0], nullptr, bytes));
}

Buffer::~Buffer() {
  // A session that is over has released everything; there is nobody to tell.
  if (id_ != 0) [[maybe_unused]]
    const Status released = Release();
}

Status Buffer::Release() {
  const Result<Connection::Lock> lock = connection_->Enter();
  if (!lock.ok()) return lock.status();
  wire::ReleaseBufferBody body;
  body.buffer = id_;
  id_ = 0;
  data_ = nullptr;
  connection_->buffers().erase(body.buffer);
  return connection_->Ask(wire::MessageType::kReleaseBuffer, body).status();
}

}  // namespace bitpager::client
