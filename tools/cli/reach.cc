#include "tools/cli/reach.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <zmq.hpp>

#include "client/wire/text.h"
#include "client/wire/user_folder.h"
#include "daemon/config.h"

namespace bitpager::cli {
namespace {

using nlohmann::json;
using wire::Code;
using wire::Result;
using wire::Status;

constexpr std::string_view kScheme = "ipc://";
constexpr const char* kStatusSuffix = ".status";
constexpr const char* kEventsSuffix = ".events";

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

Status CannotReach(const std::string& path, int error) {
  const std::string start = "cannot reach bitpagerd at " + path + " (" + std::strerror(error) + "). Hint: ";
  if (error == EACCES || error == EPERM) {
    return {Code::kPermissionDenied, start + "sudo usermod -aG bitpager $USER, then log in again"};
  }
  if (error == ECONNREFUSED) return {Code::kUnreachable, start + "the daemon that made it is gone; start it"};
  if (error == EPROTOTYPE || error == ENOTSOCK) {
    return {Code::kUnreachable, start + "the file is another program's; name the daemon's with --socket"};
  }
  return {Code::kUnreachable, start + "start bitpagerd, or name its socket with --socket"};
}

Result<wire::UniqueFd> Connect(const std::string& path, int type) {
  const auto address = wire::UnixAddress(path);
  if (!address.ok()) return address.status();
  wire::UniqueFd fd(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  if (!fd) return CannotReach(path, errno);
  const timeval limit{3, 0};  // a full backlog must not block for ever
  ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  while (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof(*address)) != 0) {
    if (errno != EINTR) return CannotReach(path, errno);
  }
  return fd;
}

// A place where nobody is does not end the search; a daemon that refuses does.
Result<Line> ConnectFirst(const std::vector<std::string>& places, const std::string& suffix, int type) {
  std::string tried;
  for (const std::string& place : places) {
    Result<wire::UniqueFd> fd = Connect(place + suffix, type);
    if (fd.ok()) return Line{std::move(*fd), place};
    if (places.size() == 1 || fd.status().code() != Code::kUnreachable) return fd.status();
    tried += (tried.empty() ? "" : ", ") + place;
  }
  return Status(Code::kUnreachable, "no bitpagerd answers at " + tried +
                                        ". Hint: start bitpagerd, or name its socket with --socket or "
                                        "BITPAGER_SOCKET");
}

// One question, one answer.
Result<std::string> Query(const std::string& endpoint, const std::string& question, int timeout_ms) {
  try {
    zmq::context_t context(1);
    zmq::socket_t dealer(context, zmq::socket_type::dealer);
    dealer.set(zmq::sockopt::linger, 0);
    dealer.set(zmq::sockopt::rcvtimeo, timeout_ms);
    dealer.set(zmq::sockopt::sndtimeo, timeout_ms);
    dealer.connect(endpoint);
    dealer.send(zmq::buffer(question), zmq::send_flags::none);
    zmq::message_t reply;
    if (!dealer.recv(reply, zmq::recv_flags::none)) return TimedOut(endpoint, timeout_ms);
    return reply.to_string();
  } catch (const zmq::error_t& error) {
    return Status(Code::kUnreachable, "cannot ask " + endpoint + " (" + error.what() + ")");
  }
}

// Waits until the socket can be read. kUnreachable after the time.
Status AwaitAnswer(const Line& line, int timeout_ms) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::milliseconds(timeout_ms);
  while (true) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()).count();
    pollfd item{line.fd.get(), POLLIN, 0};
    const int ready = ::poll(&item, 1, left > 0 ? static_cast<int>(left) : 0);
    if (ready > 0) return {};
    if (ready == 0) return TimedOut(line.socket, timeout_ms);
    if (errno != EINTR) return {Code::kInternal, std::string("poll failed: ") + std::strerror(errno)};
  }
}

}  // namespace

std::vector<std::string> SocketPlaces(const std::string& named) {
  if (!named.empty()) return {named};
  const std::string from_environment = Environment("BITPAGER_SOCKET");
  if (!from_environment.empty()) return {from_environment};
  const std::string own = wire::FindUserFolder().path;
  return {daemon::kSystemSocketPath, own + "/bitpager.sock", own + "/private.sock"};
}

