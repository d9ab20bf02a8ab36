// Reaching a daemon: where its sockets may lie, the query over ZeroMQ, the command over the Unix socket. One
// thread; every wait has an end.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "client/wire/fd_socket.h"
#include "client/wire/messages.h"
#include "client/wire/status.h"
#include "client/wire/unique_fd.h"

namespace bitpager::cli {

// Of the process. kUnreachableExit: no daemon answered, or it may not be talked to.
inline constexpr int kOkExit = 0;
inline constexpr int kFailureExit = 1;
inline constexpr int kUsageExit = 2;
inline constexpr int kUnreachableExit = 3;

struct Target {
  std::string socket;           // empty: BITPAGER_SOCKET, the system's, the user's, the user's private one
  std::string status_endpoint;  // empty: ipc://<socket>.status
  int timeout_ms = 3000;
  std::string events_endpoint = {};  // empty: ipc://<socket>.events
};

// Where a daemon's socket may be, in the order of search. A named one is the only one.
[[nodiscard]] std::vector<std::string> SocketPlaces(const std::string& named);

// Where a daemon that is there answers and publishes.
struct Endpoints {
  std::string socket;
  std::string status;
  std::string events;
};
// Tries the places with plain connects, which say what is wrong; ZeroMQ would try for ever without a word
// where nobody listens. `events` is empty where it was not given and cannot be told
// from the status endpoint. kUnreachable, kPermissionDenied.
[[nodiscard]] wire::Result<Endpoints> FindEndpoints(const Target& target);

// Of a query's answer: kProtocol (not JSON), or kInternal with the message of an error reply.
[[nodiscard]] wire::Status CheckReply(const std::string& reply);
// kUnreachable, with the time that was waited.
[[nodiscard]] wire::Status TimedOut(const std::string& where, int timeout_ms);

struct StatusReply {
  std::string socket;  // of the daemon that answered
  std::string json;    // its reply, whole
};
// Sends {"query":query}. kUnreachable, kPermissionDenied (cannot be reached), kProtocol (not JSON); an error
// reply comes back as kInternal with its message.
[[nodiscard]] wire::Result<StatusReply> AskStatus(const Target& target, const std::string& query);

// A connection for one command.
struct Line {
  wire::UniqueFd fd;
  std::string socket;
};
[[nodiscard]] wire::Result<Line> OpenLine(const Target& target);

// Sends the framed message and waits for its answer; a refusal comes back as its own code and message.
[[nodiscard]] wire::Result<wire::ReplyBody> AskRaw(const Line& line, wire::MessageType type,
                                                   std::span<const std::byte> body, int timeout_ms);
template <typename Body>
[[nodiscard]] wire::Result<wire::ReplyBody> Ask(const Line& line, wire::MessageType type, const Body& body,
                                                int timeout_ms) {
  static_assert(wire::kIsBody<Body>);
  return AskRaw(line, type, std::as_bytes(std::span(&body, 1)), timeout_ms);
}

}  // namespace bitpager::cli
