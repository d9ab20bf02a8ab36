// One HTTP connection: reads requests, answers them, or becomes a stream of Server-Sent Events. Lives as long
// as an operation of it is under way. The HTTP thread.
#pragma once

#include <array>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/span_body.hpp>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "daemon/http_server.h"

namespace bitpager::daemon {

class HttpConnection;

// What a connection asks of the server.
struct HttpRoom {
  HttpSite& site;
  const HttpLimits& limits;
  bool own_host_only = true;  // requests must name this machine
  // Whether one more may stream; then it is told of whatever there is to stream.
  std::function<bool(const std::shared_ptr<HttpConnection>&)> take_stream;
  std::function<void(HttpConnection*)> closed;
};

class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  using Text = std::shared_ptr<const std::string>;

  HttpConnection(boost::asio::ip::tcp::socket socket, HttpRoom& room);
  ~HttpConnection();
  HttpConnection(const HttpConnection&) = delete;
  HttpConnection& operator=(const HttpConnection&) = delete;

  void Start();
  void Close();
  // Answers that the server is full, and closes.
  void Refuse();
  // Waits for a request, since then; nothing is being answered.
  [[nodiscard]] std::optional<std::chrono::steady_clock::time_point> waiting_since() const {
    return waiting_since_;
  }

  // ---- streams. What is newer takes the place of a status or page map that was not sent yet.
  [[nodiscard]] std::uint64_t cells() const { return cells_; }
  // The last event that its client had of an earlier stream.
  [[nodiscard]] std::optional<std::uint64_t> had() const { return had_; }
  // Before anything is sent: the client has the events up to `place`, and gets these first.
  void Resume(std::uint64_t place, const std::vector<Event>& missed);
  void SendStatus(const Text& json);
  void SendPages(const Text& json);                    // when it is not what was sent last
  void SendEvent(std::uint64_t id, const Text& json);  // closes when too many wait
  void SendComment(const Text& text);

 private:
  using Request = boost::beast::http::request_parser<boost::beast::http::empty_body>;
  using Response = boost::beast::http::response<boost::beast::http::span_body<const char>>;

  void Read(std::uint32_t limit_ms);
  void OnRead(boost::beast::error_code error);
  void Answer();
  // Empty: the request may be answered.
  [[nodiscard]] std::optional<HttpReply> Fault() const;
  void Write(const HttpReply& reply, bool keep);
  void OnWritten(boost::beast::error_code error);
  void BeginStream(std::string_view query);
  [[nodiscard]] std::optional<std::uint64_t> LastEventId() const;
  void WatchClient();
  void Pump();
  void SendOut();

  HttpRoom& room_;
  boost::beast::tcp_stream stream_;
  boost::beast::flat_buffer buffer_;
  std::optional<Request> request_;
  std::optional<Response> response_;
  Text body_;  // of the response
  bool keep_ = false;
  std::optional<std::chrono::steady_clock::time_point> waiting_since_;

  // ---- streams
  std::uint64_t cells_ = 0;
  std::optional<std::uint64_t> had_;
  std::uint64_t place_ = 0;  // id of the last event that was sent, or came before the stream
  Text status_;              // to be sent
  Text pages_;               // likewise
  Text pages_sent_;
  std::deque<std::pair<std::uint64_t, Text>> events_;  // with their ids
  Text comment_;
  std::string sending_;
  bool sends_ = false;
  std::array<char, 64> ignored_{};
};

}  // namespace bitpager::daemon