Result<Endpoints> FindEndpoints(const Target& target) {
  Endpoints out{target.socket, target.status_endpoint, target.events_endpoint};
  if (out.status.empty()) {
    const Result<Line> there = ConnectFirst(SocketPlaces(target.socket), kStatusSuffix, SOCK_STREAM);
    if (!there.ok()) return there.status();
    out.socket = there->socket;
    out.status = std::string(kScheme) + out.socket + kStatusSuffix;
  } else if (out.status.rfind(kScheme, 0) == 0) {
    const auto there = Connect(out.status.substr(kScheme.size()), SOCK_STREAM);
    if (!there.ok()) return there.status();
  }
  const std::string_view suffix = kStatusSuffix;
  const bool usual = out.status.size() > suffix.size() && out.status.ends_with(suffix);
  if (out.events.empty() && usual) {
    out.events = out.status.substr(0, out.status.size() - suffix.size()) + kEventsSuffix;
  }
  return out;
}

Status TimedOut(const std::string& where, int timeout_ms) {
  return {Code::kUnreachable, "bitpagerd at " + where + " did not answer within " +
                                  std::to_string(timeout_ms) +
                                  " ms. Hint: look at its log; --timeout waits longer"};
}

Status CheckReply(const std::string& reply) {
  const json parsed = json::parse(reply, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded() || !parsed.is_object()) {
    return {Code::kProtocol,
            "the daemon's reply is not JSON. Hint: is another program serving that endpoint?"};
  }
  const auto error = parsed.find("error");
  if (error == parsed.end()) return {};
  const bool readable = error->is_object() && error->contains("message") && (*error)["message"].is_string();
  return {Code::kInternal,
          readable ? (*error)["message"].get<std::string>() : std::string("the daemon reported an error")};
}

Result<StatusReply> AskStatus(const Target& target, const std::string& query) {
  const Result<Endpoints> there = FindEndpoints(target);
  if (!there.ok()) return there.status();
  const Result<std::string> reply = Query(there->status, json{{"query", query}}.dump(), target.timeout_ms);
  if (!reply.ok()) return reply.status();
  const Status checked = CheckReply(*reply);
  if (!checked.ok()) return checked;
  return StatusReply{there->socket, *reply};
}

Result<Line> OpenLine(const Target& target) {
  return ConnectFirst(SocketPlaces(target.socket), "", SOCK_SEQPACKET);
}

Result<wire::ReplyBody> AskRaw(const Line& line, wire::MessageType type, std::span<const std::byte> body,
                               int timeout_ms) {
  constexpr std::uint32_t kSequence = 1;
  wire::MessageHeader header;
  header.type = type;
  header.body_bytes = static_cast<std::uint32_t>(body.size());
  header.sequence = kSequence;
  std::vector<std::byte> data(sizeof(header) + body.size());
  std::memcpy(data.data(), &header, sizeof(header));
  if (!body.empty()) std::memcpy(data.data() + sizeof(header), body.data(), body.size());
  Status status = wire::SendPacket(line.fd.get(), data);
  if (status.ok()) status = AwaitAnswer(line, timeout_ms);
  if (!status.ok()) return status;
  wire::Packet packet;
  status = wire::ReceivePacket(line.fd.get(), packet);
  if (!status.ok()) return status;
  if (packet.closed) {
    return Status(Code::kDaemonLost, "bitpagerd at " + line.socket +
                                         " closed the connection without an answer. Hint: look at its log");
  }
  status = wire::CheckPacket(packet);
  if (!status.ok()) return status;
  wire::ReplyBody reply;
  if (packet.header().sequence != kSequence || !wire::ReadBody(packet, reply)) {
    return Status(Code::kProtocol,
                  "bitpagerd answered something else than was asked. Hint: bitpager and "
                  "bitpagerd should be of one release");
  }
  if (reply.code != 0) return Status(static_cast<Code>(reply.code), std::string(wire::TextOf(reply.message)));
  return reply;
}

}  // namespace bitpager::cli
