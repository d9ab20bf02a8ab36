#include "daemon/http_connection.h"

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/write.hpp>
#include <charconv>
#include <utility>

namespace bitpager::daemon {
namespace {

namespace beast = boost::beast;
namespace http = boost::beast::http;

constexpr std::size_t kMostEvents = 2 * EventLog::kKept;  // that wait for one client
constexpr std::size_t kMostTargetBytes = 2048;

std::string_view View(beast::string_view text) {
  return {text.data(), text.size()};
}

// For every answer: nothing of it may be framed, guessed at, or fetch anything from elsewhere.
template <typename Fields>
void SetCommon(Fields& fields) {
  fields.set(http::field::server, "bitpagerd");
  fields.set("Content-Security-Policy",
             "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors "
             "'none'");
  fields.set("X-Content-Type-Options", "nosniff");
  fields.set("X-Frame-Options", "DENY");
  fields.set("Referrer-Policy", "no-referrer");
  fields.set("Cross-Origin-Resource-Policy", "same-origin");
}

HttpReply BadRequest(const std::string& why) {
  return ErrorReply(400, "protocol", why);
}

}  // namespace

HttpConnection::HttpConnection(boost::asio::ip::tcp::socket socket, HttpRoom& room)
    : room_(room), stream_(std::move(socket)), buffer_(2 * std::size_t{room.limits.header_bytes}) {}

HttpConnection::~HttpConnection() {
  room_.closed(this);
}

void HttpConnection::Start() {
  Read(room_.limits.header_ms);
}

void HttpConnection::Close() {
  beast::error_code ignored;
  stream_.socket().shutdown(boost::asio::ip::tcp::socket::shutdown_both, ignored);
  stream_.close();
}

void HttpConnection::Refuse() {
  request_.emplace();
  Write(ErrorReply(503, "full", "too many connections."), false);
}

// ---- requests

void HttpConnection::Read(std::uint32_t limit_ms) {
  request_.emplace();
  request_->header_limit(room_.limits.header_bytes);
  request_->body_limit(0);
  waiting_since_ = std::chrono::steady_clock::now();
  stream_.expires_after(std::chrono::milliseconds(limit_ms));
  http::async_read_header(
      stream_, buffer_, *request_,
      [self = shared_from_this()](beast::error_code error, std::size_t) { self->OnRead(error); });
}

void HttpConnection::OnRead(beast::error_code error) {
  waiting_since_.reset();
  if (!error) return Answer();
  if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    return Write(ErrorReply(431, "protocol", "the request's header is too long."), false);
  }
  if (error == http::error::body_limit)
    return Write(ErrorReply(413, "protocol", "requests have no body here."), false);
  const bool nonsense = error.category() == http::make_error_code(http::error::bad_method).category() &&
                        error != http::error::end_of_stream && error != http::error::partial_message;
  if (nonsense) return Write(BadRequest("this is no HTTP request."), false);
  Close();
}

std::optional<HttpReply> HttpConnection::Fault() const {
  const auto& request = request_->get();
  if (request.method() != http::verb::get && request.method() != http::verb::head) {
    HttpReply out = ErrorReply(405, "unsupported", "only GET and HEAD: nothing is changed here.");
    out.extra_name = "Allow";
    out.extra_value = "GET, HEAD";
    return out;
  }
  if (request.version() != 10 && request.version() != 11) return BadRequest("HTTP 1.0 or 1.1.");
  if (request_->chunked() || request_->content_length().value_or(0) > 0) {
    return ErrorReply(413, "protocol", "requests have no body here.");
  }
  const beast::string_view target = request.target();
  if (target.empty() || target.front() != '/') return BadRequest("the target is no path.");
  if (target.size() > kMostTargetBytes) return ErrorReply(414, "protocol", "the target is too long.");
  const auto host = request.find(http::field::host);
  if (host == request.end() && request.version() == 11) return BadRequest("the request names no host.");
  const bool foreign = room_.own_host_only && host != request.end() && !IsOwnHost(View(host->value()));
  if (foreign || request.count(http::field::host) > 1) {
    return ErrorReply(403, "permission_denied",
                      "the Host header does not name this machine. Hint: open it as localhost or 127.0.0.1.");
  }
  return std::nullopt;
}

void HttpConnection::Answer() {
  room_.site.CountRequest();
  if (const auto fault = Fault(); fault) return Write(*fault, false);
  const auto& request = request_->get();
  const std::string_view target = View(request.target());
  const std::string_view path = target.substr(0, target.find('?'));
  const std::string_view query =
      path.size() == target.size() ? std::string_view() : target.substr(path.size() + 1);
  if (path == "/api/stream" && request.method() == http::verb::get) return BeginStream(query);
  Write(room_.site.Answer(path, query, View(request[http::field::if_none_match])), request.keep_alive());
}

