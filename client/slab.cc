#include "client/slab.h"

#include <fcntl.h>

#include <algorithm>

namespace bitpager::client {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

constexpr std::uint64_t kLeastBytes = 1U << 20;

}  // namespace

Result<wire::Mapping> MakeBuffer(SocketCalls& calls, std::uint64_t bytes, std::uint64_t& buffer) {
  wire::CreateBufferBody body;
  body.bytes = bytes;
  Result<Reply> reply = calls.Ask(wire::MessageType::kCreateBuffer, body);
  if (!reply.ok()) return reply.status();
  constexpr unsigned kNeeded = F_SEAL_SHRINK | F_SEAL_SEAL;
  const int fd = reply->packet.fd_count == 1 ? reply->packet.fds[0].get() : -1;
  const std::uint64_t granted = reply->body.values[1];
  if (fd < 0 || reply->body.values[0] == 0 || granted < bytes || (wire::SealsOf(fd) & kNeeded) != kNeeded) {
    return Status(Code::kProtocol, "the daemon's buffer has no sealed file of the size that was asked for");
  }
  Result<wire::Mapping> mapping = wire::Mapping::Map(fd, granted, wire::MapMode::kReadWrite);
  if (mapping.ok()) buffer = reply->body.values[0];
  return mapping;
}

Status Slab::Create(SocketCalls& calls, std::uint64_t bytes) {
  Result<wire::Mapping> mapping = MakeBuffer(calls, bytes, buffer_);
  if (!mapping.ok()) return mapping.status();
  mapping_ = std::move(*mapping);
  return {};
}

Status Slab::Reserve(SocketCalls& calls, std::uint64_t bytes) {
  taken_bytes_ = 0;
  if (bytes <= mapping_.bytes()) return {};
  const std::uint64_t before = mapping_.bytes();
  if (buffer_ != 0) {
    mapping_ = wire::Mapping();  // first, so that the job never holds both
    wire::ReleaseBufferBody body;
    body.buffer = buffer_;
    buffer_ = 0;
    if (Result<Reply> released = calls.Ask(wire::MessageType::kReleaseBuffer, body); !released.ok()) {
      return released.status();
    }
  }
  const std::uint64_t exact = (bytes + kLeastBytes - 1) / kLeastBytes * kLeastBytes;
  const std::uint64_t roomy = std::max(exact, before + before / 2);
  Status made = Create(calls, roomy);
  const bool no_room = made.code() == Code::kQuotaExceeded || made.code() == Code::kBudgetExceeded ||
                       made.code() == Code::kOutOfMemory;
  if (no_room && roomy > bytes) made = Create(calls, bytes);
  return made;
}

SlabPiece Slab::Take(std::uint64_t bytes) {
  SlabPiece piece{mapping_.base() + taken_bytes_, {buffer_, taken_bytes_}};
  taken_bytes_ += Rounded(bytes);
  return piece;
}

}  // namespace bitpager::client
