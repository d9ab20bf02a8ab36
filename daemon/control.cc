#include "daemon/control.h"

#include <sys/stat.h>

#include <cstring>
#include <string_view>
#include <vector>

#include "client/wire/text.h"
#include "daemon/host_room.h"
#include "daemon/pidfd.h"
#include "daemon/shared_memory.h"

namespace bitpager::daemon {

using wire::Code;
using wire::MessageType;
using wire::Status;

namespace {

Status WrongSize() {
  return {Code::kProtocol,
          "a message whose body has the wrong size. Hint: client and daemon are of different "
          "versions; use the library that came with the daemon."};
}

Status CheckRegistration(const wire::RegisterBufferBody& body, int fds) {
  if (body.kind > wire::BufferKind::kDeviceVmm) {
    return {Code::kInvalidArgument,
            "unknown kind of memory " + std::to_string(static_cast<unsigned>(body.kind)) + "."};
  }
  if (body.bytes == 0 || body.writable > 1 || body.sealed > 1) {
    return {Code::kInvalidArgument, "registering a buffer takes a size above 0 and flags of 0 or 1."};
  }
  if (body.kind == wire::BufferKind::kFile && fds != 1) {
    return {Code::kInvalidArgument, "registering a file takes exactly one fd."};
  }
  if (body.kind == wire::BufferKind::kDeviceIpc && fds != 0) {
    return {Code::kInvalidArgument, "registering memory by its handle takes no fd."};
  }
  const bool whole = body.handle_bytes > 0 && fds > 0 &&
                     body.bytes / static_cast<unsigned>(fds) == body.handle_bytes &&
                     body.bytes % body.handle_bytes == 0;
  if (body.kind == wire::BufferKind::kDeviceVmm && !whole) {
    return {Code::kInvalidArgument, "registering a range of a device takes one fd for each of its " +
                                        std::to_string(body.handle_bytes) + "-byte handles; " +
                                        std::to_string(fds) + " came for " + std::to_string(body.bytes) +
                                        " bytes."};
  }
  return {};
}

bool NeedsSession(MessageType type) {
  switch (type) {
    case MessageType::kHello:
    case MessageType::kLimit:
    case MessageType::kEvict:
    case MessageType::kDrain:
      return false;
    default:
      return true;
  }
}

}  // namespace

void Control::Handle(const ConnectionRef& connection, wire::Packet& packet) {
  Handle(connection, packet, core_.registry.FindSession(connection->session));
}

void Control::HandleCommand(const ConnectionRef& connection, wire::Packet& packet) {
  Handle(connection, packet, nullptr);
}

void Control::Handle(const ConnectionRef& connection, wire::Packet& packet, Session* session) {
  Answer answer;
  Call call{connection, packet, session, answer};
  Status status = wire::CheckPacket(packet);
  // Without a whole header there is nothing to answer.
  if (status.code() == Code::kProtocol) {
    ++core_.counters.errors[Code::kProtocol];
    connection->HangUp();
    return;
  }
  if (status.ok()) status = Answered(call);
  answer.body.code = static_cast<std::uint32_t>(status.code());
  if (!status.ok()) {
    wire::CopyText(answer.body.message, status.message());
    ++core_.counters.errors[status.code()];
    answer.fd_count = 0;
    TellRefusal(call, status);
  }
  const wire::MessageHeader header = packet.header();
  const Status sent = wire::SendBody(connection->socket.get(), header.type, header.sequence, answer.body,
                                     {answer.fds.data(), answer.fd_count});
  if (!sent.ok() || status.code() == Code::kProtocol) connection->HangUp();
}

// Want of memory is what operators can do something about.
void Control::TellRefusal(const Call& call, const Status& why) {
  const Code code = why.code();
  if (code != Code::kBudgetExceeded && code != Code::kQuotaExceeded && code != Code::kOutOfMemory) return;
  std::string job;
  wire::HelloBody hello;
  if (call.session != nullptr) {
    job = core_.registry.FindJob(call.session->identity().job)->name;
  } else if (wire::ReadBody(call.packet, hello) && wire::IsTerminated(hello.job) &&
             wire::IsPlainName(wire::TextOf(hello.job))) {
    job = std::string(wire::TextOf(hello.job));
  }
  core_.TellSeldom({"error", job, 0, why.message()});
}

Status Control::Answered(Call& call) {
  const MessageType type = call.packet.header().type;
  if (call.connection->peer.uid == core_.settings.ambiguous_uid) {
    return {
        Code::kPermissionDenied,
        "you are uid " + std::to_string(call.connection->peer.uid) +
            " here, which stands for every user that the daemon's user namespace does not map, so jobs of "
            "several users could not be told apart. Hint: map your uid into the daemon's namespace, or "
            "start a daemon in yours."};
  }
  if (NeedsSession(type) && call.session == nullptr) {
    return {Code::kProtocol, "this message needs a session: say hello first."};
  }
  switch (type) {
    case MessageType::kHello:
      return Hello(call);
    case MessageType::kDetach:
      return Detach(call);
    case MessageType::kCreateBuffer:
      return CreateBuffer(call);
    case MessageType::kRegisterBuffer:
      return RegisterBuffer(call);
    case MessageType::kReleaseBuffer:
      return ReleaseBuffer(call);
    case MessageType::kCreateArena:
      return CreateArena(call);
    case MessageType::kCreateWeight:
      return CreateWeight(call);
    case MessageType::kDropExtent:
      return DropExtent(call);
    case MessageType::kMapDomain:
      return MapDomain(call);
    case MessageType::kUsage:
      return Usage(call);
    case MessageType::kMakeRoom:
      return MakeRoom(call);
    case MessageType::kLimit:
      return Limit(call);
    case MessageType::kEvict:
      return Evict(call);
    case MessageType::kDrain:  // the node's
      break;
  }
  return {Code::kProtocol, "unknown message type " + std::to_string(static_cast<unsigned>(type)) + "."};
}

Status Control::Hello(Call& call) {
  wire::HelloBody body;
  if (!wire::ReadBody(call.packet, body)) return WrongSize();
  if (call.connection->greeted) {
    return {Code::kAlreadyExists, "this connection has said hello already. Hint: connect anew."};
  }
  if (call.packet.fd_count > 1) return {Code::kInvalidArgument, "hello carries at most one fd, the pidfd."};
  const std::string_view device = wire::TextOf(body.device);
  if (!device.empty() && device != core_.device_info.uuid) {
    return {Code::kNotFound, "this daemon serves " + core_.settings.served_devices + ", not " +
                                 std::string(device) +
                                 ". Hint: bitpagerd --device and --device-index say which it serves."};
  }
  wire::Result<Session*> opened = lifecycle_.Open(call.connection->peer, body);
  if (!opened.ok()) return opened.status();
  Session& session = **opened;
  Status watched = TakePidfd(call, session);
  if (!watched.ok()) {
    session.detached = true;
    lifecycle_.Close(session.identity().id, true);
    return watched;
  }
  core_.BeginPeaks(session);
  call.connection->session = session.identity().id;
  call.connection->greeted = true;
  call.connection->attached.store(true, std::memory_order_relaxed);
  const Job& job = *core_.registry.FindJob(session.identity().job);
  wire::ReplyBody& reply = call.answer.body;
  reply.values[0] = session.identity().id.value;
  reply.values[1] = job.id.value;
  reply.values[2] = core_.page_bytes();
  reply.values[3] = session.heartbeat_ns != 0 ? core_.settings.heartbeat_interval_ms : 0;
  reply.values[4] = static_cast<std::uint64_t>(job.linger_ms);
  reply.values[5] = core_.device_info.synchronous_clients ? 1 : 0;
  reply.values[6] = core_.device_info.exports ? 0 : 1;
  wire::CopyText(reply.message, core_.device_info.kind + " " + core_.device_info.uuid);
  session.segment().header().page_bytes = core_.page_bytes();
  call.answer.AddFd(session.segment_fd());
  call.answer.AddFd(session.request_bell());
  call.answer.AddFd(session.completion_bell());
  return {};
}

Status Control::TakePidfd(Call& call, Session& session) {
  if (call.packet.fd_count == 0) {
    session.heartbeat_ns = core_.clock.NowNs();
    return {};
  }
  if (!IsPidfd(call.packet.fds[0].get())) {
    return {Code::kInvalidArgument, "the fd that came with hello is not a pidfd."};
  }
  return watch_(call.connection, std::move(call.packet.fds[0]));
}

Status Control::Detach(Call& call) {
  lifecycle_.Close(call.session->identity().id, true);
  call.connection->session = {};
  call.connection->attached.store(false, std::memory_order_relaxed);
  return {};
}

Status Control::CreateBuffer(Call& call) {
  wire::CreateBufferBody body;
  if (!wire::ReadBody(call.packet, body)) return WrongSize();
  constexpr std::uint64_t kMost = std::uint64_t{1} << 46;
  if (body.bytes == 0 || body.bytes > kMost) {
    return {Code::kInvalidArgument, "a buffer has 1 byte to 64 TiB, not " + std::to_string(body.bytes) + "."};
  }
  Job& job = *core_.registry.FindJob(call.session->identity().job);
  Status room = CheckHostRoom(core_, job, body.bytes, "a shared buffer");
  if (!room.ok()) return room;
  wire::Result<wire::UniqueFd> memory = MakeSealedMemory("bitpager-buffer", body.bytes);
  if (!memory.ok()) return memory.status();
  wire::Result<kernels::Import> import = core_.device.ImportMemory({memory->get(), body.bytes, true, true});
  if (!import.ok()) return import.status();
  const wire::BufferId id = call.session->AddBuffer(*import, true, true);
  job.buffer_bytes += body.bytes;
  call.answer.body.values[0] = id.value;
  call.answer.body.values[1] = body.bytes;
  call.answer.own = std::move(*memory);
  call.answer.AddFd(call.answer.own.get());
  return {};
}

Status Control::RegisterBuffer(Call& call) {
  wire::RegisterBufferBody body;
  if (!wire::ReadBody(call.packet, body)) return WrongSize();
  Status fine = CheckRegistration(body, call.packet.fd_count);
  if (!fine.ok()) return fine;
  if (!call.session->HasRoomFor(body.bytes)) {
    return {Code::kQuotaExceeded, "a session registers at most 4 TiB in 16384 buffers; " +
                                      std::to_string(body.bytes) +
                                      " bytes more pass that. Hint: release some."};
  }
  kernels::ImportSource source;
  std::vector<int> fds;
  for (int i = 0; i < call.packet.fd_count; ++i) {
    fds.push_back(call.packet.fds[static_cast<std::size_t>(i)].get());
  }
  source.kind = body.kind;
  source.fd = fds.empty() ? -1 : fds.front();
  source.fds = fds;
  source.bytes = body.bytes;
  source.sealed = body.sealed == 1;
  source.writable = body.writable == 1;
  source.handle_bytes = body.handle_bytes;
  std::memcpy(source.handle.data(), body.handle, wire::kIpcHandleBytes);
  wire::Result<kernels::Import> import = core_.device.ImportMemory(source);
  if (!import.ok()) return import.status();
  call.answer.body.values[0] = call.session->AddBuffer(*import, body.writable == 1, false).value;
  call.answer.body.values[1] = body.bytes;
  return {};
}

Status Control::ReleaseBuffer(Call& call) {
  wire::ReleaseBufferBody body;
  if (!wire::ReadBody(call.packet, body)) return WrongSize();
  return lifecycle_.ReleaseBuffer(*call.session, wire::BufferId{body.buffer});
}

Status Control::CreateArena(Call& call) {
  wire::CreateArenaBody body;
  if (!wire::ReadBody(call.packet, body)) return WrongSize();
  wire::Result<Extent*> extent = lifecycle_.CreateArena(*call.session, body);
  if (!extent.ok()) return extent.status();
  const Arena& arena = *(*extent)->arena();
  wire::ReplyBody& reply = call.answer.body;
  reply.values[0] = (*extent)->id.value;
  reply.values[1] = (*extent)->pages;
  reply.values[2] = arena.units();
  reply.values[3] = arena.applied_step;
  reply.values[4] = arena.layout.units_per_page;
  tasks_.Touch();
  return {};
}

Status Control::CreateWeight(Call& call) {
  wire::CreateWeightBody body;
  if (!wire::ReadBody(call.packet, body)) return WrongSize();
  wire::Result<Extent*> extent = lifecycle_.CreateWeight(*call.session, body);
  if (!extent.ok()) return extent.status();
  call.answer.body.values[0] = (*extent)->id.value;
  call.answer.body.values[1] = (*extent)->pages;
  call.answer.body.values[2] = (*extent)->weight()->format.layout.blocks_per_page;
  tasks_.Touch();
  return {};
}

Status Control::DropExtent(Call& call) {
  wire::DropExtentBody body;
  if (!wire::ReadBody(call.packet, body)) return WrongSize();
  tasks_.Touch();
  // What the client pushed before it asked comes first: hints, which it does not wait for, end here.
  Session& session = *call.session;
  if (!session.closing && !session.TakeRequests()) {
    tasks_.FailSession(session, {Code::kProtocol, "the request ring holds what no client writes."});
  }
  tasks_.Advance(session);
  return lifecycle_.Drop(session, wire::ExtentId{body.extent});
}

Status Control::MakeRoom(Call& call) {
  wire::MakeRoomBody body;
  if (!wire::ReadBody(call.packet, body)) return WrongSize();
  if (body.bytes > core_.device_info.total_bytes) {
    return {Code::kBudgetExceeded, "room for " + std::to_string(body.bytes) + " bytes on a device of " +
                                       std::to_string(core_.device_info.total_bytes) + "."};
  }
  const Pressure::Room room = pressure_.Ask(body.bytes, core_.clock.NowNs());
  call.answer.body.values[0] = room.free_bytes;
  call.answer.body.values[1] = room.leaving_bytes;
  call.answer.body.values[2] = room.final ? 1 : 0;
  tasks_.Touch();
  return {};
}

Status Control::MapDomain(Call& call) {
  wire::MapDomainBody body;
  if (!wire::ReadBody(call.packet, body)) return WrongSize();
  const Job& job = *core_.registry.FindJob(call.session->identity().job);
  const kernels::DeviceSegment* const segment = core_.mover.ExportedBy(body.mapping, job.domain);
  if (segment == nullptr) {
    return {Code::kNotFound, "no mapping " + std::to_string(body.mapping) + " in this job's share domain."};
  }
  if (!core_.device_info.in_host_memory) {
    // A handle of the device's memory: neither reopened nor sized by its descriptor.
    call.answer.body.values[0] = segment->frames * core_.page_bytes();
    call.answer.AddFd(segment->fd);
    return {};
  }
  wire::Result<wire::UniqueFd> read_only = ReopenReadOnly(segment->fd);
  if (!read_only.ok()) return read_only.status();
  struct stat info {};
  if (::fstat(read_only->get(), &info) != 0) return {Code::kInternal, "cannot size a mapping."};
  call.answer.body.values[0] = static_cast<std::uint64_t>(info.st_size);
  call.answer.own = std::move(*read_only);
  call.answer.AddFd(call.answer.own.get());
  return {};
}

}  // namespace bitpager::daemon
