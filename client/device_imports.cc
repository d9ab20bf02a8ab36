#include "client/device_imports.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace bitpager::client {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

// Entries that may overlap: ranges of mapped memory that were registered apart, and one across their border.
constexpr std::ptrdiff_t kLookBack = 4;

std::string Hex(DeviceAddress at) {
  char text[24];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(at));
  return text;
}

Status TooManyPieces(std::uint64_t bytes, std::uint64_t piece_bytes) {
  return {
      Code::kOutOfRange,
      "a tensor of " + std::to_string(bytes) + " bytes lies in expandable segments of " +
          std::to_string(piece_bytes) + "-byte pieces; at most " + std::to_string(wire::kMaxMessageFds) +
          " pieces can be passed on, " +
          std::to_string(piece_bytes * static_cast<unsigned>(wire::kMaxMessageFds)) +
          " bytes. Hint: take expandable_segments:True out of PYTORCH_CUDA_ALLOC_CONF, or split the tensor"};
}

}  // namespace

Status DeviceImports::BeginRequest(std::uint64_t oldest_open, std::uint64_t newest, TimePoint now) {
  newest_ = newest;
  now_ = now;
  ++request_;
  if (now >= next_look_) {
    next_look_ = now + kUnseen / 4;
    for (std::size_t i = entries_.size(); i-- > 0;) {
      const Entry& entry = entries_[i];
      const bool unseen = entry.last_used + kUnseen < now && entry.last_request + kUnseenRequests < request_;
      if (unseen || !IsAlive(entry)) Retire(i, newest);
    }
  }
  return GiveBack(oldest_open);
}

Status DeviceImports::GiveBack(std::uint64_t oldest_open) {
  while (!retired_.empty() && retired_.front().after < oldest_open) {
    const std::uint64_t buffer = retired_.front().buffer;
    retired_.erase(retired_.begin());
    if (Status released = source_.Release(buffer); !released.ok()) return released;
  }
  return {};
}

void DeviceImports::RetireGradients(std::uint64_t newest) {
  for (std::size_t i = entries_.size(); i-- > 0;) {
    if (entries_[i].only_gradients) Retire(i, newest);
  }
}

void DeviceImports::Retire(std::size_t index, std::uint64_t after) {
  retired_.push_back({entries_[index].buffer, after});
  entries_.erase(entries_.begin() + static_cast<std::ptrdiff_t>(index));
}

std::ptrdiff_t DeviceImports::Find(DeviceAddress at, std::uint64_t bytes) {
  const auto holds = [&](const Entry& e) { return at >= e.begin && at < e.end && bytes <= e.end - at; };
  if (last_hit_ < entries_.size() && holds(entries_[last_hit_])) {
    return static_cast<std::ptrdiff_t>(last_hit_);
  }
  const auto after = std::upper_bound(entries_.begin(), entries_.end(), at,
                                      [](DeviceAddress a, const Entry& e) { return a < e.begin; });
  std::ptrdiff_t index = after - entries_.begin();
  for (std::ptrdiff_t tries = 0; index-- > 0 && tries < kLookBack; ++tries) {
    if (!holds(entries_[static_cast<std::size_t>(index)])) continue;
    last_hit_ = static_cast<std::size_t>(index);
    return index;
  }
  return -1;
}

// Whether its first piece is what was registered: what was given back to the system is to go soon.
bool DeviceImports::IsAlive(const Entry& entry) const {
  return driver_.AllocationId(entry.begin, entry.ipc_capable) == entry.pieces.front().id;
}

bool DeviceImports::StillThere(Entry& entry, DeviceAddress at, std::uint64_t bytes) {
  const std::uint64_t first = (at - entry.begin) / entry.piece_bytes;
  const std::uint64_t last = (at - entry.begin + bytes - 1) / entry.piece_bytes;
  for (std::uint64_t i = first; i <= last; ++i) {
    Piece& piece = entry.pieces[i];
    if (piece.looked_at == request_) continue;
    if (driver_.AllocationId(entry.begin + i * entry.piece_bytes, entry.ipc_capable) != piece.id)
      return false;
    piece.looked_at = request_;
  }
  return true;
}

Status DeviceImports::Resolve(DeviceAddress at, std::uint64_t bytes, Use use, wire::Slice& out) {
  std::ptrdiff_t found = Find(at, bytes);
  while (found >= 0 && !StillThere(entries_[static_cast<std::size_t>(found)], at, bytes)) {
    Retire(static_cast<std::size_t>(found), newest_);
    found = Find(at, bytes);
  }
  auto index = static_cast<std::size_t>(found);
  if (found < 0) {
    if (Status imported = Import(at, bytes, index); !imported.ok()) return imported;
  }
  Entry& entry = entries_[index];
  entry.last_used = now_;
  entry.last_request = request_;
  if (use != Use::kGradient) entry.only_gradients = false;
  out = {entry.buffer, at - entry.begin};
  return {};
}

Status DeviceImports::CheckPlace(const DeviceAllocation& found, DeviceAddress at) const {
  if (found.is_managed) {
    return {Code::kUnsupported,
            "the memory at " + Hex(at) +
                " is managed, and CUDA passes managed memory to no other process. Hint: use "
                "plain device memory for parameters and gradients"};
  }
  if (found.ordinal == ordinal_) return {};
  const Result<std::string> other = driver_.Uuid(found.ordinal);
  return {Code::kInvalidArgument, "the memory at " + Hex(at) + " is on device " +
                                      (other.ok() ? *other : std::to_string(found.ordinal)) +
                                      ", this session is for device " + uuid_ +
                                      ". Hint: use a session for each device"};
}

