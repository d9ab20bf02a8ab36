// What tests of the HTTP server share: one with made-up snapshots under a stopped clock, and connections to
// it.
#pragma once

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "client/wire/unique_fd.h"
#include "daemon/http_server.h"

namespace bitpager::daemon {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using ::testing::StartsWith;
using wire::Code;

inline constexpr milliseconds kPatience{20'000};

class StoppedClock final : public Clock {
 public:
  [[nodiscard]] std::uint64_t NowNs() const override { return now_ns.load(); }
  std::atomic<std::uint64_t> now_ns{1'000'000'000};
};

// A connection to the server.
class Line {
 public:
  explicit Line(std::uint16_t port, int receive_buffer = 0)
      : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    if (receive_buffer > 0)
      ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  }
  void Send(const std::string& text) const {
    [[maybe_unused]] const ssize_t sent = ::send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL);
  }
  // Until `end` is in it, the server hung up, or patience ends.
  std::string Read(const std::string& end = "", milliseconds patience = kPatience) {
    const auto until = steady_clock::now() + patience;
    std::size_t looked = 0;  // at, and it is not there: texts are of many megabytes
    while (end.empty() || text_.find(end, looked) == std::string::npos) {
      looked = text_.size() < end.size() ? 0 : text_.size() - end.size();
      const auto left = std::chrono::duration_cast<milliseconds>(until - steady_clock::now());
      pollfd ready{fd_.get(), POLLIN, 0};
      if (left.count() <= 0 || ::poll(&ready, 1, static_cast<int>(left.count())) <= 0) break;
      char bytes[65536];
      const ssize_t got = ::recv(fd_.get(), bytes, sizeof(bytes), 0);
      if (got <= 0) {
        closed = true;
        break;
      }
      text_.append(bytes, static_cast<std::size_t>(got));
    }
    return text_;
  }
  void Forget() { text_.clear(); }
  void HangUp() { fd_.Reset(); }
  bool closed = false;

 private:
  wire::UniqueFd fd_;
  std::string text_;
};

inline std::string Get(const std::string& target, const std::string& host = "127.0.0.1",
                       const std::string& more = "") {
  return "GET " + target + " HTTP/1.1\r\nHost: " + host + "\r\n" + more + "\r\n";
}
inline std::string BodyOf(const std::string& reply) {
  return reply.substr(std::min(reply.size(), reply.find("\r\n\r\n") + 4));
}

class Http : public ::testing::Test {
 protected:
  void Start(HttpLimits limits = {}, const std::string& address = "127.0.0.1:0") {
    auto started = HttpServer::Bind(*ParseHttpAddress(address), site_, events_, limits);
    ASSERT_TRUE(started.ok()) << started.status().message();
    server_ = std::move(*started);
    port_ = server_->address().port;
    server_->Serve();
  }
  // The whole reply to these bytes; the connection is to be closed by the server.
  std::string Exchange(const std::string& bytes) {
    Line line(port_);
    line.Send(bytes);
    return line.Read();
  }
  std::string Ask(const std::string& target, const std::string& host = "127.0.0.1") {
    return Exchange(Get(target, host, "Connection: close\r\n"));
  }
  void ExpectServing() { EXPECT_THAT(Ask("/healthz"), StartsWith("HTTP/1.1 200 ")); }
  template <typename Condition>
  static bool Until(Condition condition) {
    const auto end = steady_clock::now() + kPatience;
    while (!condition()) {
      if (steady_clock::now() > end) return false;
      std::this_thread::sleep_for(milliseconds(2));
    }
    return true;
  }

  StoppedClock clock_;
  EventLog events_;
  std::atomic<int> taken_{0};
  std::atomic<int> painted_{0};
  std::atomic<bool> fail_{false};
  std::atomic<bool> draining_{false};
  std::atomic<std::size_t> padding_{0};
  HttpSite site_{{[this]() -> wire::Result<Snapshot> {
                    ++taken_;
                    if (fail_) return wire::Status(Code::kUnreachable, "no answer within 2 s.");
                    Snapshot s;
                    s.version = "0.1.0" + std::string(padding_, 'x');
                    s.page_bytes = 4096;
                    s.draining = draining_;
                    return s;
                  },
                  [this](std::uint64_t cells) -> wire::Result<PageMap> {
                    ++painted_;
                    if (fail_) return wire::Status(Code::kUnreachable, "no answer within 2 s.");
                    PageMap map;
                    map.devices.push_back({"cpu-0", "cpu", "cpu", 4096, cells, 1, {}, {}});
                    return map;
                  }},
                 events_,
                 clock_};
  std::unique_ptr<HttpServer> server_;
  std::uint16_t port_ = 0;
};

}  // namespace bitpager::daemon
