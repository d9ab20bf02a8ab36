// A client that speaks the protocol of client/wire directly, so that a test can say anything, valid or not.
// Shares no code with client/. One thread; where the daemon runs on the same thread, `turn` lets it work.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/wire/cpu.h"
#include "client/wire/fd_socket.h"
#include "client/wire/ring.h"
#include "client/wire/segment.h"
#include "client/wire/text.h"

namespace bitpager::testing {

// For an answer that must come: long, because sanitizers on a busy machine are slow; nothing waits it out.
inline constexpr int kPatienceMs = 30'000;

// A shared mapping of an fd.
class SharedMap {
 public:
  SharedMap() = default;
  SharedMap(int fd, std::uint64_t bytes, bool writable = true) : bytes_(bytes) {
    void* at = ::mmap(nullptr, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (at != MAP_FAILED) base_ = static_cast<std::byte*>(at);
  }
  ~SharedMap() {
    if (base_ != nullptr) ::munmap(base_, bytes_);
  }
  SharedMap(SharedMap&& other) noexcept { *this = std::move(other); }
  SharedMap& operator=(SharedMap&& other) noexcept {
    std::swap(base_, other.base_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  [[nodiscard]] std::byte* base() const { return base_; }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  template <typename T>
  [[nodiscard]] T* At(std::uint64_t offset) const {
    return reinterpret_cast<T*>(base_ + offset);
  }

 private:
  std::byte* base_ = nullptr;
  std::uint64_t bytes_ = 0;
};

// A memfd of `bytes`, unsealed.
[[nodiscard]] inline wire::UniqueFd MakeMemory(std::uint64_t bytes) {
  wire::UniqueFd fd(::memfd_create("test-memory", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(bytes)), 0);
  return fd;
}
[[nodiscard]] inline wire::UniqueFd PidfdOf(pid_t pid) {
  return wire::UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
}

struct Reply {
  wire::ReplyBody body;
  std::vector<wire::UniqueFd> fds;
  bool closed = false;  // the daemon hung up, or did not answer in time
  [[nodiscard]] wire::Code code() const { return static_cast<wire::Code>(body.code); }
  [[nodiscard]] std::string text() const { return std::string(wire::TextOf(body.message)); }
  [[nodiscard]] bool ok() const { return !closed && body.code == 0; }
  [[nodiscard]] std::uint64_t value(std::size_t i) const { return body.values[i]; }
};

// A buffer of a session, mapped here too.
struct RawBuffer {
  std::uint64_t id = 0;
  SharedMap map;
  [[nodiscard]] wire::Slice Place(std::uint64_t offset = 0) const { return {id, offset}; }
};

class RawClient {
 public:
  explicit RawClient(wire::UniqueFd socket) : socket_(std::move(socket)) {}

  // Called while waiting for the daemon; an in-process daemon works here.
  std::function<void()> turn = [] {};

  [[nodiscard]] static wire::HelloBody HelloBodyOf(const std::string& job, std::uint32_t rank = 0) {
    wire::HelloBody hello;
    hello.abi_version = 1;
    hello.rank = rank;
    wire::CopyText(hello.job, job);
    wire::CopyText(hello.client, "raw");
    return hello;
  }

  // ---- the socket
  template <typename Body>
  void Send(wire::MessageType type, const Body& body, std::span<const int> fds = {}) {
    static_cast<void>(wire::SendBody(socket_.get(), type, ++sequence_, body, fds).ok());
  }
  [[nodiscard]] Reply Receive(int timeout_ms = kPatienceMs) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
    Reply reply;
    wire::Packet packet;
    do {
      turn();
      pollfd watched{socket_.get(), POLLIN, 0};
      if (::poll(&watched, 1, turns_by_itself() ? 0 : 20) <= 0) continue;
      const wire::Status got = wire::ReceivePacket(socket_.get(), packet);
      if (got.code() == wire::Code::kPending || got.code() == wire::Code::kInterrupted) continue;
      if (!got.ok() || packet.closed || !wire::ReadBody(packet, reply.body)) break;
      for (int i = 0; i < packet.fd_count; ++i) {
        reply.fds.push_back(std::move(packet.fds[static_cast<std::size_t>(i)]));
      }
      return reply;
    } while (std::chrono::steady_clock::now() < end);
    reply.closed = true;
    return reply;
  }
  template <typename Body>
  [[nodiscard]] Reply Ask(wire::MessageType type, const Body& body, std::span<const int> fds = {}) {
    Send(type, body, fds);
    return Receive();
  }
  [[nodiscard]] Reply AskBare(wire::MessageType type) {
    static_cast<void>(wire::SendBare(socket_.get(), type, ++sequence_).ok());
    return Receive();
  }
  // Says hello and, when welcome, maps the session. `pidfd` -1: none is passed.
  Reply Hello(const wire::HelloBody& hello, int pidfd = -1) {
    Reply reply = Ask(wire::MessageType::kHello, hello,
                      pidfd >= 0 ? std::span<const int>(&pidfd, 1) : std::span<const int>());
    if (reply.ok()) Attach(reply);
    return reply;
  }
  void Attach(Reply& reply) {
    ASSERT_EQ(reply.fds.size(), 3U);
    segment_ = std::make_unique<SharedMap>(reply.fds[0].get(), wire::kSegmentBytes);
    ASSERT_NE(segment_->base(), nullptr);
    segment_fd_ = std::move(reply.fds[0]);
    request_bell_ = std::move(reply.fds[1]);
    completion_bell_ = std::move(reply.fds[2]);
    wire::SegmentHeader& header = view().header();
    requests_ = {view().requests(), wire::kRequestSlots, &header.request_tail.word,
                 &header.request_head.word};
    completions_ = {view().completions(), wire::kCompletionSlots, &header.completion_tail.word,
                    &header.completion_head.word};
    last_ticket_ = 0;
    page_bytes_ = reply.value(2);
    session_ = reply.value(0);
  }

  // ---- memory and extents
  [[nodiscard]] RawBuffer MakeBuffer(std::uint64_t bytes) {
    Reply reply = Ask(wire::MessageType::kCreateBuffer, wire::CreateBufferBody{bytes});
    EXPECT_TRUE(reply.ok()) << reply.text();
    if (!reply.ok() || reply.fds.size() != 1) return {};
    return {reply.value(0), SharedMap(reply.fds[0].get(), bytes)};
  }
  [[nodiscard]] Reply Register(int fd, std::uint64_t bytes, bool writable = true, bool sealed = false) {
    wire::RegisterBufferBody body;
    body.bytes = bytes;
    body.writable = writable ? 1 : 0;
    body.sealed = sealed ? 1 : 0;
    return Ask(wire::MessageType::kRegisterBuffer, body, std::span<const int>(&fd, 1));
  }
  // The element counts are written to the start of `table`.
  [[nodiscard]] Reply CreateArena(wire::CreateArenaBody body, const std::vector<std::uint64_t>& elements,
                                  const RawBuffer& table) {
    if (body.optimizer[0] == '\0') wire::CopyText(body.optimizer, "adam");
    std::memcpy(table.map.base(), elements.data(), elements.size() * 8);
    body.tensors = static_cast<std::uint32_t>(elements.size());
    body.table = table.Place();
    return Ask(wire::MessageType::kCreateArena, body);
  }

  // ---- the rings
  template <typename Body>
  [[nodiscard]] static wire::RequestRecord RecordOf(wire::Op op, const Body& body) {
    static_assert(sizeof(Body) <= wire::kRequestBodyBytes);
    wire::RequestRecord record;
    record.version = wire::kWireVersion;
    record.op = op;
    std::memcpy(record.body, &body, sizeof(Body));
    return record;
  }
  // Numbers the record, marks it ready, pushes it as it is.
  std::uint64_t Push(wire::RequestRecord record) {
    record.ticket = ++last_ticket_;
    record.ready = record.ticket;
    view().header().ready.word.store(record.ticket, std::memory_order_release);
    return PushRaw(record);
  }
  // Only pushes and rings.
  std::uint64_t PushRaw(const wire::RequestRecord& record) {
    EXPECT_EQ(requests_.Push(record), wire::RingState::kOk);
    RingIfAsleep();
    return record.ticket;
  }
  void RingIfAsleep() {
    wire::StoreLoadFence();
    if (view().header().daemon_sleeps.word.load(std::memory_order_relaxed) == 0) return;
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(request_bell_.get(), &one, sizeof(one));
  }
  [[nodiscard]] std::optional<wire::CompletionRecord> Pop() {
    wire::CompletionRecord record;
    if (completions_.Pop(record) != wire::RingState::kOk) return std::nullopt;
    return record;
  }
  // The next completion; none when the session failed or nothing came in time.
  [[nodiscard]] std::optional<wire::CompletionRecord> Wait(int timeout_ms = kPatienceMs) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
    do {
      turn();
      if (auto record = Pop(); record) return record;
      if (failed() != wire::Code::kOk) return Pop();
      if (!turns_by_itself()) SleepOnBell();
    } while (std::chrono::steady_clock::now() < end);
    return std::nullopt;
  }
  template <typename Body>
  [[nodiscard]] wire::CompletionRecord Run(wire::Op op, const Body& body) {
    Push(RecordOf(op, body));
    const auto done = Wait();
    if (done) return *done;
    wire::CompletionRecord none;
    none.code = static_cast<std::uint32_t>(wire::Code::kDaemonLost);
    return none;
  }
  [[nodiscard]] static wire::Code CodeOf(const wire::CompletionRecord& record) {
    return static_cast<wire::Code>(record.code);
  }
  [[nodiscard]] static std::string TextIn(const wire::CompletionRecord& record) {
    return std::string(wire::TextOf(record.message));
  }
  [[nodiscard]] wire::Code failed() const {
    return static_cast<wire::Code>(view().header().failed.word.load(std::memory_order_acquire));
  }

  [[nodiscard]] wire::SegmentView view() const { return {segment_->base()}; }
  [[nodiscard]] int socket() const { return socket_.get(); }
  [[nodiscard]] int request_bell() const { return request_bell_.get(); }
  [[nodiscard]] bool attached() const { return segment_ != nullptr; }
  [[nodiscard]] std::uint64_t page_bytes() const { return page_bytes_; }
  [[nodiscard]] std::uint64_t session() const { return session_; }
  [[nodiscard]] std::uint64_t last_ticket() const { return last_ticket_; }
  void HangUp() { socket_.Reset(); }
  void SetInProcess() { in_process_ = true; }

 private:
  [[nodiscard]] bool turns_by_itself() const { return in_process_; }
  void SleepOnBell() {
    wire::Word& sleeps = view().header().client_sleeps.word;
    sleeps.store(1, std::memory_order_relaxed);
    wire::StoreLoadFence();
    pollfd watched{completion_bell_.get(), POLLIN, 0};
    if (completions_.Empty() && ::poll(&watched, 1, 20) > 0) {
      std::uint64_t rings = 0;
      [[maybe_unused]] const ssize_t got = ::read(completion_bell_.get(), &rings, sizeof(rings));
    }
    sleeps.store(0, std::memory_order_relaxed);
  }

  wire::UniqueFd socket_;
  std::uint32_t sequence_ = 0;
  bool in_process_ = false;
  std::unique_ptr<SharedMap> segment_;
  wire::UniqueFd segment_fd_;
  wire::UniqueFd request_bell_;
  wire::UniqueFd completion_bell_;
  wire::RingProducer<wire::RequestRecord> requests_;
  wire::RingConsumer<wire::CompletionRecord> completions_;
  std::uint64_t last_ticket_ = 0;
  std::uint64_t page_bytes_ = 0;
  std::uint64_t session_ = 0;
};

}  // namespace bitpager::testing