Status DeviceImports::Import(DeviceAddress at, std::uint64_t bytes, std::size_t& index) {
  const Result<DeviceAllocation> found = driver_.Describe(at);
  if (!found.ok()) {
    return {found.status().code(), found.status().message() + " (" + Hex(at) + ")"};
  }
  if (Status fine = CheckPlace(*found, at); !fine.ok()) return fine;
  Entry entry;
  entry.begin = found->base;
  entry.end = found->base + found->bytes;
  entry.ipc_capable = found->ipc_capable;
  if (found->ipc_capable && bytes > entry.end - at) {
    return {Code::kOutOfRange, std::to_string(bytes) + " bytes at " + Hex(at) +
                                   " pass the end of their allocation, which has " +
                                   std::to_string(entry.end - at) + " bytes from there"};
  }
  Status made = found->ipc_capable ? ImportAllocation(*found, entry) : ImportMapped(*found, at, bytes, entry);
  if (made.ok()) index = Insert(std::move(entry));
  return made;
}

Status DeviceImports::ImportAllocation(const DeviceAllocation& found, Entry& entry) {
  const Result<CudaDriver::IpcHandle> handle = driver_.GetIpcHandle(found.base);
  if (!handle.ok()) return handle.status();
  wire::RegisterBufferBody body;
  body.kind = wire::BufferKind::kDeviceIpc;
  body.bytes = found.bytes;
  static_assert(sizeof(body.handle) == sizeof(CudaDriver::IpcHandle));
  std::memcpy(body.handle, handle->data(), sizeof(body.handle));
  const Result<std::uint64_t> buffer = source_.Register(body, {});
  if (!buffer.ok()) return buffer.status();
  entry.buffer = *buffer;
  entry.piece_bytes = found.bytes;
  entry.pieces = {{found.id, request_}};
  // Allocations do not overlap: what does was freed.
  for (std::size_t i = entries_.size(); i-- > 0;) {
    if (entries_[i].begin < entry.end && entry.begin < entries_[i].end) Retire(i, newest_);
  }
  return {};
}

// The pieces under the tensor, then as many of their neighbours as one message takes: a segment of the
// allocator comes in one registration.
Status DeviceImports::ImportMapped(const DeviceAllocation& found, DeviceAddress at, std::uint64_t bytes,
                                   Entry& entry) {
  constexpr auto kMost = static_cast<std::size_t>(wire::kMaxMessageFds);
  const std::uint64_t piece = found.bytes;
  const std::uint64_t needed = (at - found.base + bytes + piece - 1) / piece;
  if (needed > kMost) return TooManyPieces(bytes, piece);
  std::vector<wire::UniqueFd> fds;
  entry.pieces.clear();
  while (fds.size() < kMost) {
    const DeviceAddress next = found.base + fds.size() * piece;
    const bool under_tensor = fds.size() < needed;
    if (!under_tensor && Find(next, 1) >= 0) break;
    Result<wire::UniqueFd> fd = driver_.ExportMapped(next);
    if (!fd.ok() && !under_tensor) break;
    if (!fd.ok()) {
      const bool is_pool = fds.empty() && fd.status().code() == Code::kNotFound;
      return {
          Code::kUnsupported,
          "the GPU memory at " + Hex(next) + " cannot be shared with the daemon: " +
              (is_pool ? "it comes from a pool of CUDA's own" : fd.status().message()) +
              ". Hint: use PyTorch's native allocator (PYTORCH_CUDA_ALLOC_CONF without backend and without "
              "fabric handles)"};
    }
    const Result<DeviceAllocation> mapped = driver_.Describe(next);
    const bool same = mapped.ok() && mapped->base == next && mapped->bytes == piece;
    if (!same && !under_tensor) break;
    if (!same) {
      return {Code::kUnsupported, "the tensor at " + Hex(at) +
                                      " lies across pieces of mapped GPU memory of different sizes. Hint: "
                                      "tensor.clone()"};
    }
    entry.pieces.push_back({mapped->id, request_});
    fds.push_back(std::move(*fd));
  }
  std::vector<int> numbers;
  numbers.reserve(fds.size());
  for (const wire::UniqueFd& fd : fds) numbers.push_back(fd.get());
  wire::RegisterBufferBody body;
  body.kind = wire::BufferKind::kDeviceVmm;
  body.bytes = piece * fds.size();
  body.handle_bytes = piece;
  const Result<std::uint64_t> buffer = source_.Register(body, numbers);
  if (!buffer.ok()) return buffer.status();
  entry.buffer = *buffer;
  entry.piece_bytes = piece;
  entry.end = entry.begin + body.bytes;
  return {};
}

std::size_t DeviceImports::Insert(Entry entry) {
  ++made_;
  const auto at = std::upper_bound(entries_.begin(), entries_.end(), entry.begin,
                                   [](DeviceAddress a, const Entry& e) { return a < e.begin; });
  last_hit_ = static_cast<std::size_t>(at - entries_.begin());
  entries_.insert(at, std::move(entry));
  return last_hit_;
}

}  // namespace bitpager::client
