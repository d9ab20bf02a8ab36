#include "tests/client/fake_daemon.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "client/wire/cpu.h"
#include "client/wire/text.h"
#include "quant/weight_layout.h"

namespace bitpager::testing {
namespace {

constexpr std::uint64_t kPageBytes = 64U << 10;

void Require(bool condition, const char* what) {
  if (condition) return;
  std::perror(what);
  std::abort();
}

}  // namespace

Memory::Memory(std::uint64_t size, bool sealed) : bytes(size) {
  fd.Reset(::memfd_create("fake", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  Require(fd && ::ftruncate(fd.get(), static_cast<off_t>(size)) == 0, "memfd");
  if (sealed) ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  base = static_cast<std::byte*>(::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0));
  Require(base != MAP_FAILED, "mmap");
}

Memory& Memory::operator=(Memory&& other) noexcept {
  std::swap(fd, other.fd);
  std::swap(base, other.base);
  std::swap(bytes, other.bytes);
  return *this;
}

Memory::~Memory() {
  if (base != nullptr) ::munmap(base, bytes);
}

namespace {

// Goes with the process that made it, not with a forked child of it.
struct TemporaryFolder {
  TemporaryFolder() {
    char pattern[] = "/tmp/bitpager-test-XXXXXX";
    Require(::mkdtemp(pattern) != nullptr, "mkdtemp");
    path = pattern;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    if (::getpid() == maker) std::filesystem::remove_all(path, ignored);
  }
  std::string path;
  pid_t maker = ::getpid();
};

}  // namespace

std::string TemporaryPath(const std::string& name) {
  static const TemporaryFolder folder;
  static std::atomic<int> count{0};
  return folder.path + "/" + std::to_string(count++) + "-" + name;
}

FakeDaemon::FakeDaemon(std::string path, Script script) : path_(std::move(path)), script_(std::move(script)) {
  listener_.Reset(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  const sockaddr_un address = *wire::UnixAddress(path_);
  Require(::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0, "bind");
  Require(::listen(listener_.get(), 4) == 0, "listen");
  stop_bell_.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  thread_ = std::thread([this] { Run(); });
}

FakeDaemon::~FakeDaemon() {
  stop_ = true;
  const std::uint64_t one = 1;
  Require(::write(stop_bell_.get(), &one, sizeof(one)) == sizeof(one), "stop bell");
  thread_.join();
  ::unlink(path_.c_str());
}

void FakeDaemon::Run() {
  Accept();
  while (!stop_) {
    bool worked = TakeRequests();
    worked = TakeMessage() || worked;
    if (!worked && !(script_.spin && attached_)) Sleep();
  }
}

void FakeDaemon::Accept() {
  pollfd watched[2] = {{listener_.get(), POLLIN, 0}, {stop_bell_.get(), POLLIN, 0}};
  ::poll(watched, 2, -1);
  if ((watched[0].revents & POLLIN) == 0) return;
  connection_.Reset(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
}

void FakeDaemon::Sleep() {
  pollfd watched[3] = {
      {stop_bell_.get(), POLLIN, 0}, {connection_.get(), POLLIN, 0}, {request_bell_.get(), POLLIN, 0}};
  if (attached_) {
    header().daemon_sleeps.word.store(1);
    wire::StoreLoadFence();
    if (!request_ring_.Empty()) {
      header().daemon_sleeps.word.store(0);
      return;
    }
  }
  ::poll(watched, 3, -1);
  if (attached_) header().daemon_sleeps.word.store(0);
  std::uint64_t rings = 0;
  if ((watched[2].revents & POLLIN) != 0 && ::read(request_bell_.get(), &rings, sizeof(rings)) > 0) {
    doorbells_ += rings;
  }
}

bool FakeDaemon::TakeMessage() {
  // While spinning, most turns look at the ring alone: a look at the socket is a system call.
  if (!connection_ || (script_.spin && attached_ && (++turns_ & 1023U) != 0)) return false;
  wire::Packet packet;
  const wire::Status got = wire::ReceivePacket(connection_.get(), packet);
  if (!got.ok()) return false;
  if (packet.closed) {
    hung_up_ = true;
    HangUp();
    return true;
  }
  if (script_.on_message && script_.on_message(*this, packet)) return true;
  Answer(packet);
  return true;
}

void FakeDaemon::HangUp() {
  attached_ = false;
  connection_.Reset();
}

void FakeDaemon::Reply(const wire::Packet& question, const wire::ReplyBody& body, std::span<const int> fds) {
  const wire::MessageHeader header = question.header();
  if (connection_) {
    [[maybe_unused]] const auto sent =
        wire::SendBody(connection_.get(), header.type, header.sequence, body, fds);
  }
}

void FakeDaemon::Answer(const wire::Packet& packet) {
  wire::ReplyBody body;
  switch (packet.header().type) {
    case wire::MessageType::kHello:
      AnswerHello(packet);
      return;
    case wire::MessageType::kCreateBuffer:
      AnswerCreateBuffer(packet);
      return;
    case wire::MessageType::kRegisterBuffer:
      AnswerRegisterBuffer(packet);
      return;
    case wire::MessageType::kDetach:
      ++detaches_;
      return;
    case wire::MessageType::kReleaseBuffer: {
      wire::ReleaseBufferBody release;
      if (wire::ReadBody(packet, release)) {
        buffers_.erase(release.buffer);
        const std::lock_guard lock(registered_mutex_);
        registered_.erase(release.buffer);
      }
      break;
    }
    case wire::MessageType::kCreateArena:
      body.values[0] = ++last_extent_;
      body.values[1] = 3;
      body.values[2] = 5;
      body.values[3] = 7;
      body.values[4] = 9;
      break;
    case wire::MessageType::kCreateWeight: {
      wire::CreateWeightBody weight;
      if (!wire::ReadBody(packet, weight)) break;
      const auto layout = quant::MakeWeightLayout(weight.blocksize, weight.nested != 0, kPageBytes);
      body.values[0] = ++last_extent_;
      body.values[1] = quant::PagesOf(*layout, weight.elements);
      body.values[2] = layout->blocks_per_page;
      break;
    }
    case wire::MessageType::kUsage:
      for (std::size_t i = 0; i < 24; ++i) body.values[i] = 1000 + i;
      break;
    default:
      break;
  }
  Reply(packet, body);
}

void FakeDaemon::AnswerHello(const wire::Packet& packet) {
  segment_ = Memory(wire::kSegmentBytes, script_.seal_segment);
  auto* header = new (segment_.base) wire::SegmentHeader;
  header->total_bytes = wire::kSegmentBytes;
  header->page_bytes = kPageBytes;
  if (script_.on_segment) script_.on_segment(*header);
  request_bell_.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  completion_bell_.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  request_ring_ = {view().requests(), wire::kRequestSlots, &header->request_tail.word,
                   &header->request_head.word};
  completion_ring_ = {view().completions(), wire::kCompletionSlots, &header->completion_tail.word,
                      &header->completion_head.word};
  wire::ReplyBody body;
  body.values[0] = 11;
  body.values[1] = 12;
  body.values[2] = kPageBytes;
  body.values[3] = script_.heartbeat_ms;
  body.values[4] = 4000;
  body.values[5] = script_.synchronous ? 1 : 0;
  body.values[6] = script_.leases ? 0 : 1;
  wire::CopyText(body.message, script_.device);
  const int fds[3] = {segment_.fd.get(), request_bell_.get(), completion_bell_.get()};
  attached_ = true;
  Reply(packet, body, fds);
}

void FakeDaemon::AnswerCreateBuffer(const wire::Packet& packet) {
  wire::CreateBufferBody create;
  wire::ReplyBody body;
  if (!wire::ReadBody(packet, create)) return;
  Memory memory(create.bytes, true);
  body.values[0] = ++last_buffer_;
  body.values[1] = create.bytes;
  const int fd = memory.fd.get();
  buffers_[last_buffer_] = std::move(memory);
  Reply(packet, body, {&fd, 1});
}

void FakeDaemon::AnswerRegisterBuffer(const wire::Packet& packet) {
  wire::RegisterBufferBody request;
  wire::ReplyBody body;
  if (!wire::ReadBody(packet, request)) return;
  body.values[0] = ++last_buffer_;
  body.values[1] = request.bytes;
  {
    const std::lock_guard lock(registered_mutex_);
    registered_[last_buffer_] = request;
  }
  Reply(packet, body);
}

std::map<std::uint64_t, wire::RegisterBufferBody> FakeDaemon::registered() {
  const std::lock_guard lock(registered_mutex_);
  return registered_;
}

bool FakeDaemon::TakeRequests() {
  if (!attached_) return false;
  wire::RequestRecord record;
  bool any = false;
  while (attached_ && request_ring_.Pop(record) == wire::RingState::kOk) {
    any = true;
    wire::CompletionRecord done;
    done.ticket = record.ticket;
    done.op = record.op;
    const Then then = script_.on_request ? script_.on_request(*this, record, done) : Then::kComplete;
    ++requests_seen_;  // a test that reads it sees what the script did
    if (then == Then::kComplete && attached_) Complete(done);
  }
  return any;
}

void FakeDaemon::Complete(const wire::CompletionRecord& record) {
  Require(completion_ring_.Push(record) == wire::RingState::kOk, "completion ring");
  wire::StoreLoadFence();
  if (script_.rings_always || header().client_sleeps.word.load(std::memory_order_relaxed) != 0) Ring();
}

void FakeDaemon::Ring() {
  const std::uint64_t one = 1;
  Require(::write(completion_bell_.get(), &one, sizeof(one)) == sizeof(one), "completion bell");
}

}  // namespace bitpager::testing
