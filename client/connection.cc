#include "client/connection.h"

#include <fcntl.h>

#include <system_error>
#include <utility>

#include "client/weight.h"

namespace bitpager::client {
namespace {

using wire::Code;
using wire::Result;
using wire::Status;

// The segment must be what this version knows, and unable to shrink under us.
Status CheckSegment(const wire::Mapping& segment, int fd) {
  constexpr unsigned kNeeded = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  const wire::SegmentHeader& header = wire::SegmentView{segment.base()}.header();
  if (header.magic != wire::kSegmentMagic) {
    return {Code::kProtocol, "the session's segment has the wrong magic"};
  }
  if (header.version != wire::kWireVersion) {
    return {Code::kUnknownVersion, "the session's segment is of version " + std::to_string(header.version) +
                                       ", this client knows " + std::to_string(wire::kWireVersion) +
                                       ". Hint: install the same bitpager on both sides"};
  }
  if (header.request_slots != wire::kRequestSlots || header.completion_slots != wire::kCompletionSlots ||
      header.lease_slots != wire::kLeaseSlots || header.total_bytes != wire::kSegmentBytes) {
    return {Code::kProtocol, "the session's segment has other sizes than its version says"};
  }
  if ((wire::SealsOf(fd) & kNeeded) != kNeeded) {
    return {Code::kProtocol, "the session's segment is not sealed against resizing"};
  }
  return {};
}

}  // namespace

// The connection's own socket as what its parts ask for memory.
class Connection::Source final : public BufferSource {
 public:
  explicit Source(Connection& connection) : connection_(connection) {}
  Result<wire::Mapping> Make(std::uint64_t bytes, std::uint64_t& id) override {
    return connection_.MakeBuffer(bytes, id);
  }
  Result<std::uint64_t> Register(const wire::RegisterBufferBody& body, std::span<const int> fds) override {
    const Result<Reply> reply = connection_.Ask(wire::MessageType::kRegisterBuffer, body, fds);
    if (!reply.ok()) return reply.status();
    return reply->body.values[0];
  }
  Status Release(std::uint64_t buffer) override {
    wire::ReleaseBufferBody body;
    body.buffer = buffer;
    return connection_.Ask(wire::MessageType::kReleaseBuffer, body).status();
  }

