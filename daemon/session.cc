#include "daemon/session.h"

#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

#include "client/wire/cpu.h"
#include "daemon/shared_memory.h"

namespace bitpager::daemon {

using wire::Code;
using wire::RingState;
using wire::Status;

wire::Result<std::unique_ptr<Session>> Session::Make(Identity identity, kernels::Device& device) {
  std::unique_ptr<Session> session(new Session(std::move(identity), device));
  Status mapped = session->MapSegment();
  if (!mapped.ok()) return mapped;
  wire::Result<wire::UniqueFd> request_bell = MakeBell();
  if (!request_bell.ok()) return request_bell.status();
  wire::Result<wire::UniqueFd> completion_bell = MakeBell();
  if (!completion_bell.ok()) return completion_bell.status();
  session->request_bell_ = std::move(*request_bell);
  session->completion_bell_ = std::move(*completion_bell);
  return session;
}

Status Session::MapSegment() {
  wire::Result<wire::UniqueFd> memory = MakeSealedMemory("bitpager-session", wire::kSegmentBytes);
  if (!memory.ok()) return memory.status();
  segment_fd_ = std::move(*memory);
  wire::Result<wire::Mapping> mapping =
      wire::Mapping::Map(segment_fd_.get(), wire::kSegmentBytes, wire::MapMode::kReadWrite);
  if (!mapping.ok()) return mapping.status();
  mapping_ = std::move(*mapping);
  std::byte* base = mapping_.base();
  Status shared = device_.ShareWords(base, wire::kSegmentBytes);
  if (!shared.ok()) return shared;
  view_.base = base;
  wire::SegmentHeader* header = new (base) wire::SegmentHeader;
  header->total_bytes = wire::kSegmentBytes;
  requests_ = {view_.requests(), wire::kRequestSlots, &header->request_tail.word, &header->request_head.word};
  completions_ = {view_.completions(), wire::kCompletionSlots, &header->completion_tail.word,
                  &header->completion_head.word};
  return {};
}

bool Session::WatchBell(int epoll) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = request_bell_.get();
  if (::epoll_ctl(epoll, EPOLL_CTL_ADD, request_bell_.get(), &event) != 0) return false;
  epoll_ = epoll;
  return true;
}

Session::~Session() {
  if (epoll_ >= 0) ::epoll_ctl(epoll_, EPOLL_CTL_DEL, request_bell_.get(), nullptr);
  if (view_.base == nullptr) return;
  device_.UnshareWords(view_.base);
}

bool Session::TakeRequests() {
  wire::RequestRecord record;
  while (outstanding() < wire::kCompletionSlots) {
    const RingState state = requests_.Pop(record);
    if (state == RingState::kEmpty) return true;
    if (state == RingState::kCorrupt || record.ticket != next_ticket_) return false;
    ++next_ticket_;
    pending.push_back(record);
  }
  return true;
}

bool Session::Complete(const wire::CompletionRecord& completion) {
  if (completions_.Push(completion) != RingState::kOk) return false;
  wire::SegmentHeader& header = view_.header();
  // Pairs with the client's fence between setting client_sleeps and its last look at the ring.
  wire::StoreLoadFence();
  if (header.client_sleeps.word.load(std::memory_order_relaxed) != 0) Ring(completion_bell_.get());
  return true;
}

bool Session::HeadReady() const {
  // Pairs with the release store of the client (or its stream) behind what wrote the inputs.
  return !pending.empty() &&
         view_.header().ready.word.load(std::memory_order_acquire) >= pending.front().ready;
}

void Session::Fail(Code code) {
  if (failed_) return;
  failed_ = true;
  // Pairs with the client's acquire of `failed` behind its look at `done`.
  view_.header().failed.word.store(static_cast<std::uint64_t>(code), std::memory_order_release);
  ReleaseWaiters();
  Ring(completion_bell_.get());
}

void Session::ReleaseWaiters() {
  // Pairs with the client's (or its stream's) wait on `done`.
  view_.header().done.word.store(wire::kDoneReleased, std::memory_order_release);
}

void Session::AnnounceSleep(bool sleeping) {
  view_.header().daemon_sleeps.word.store(sleeping ? 1 : 0, std::memory_order_relaxed);
}

BufferRef Session::FindBuffer(wire::BufferId id) const {
  const auto found = buffers_.find(id);
  return found == buffers_.end() ? nullptr : found->second;
}

Extent* Session::FindExtent(wire::ExtentId id) const {
  const auto found = extents_.find(id);
  return found == extents_.end() ? nullptr : found->second;
}

wire::BufferId Session::AddBuffer(const kernels::Import& import, bool writable, bool own) {
  const wire::BufferId id{next_buffer_++};
  buffers_[id] = std::make_shared<Buffer>(device_, id, import, writable, own);
  if (own) own_buffer_bytes_ += import.bytes;
  buffer_bytes_ += import.bytes;
  return id;
}

std::deque<BufferRef> Session::TakeBuffers() {
  std::deque<BufferRef> out;
  for (auto& [id, buffer] : buffers_) out.push_back(std::move(buffer));
  buffers_.clear();
  return out;
}

wire::Result<BufferRef> Session::RemoveBuffer(wire::BufferId id) {
  const auto found = buffers_.find(id);
  if (found == buffers_.end()) {
    return Status(Code::kNotFound, "no buffer " + std::to_string(id.value) + " in this session.");
  }
  if (found->second->own()) own_buffer_bytes_ -= found->second->bytes();
  buffer_bytes_ -= found->second->bytes();
  BufferRef removed = std::move(found->second);
  buffers_.erase(found);
  return removed;
}

}  // namespace bitpager::daemon