void HttpConnection::Write(const HttpReply& reply, bool keep) {
  const auto& request = request_->get();
  const bool head = request.method() == http::verb::head;
  const bool empty = head || reply.status == 304;
  keep_ = keep;
  body_ = reply.text;
  Response& response = response_.emplace();
  response.result(reply.status);
  response.version(11);
  response.keep_alive(keep);
  SetCommon(response);
  if (!reply.type.empty())
    response.set(http::field::content_type, beast::string_view(reply.type.data(), reply.type.size()));
  if (reply.etag.empty()) {
    response.set(http::field::cache_control, "no-store");
  } else {
    response.set(http::field::cache_control, "no-cache");
    response.set(http::field::etag, beast::string_view(reply.etag.data(), reply.etag.size()));
  }
  if (!reply.extra_name.empty()) {
    response.set(beast::string_view(reply.extra_name.data(), reply.extra_name.size()),
                 beast::string_view(reply.extra_value.data(), reply.extra_value.size()));
  }
  if (!empty) response.body() = beast::span<const char>(reply.body.data(), reply.body.size());
  if (reply.status != 304) response.content_length(reply.body.size());
  stream_.expires_after(std::chrono::milliseconds(room_.limits.write_ms));
  http::async_write(stream_, *response_, [self = shared_from_this()](beast::error_code error, std::size_t) {
    self->OnWritten(error);
  });
}

void HttpConnection::OnWritten(beast::error_code error) {
  response_.reset();
  body_.reset();
  if (error || !keep_) return Close();
  Read(room_.limits.idle_ms);
}

// ---- streams

// A header that is no number is of another server's stream.
std::optional<std::uint64_t> HttpConnection::LastEventId() const {
  const std::string_view text = View(request_->get()["Last-Event-ID"]);
  std::uint64_t id = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), id);
  const bool whole = !text.empty() && parsed.ec == std::errc() && parsed.ptr == text.data() + text.size();
  return whole ? std::optional(id) : std::nullopt;
}

void HttpConnection::BeginStream(std::string_view query) {
  const auto cells = NumberIn(query, "cells", kLeastCells, kMostCells);
  const auto had = NumberIn(query, "last_event_id", 0, ~std::uint64_t{0});
  for (const auto& bad : {cells.status(), had.status()}) {
    if (!bad.ok()) return Write(ErrorReply(400, "invalid_argument", bad.message()), false);
  }
  // A browser that reconnects by itself keeps the address and sends the newer place: the later one counts.
  had_ = std::max(*had, LastEventId());
  cells_ = cells->value_or(kUsualCells);
  http::response<http::empty_body> header;
  header.version(11);
  header.result(http::status::ok);
  header.keep_alive(false);  // it ends with the connection
  SetCommon(header);
  header.set(http::field::content_type, "text/event-stream");
  header.set(http::field::cache_control, "no-store");
  sending_.clear();
  beast::error_code ignored;
  http::serializer<false, http::empty_body> serializer(header);
  while (!serializer.is_header_done()) {
    serializer.next(ignored, [&](beast::error_code&, const auto& buffers) {
      for (const auto part : beast::buffers_range_ref(buffers)) {
        sending_.append(static_cast<const char*>(part.data()), part.size());
      }
      serializer.consume(beast::buffer_bytes(buffers));
    });
  }
  stream_.expires_never();
  if (!room_.take_stream(shared_from_this())) {
    return Write(ErrorReply(503, "full", "too many streams."), false);
  }
  WatchClient();
  SendOut();
}

// Writes `sending_`, then whatever is next.
void HttpConnection::SendOut() {
  sends_ = true;
  stream_.expires_after(std::chrono::milliseconds(room_.limits.write_ms));
  boost::asio::async_write(stream_, boost::asio::buffer(sending_),
                           [self = shared_from_this()](beast::error_code error, std::size_t) {
                             self->sends_ = false;
                             error ? self->Close() : self->Pump();
                           });
}

// A client that has gone is noticed at once, and what one may still say is not kept.
void HttpConnection::WatchClient() {
  stream_.async_read_some(boost::asio::buffer(ignored_),
                          [self = shared_from_this()](beast::error_code error, std::size_t) {
                            error ? self->Close() : self->WatchClient();
                          });
}

void HttpConnection::SendStatus(const Text& json) {
  status_ = json;
  Pump();
}

void HttpConnection::SendPages(const Text& json) {
  if (pages_sent_ != nullptr && *pages_sent_ == *json) return;
  pages_ = json;
  Pump();
}

void HttpConnection::Resume(std::uint64_t place, const std::vector<Event>& missed) {
  place_ = place;
  for (const Event& event : missed) {
    events_.emplace_back(event.id, std::make_shared<const std::string>(ToJson(event)));
  }
}

void HttpConnection::SendEvent(std::uint64_t id, const Text& json) {
  if (events_.size() >= kMostEvents) return Close();
  events_.emplace_back(id, json);
  Pump();
}

void HttpConnection::SendComment(const Text& text) {
  comment_ = text;
  Pump();
}

// Sends the next message, if none is being sent: events first, then the status, then the page map. Each says
// up to which event its client has them all.
void HttpConnection::Pump() {
  if (sends_ || !stream_.socket().is_open()) return;
  const auto take = [&](const char* name, const Text& json) {
    sending_ = "id: " + std::to_string(place_) + "\nevent: " + name + "\ndata: " + *json + "\n\n";
  };
  if (!events_.empty()) {
    place_ = events_.front().first;
    take("event", events_.front().second);
    events_.pop_front();
  } else if (status_ != nullptr) {
    take("status", status_);
    status_.reset();
  } else if (pages_ != nullptr) {
    take("pages", pages_);
    pages_sent_ = std::move(pages_);
    pages_.reset();
  } else if (comment_ != nullptr) {
    sending_ = ": " + *comment_ + "\n\n";
    comment_.reset();
  } else {
    return;
  }
  SendOut();
}

}  // namespace bitpager::daemon