 private:
  Connection& connection_;
};

Status ForkedChild() {
  return {Code::kForkedChild,
          "this session was opened before a fork, by the parent process. Hint: connect anew in the child, or "
          "keep bitpager out of forked workers"};
}

Connection::Parts::Parts(SocketCalls attached, wire::Mapping segment_map, Reply& hello, int threads)
    : guard({attached.fd(), hello.packet.fds[1].get(), hello.packet.fds[2].get()}),
      calls(std::move(attached)),
      segment(std::move(segment_map)),
      timeline({segment.base()}, std::move(hello.packet.fds[1]), std::move(hello.packet.fds[2]), calls.fd()),
      copies(threads) {}

Status Connection::OpenDevice(CudaDriver* driver) {
  if (driver == nullptr) {
    const Result<CudaDriver*> system = CudaDriver::System();
    if (!system.ok()) return system.status();
    driver = *system;
  }
  parts_->source = std::make_unique<Source>(*this);
  const DeviceSession::Options options{driver, info_.device_uuid, info_.synchronous};
  Result<std::unique_ptr<DeviceSession>> device =
      DeviceSession::Make(options, view(), parts_->calls.fd(), parts_->timeline, *parts_->source);
  if (!device.ok()) return device.status();
  parts_->device = std::move(*device);
  info_.synchronous = parts_->device->synchronous();
  return {};
}

Result<std::shared_ptr<Connection>> Connection::Make(SocketCalls calls, Reply hello, SessionInfo info,
                                                     int threads, CudaDriver* driver) {
  if (hello.packet.fd_count != 3) {
    return Status(Code::kProtocol, "the daemon's hello came with " + std::to_string(hello.packet.fd_count) +
                                       " fds instead of 3");
  }
  const int fd = hello.packet.fds[0].get();
  Result<wire::Mapping> segment = wire::Mapping::Map(fd, wire::kSegmentBytes, wire::MapMode::kReadWrite);
  if (!segment.ok()) return segment.status();
  if (Status fine = CheckSegment(*segment, fd); !fine.ok()) return fine;
  std::shared_ptr<Connection> made(new Connection(std::move(info)));
  made->parts_ = std::make_unique<Parts>(std::move(calls), std::move(*segment), hello, threads);
  if (made->info_.device_kind == "cuda") {
    if (Status opened = made->OpenDevice(driver); !opened.ok()) return opened;
  }
  if (made->info_.heartbeat_ms > 0) {
    try {
      made->parts_->heartbeat = std::make_unique<Heartbeat>(
          made->view().header().heartbeat.word, std::chrono::milliseconds(made->info_.heartbeat_ms));
    } catch (const std::system_error&) {
      return Status(Code::kOutOfMemory, "cannot start the heartbeat thread. Hint: look at ulimit -u");
    }
  }
  return made;
}

Connection::~Connection() {
  if (parts_ == nullptr) return;
  if (forked()) {
    // The parent's threads do not exist here, its mappings are gone, its fds are closed: leave all as it is.
    [[maybe_unused]] const Parts* leaked = parts_.release();
    return;
  }
  Detach();
  // Before the parts close them: a child must not close whatever has their numbers by then.
  parts_->guard.Unwatch(parts_->timeline.request_bell());
  parts_->guard.Unwatch(parts_->timeline.completion_bell());
}

Result<Connection::Lock> Connection::Enter() {
  if (forked()) return ForkedChild();
  Lock lock(mutex_);
  if (detached_) return Status(Code::kUnreachable, "this session was disconnected");
  if (Status drained = parts_->timeline.Drain(); !drained.ok()) return drained;
  if (!parts_->forgotten.empty() && parts_->timeline.IsIdle()) AskForDrops();
  return lock;
}

void Connection::DropLater(std::uint64_t extent) {
  if (detached_) return;
  parts_->forgotten.push_back(extent);
  if (parts_->timeline.failure().ok() && parts_->timeline.IsIdle()) AskForDrops();
}

Status Connection::DropForgotten() {
  if (parts_->forgotten.empty()) return {};
  if (Status idle = parts_->timeline.AwaitAll(Patience::kUntilSignal); !idle.ok()) return idle;
  AskForDrops();
  return {};
}

// What is refused goes with the session.
void Connection::AskForDrops() {
  for (const std::uint64_t extent : std::exchange(parts_->forgotten, {})) {
    wire::DropExtentBody body;
    body.extent = extent;
    [[maybe_unused]] const Result<Reply> dropped = Ask(wire::MessageType::kDropExtent, body);
  }
}

Result<wire::Mapping> Connection::MakeBuffer(std::uint64_t bytes, std::uint64_t& id) {
  return Judged(client::MakeBuffer(parts_->calls, bytes, id));
}

Status Connection::ReserveSlab(std::uint64_t bytes) {
  return Judged(parts_->slab.Reserve(parts_->calls, bytes));
}

Result<Lease> Connection::TakeLease(const LeaseGrant& grant) {
  FrameMaps& domains = parts_->domains;
  FrameMaps& maps = parts_->device == nullptr ? domains : parts_->device->maps();
  return Judged(client::TakeLease(view(), parts_->calls, maps, grant));
}

void Connection::LetGoOfRevoked() {
  std::erase_if(parts_->leased, [](Weight* weight) { return weight->LetGoIfRevoked(); });
}

void Connection::Detach() {
  if (forked()) return;
  const Lock lock(mutex_);
  if (detached_) return;
  detached_ = true;
  if (parts_->device != nullptr) parts_->device->Close();
  if (parts_->timeline.failure().ok() && parts_->timeline.IsIdle()) AskForDrops();
  parts_->heartbeat.reset();
  // A child that kept the socket would keep the session from ending where pids are hidden.
  const ForkGuard::Pause pause(parts_->guard, parts_->calls.fd());
  parts_->calls.Close(parts_->timeline.failure().ok());
}

}  // namespace bitpager::client
