// HTTP for operators: answers GET and HEAD out of an HttpSite, and streams it to whoever listens. Changes
// nothing, asks nobody who he is; bound to this machine unless told otherwise. Owns its sockets and one
// thread, which sleeps when nobody asks; a client that is slow, or sends nonsense, costs its own connection
// alone.
//
// On Boost.Beast, which is headers alone: cpp-httplib comes from distributions as a shared C++ library only,
// which would bring this machine's C++ runtime and glibc into programs that carry their own, and takes a
// thread for each connection.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "client/wire/status.h"
#include "daemon/event.h"
#include "daemon/http_address.h"
#include "daemon/http_site.h"

namespace bitpager::daemon {

struct HttpLimits {
  std::size_t connections = 64;  // the one that waits longest makes room for a newer one
  std::size_t streams = 48;      // of them
  std::uint32_t header_bytes = 8192;
  std::uint32_t header_ms = 10'000;  // for a request to have come whole
  std::uint32_t idle_ms = 75'000;    // between requests of a connection
  std::uint32_t write_ms = 20'000;   // for an answer, or a message of a stream, to be taken
  std::uint32_t stream_ms = 1'000;   // between messages of a stream
};

class HttpServer {
 public:
  // Takes the address; nobody is answered before Serve. kPermissionDenied, kAlreadyExists (in use),
  // kInvalidArgument (no address of this machine), with a hint.
  [[nodiscard]] static wire::Result<std::unique_ptr<HttpServer>> Bind(const HttpAddress& address,
                                                                      HttpSite& site, EventLog& events,
                                                                      HttpLimits limits = {});
  // Starts the thread. Call it once.
  void Serve();
  ~HttpServer();  // closes every connection
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // As bound: with the port that was given where 0 was asked for.
  [[nodiscard]] const HttpAddress& address() const { return address_; }

 private:
  struct Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
  HttpAddress address_;
};

}  // namespace bitpager::daemon
