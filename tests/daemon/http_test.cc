// The HTTP server over real sockets: what it answers, whom it refuses, and that no client holds it up.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <future>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "client/wire/unique_fd.h"
#include "daemon/http_server.h"

namespace bitpager::daemon {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;
using wire::Code;

constexpr milliseconds kPatience{20'000};

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
    while (end.empty() || text_.find(end) == std::string::npos) {
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

std::string Get(const std::string& target, const std::string& host = "127.0.0.1",
                const std::string& more = "") {
  return "GET " + target + " HTTP/1.1\r\nHost: " + host + "\r\n" + more + "\r\n";
}
std::string BodyOf(const std::string& reply) {
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

TEST_F(Http, AnswersEveryPage) {
  Start();
  EXPECT_THAT(Ask("/metrics"), HasSubstr("Content-Type: text/plain; version=0.0.4"));
  EXPECT_THAT(Ask("/metrics"), HasSubstr("\nbitpager_page_bytes 4096\n"));
  EXPECT_EQ(BodyOf(Ask("/healthz")), R"({"status":"ok"})");
  const auto snapshot = SnapshotFromJson(BodyOf(Ask("/api/status")));
  ASSERT_TRUE(snapshot.ok()) << snapshot.status().message();
  EXPECT_EQ(snapshot->page_bytes, 4096U);
  EXPECT_EQ(json::parse(BodyOf(Ask("/api/pages")))["devices"][0]["pages"], kUsualCells);
  EXPECT_EQ(json::parse(BodyOf(Ask("/api/pages?cells=64")))["devices"][0]["pages"], 64);
  events_.Add({"attach", 0, "llm", "cpu-0", 0, ""});
  EXPECT_EQ(json::parse(BodyOf(Ask("/api/events")))["events"][0]["job"], "llm");
  EXPECT_THAT(Ask("/"), HasSubstr("Content-Type: text/html; charset=utf-8"));
  const std::string script = Ask("/assets/chart.min.js");
  EXPECT_NE(script.find("\r\nContent-Type: text/javascript; charset=utf-8\r\n"), std::string::npos);
  EXPECT_GT(script.size(), 100'000U);
}

TEST_F(Http, EveryAnswerForbidsWhatABrowserShouldNotDo) {
  Start();
  for (const char* target : {"/", "/metrics", "/api/status", "/nothing", "/api/pages?cells=1"}) {
    const std::string reply = Ask(target);
    EXPECT_THAT(reply, HasSubstr("Content-Security-Policy: default-src 'self'")) << target;
    EXPECT_THAT(reply, HasSubstr("X-Content-Type-Options: nosniff")) << target;
    EXPECT_THAT(reply, HasSubstr("X-Frame-Options: DENY")) << target;
    EXPECT_THAT(reply, Not(HasSubstr("Access-Control-Allow-Origin"))) << target;
  }
  EXPECT_THAT(Ask("/api/status"), HasSubstr("Cache-Control: no-store"));
}

TEST_F(Http, HeadIsGetWithoutTheBody) {
  Start();
  for (const char* target : {"/healthz", "/", "/assets/chart.min.js"}) {
    const std::string get = Ask(target);
    const std::string head =
        Exchange("HEAD " + std::string(target) + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    EXPECT_TRUE(head == get.substr(0, get.find("\r\n\r\n") + 4)) << head;
  }
}

TEST_F(Http, NothingButGetAndHead) {
  Start();
  for (const char* method : {"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"}) {
    const std::string reply =
        Exchange(std::string(method) + " /api/status HTTP/1.1\r\nHost: localhost\r\n\r\n");
    EXPECT_THAT(reply, StartsWith("HTTP/1.1 405 ")) << method;
    EXPECT_THAT(reply, HasSubstr("Allow: GET, HEAD")) << method;
  }
  EXPECT_EQ(taken_, 0);
}

TEST_F(Http, OnlyNamesOfThisMachineAreAnsweredOnLoopback) {
  Start();
  for (const char* host :
       {"localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:9790", "[::1]", "[::1]:9790"}) {
    EXPECT_THAT(Ask("/healthz", host), StartsWith("HTTP/1.1 200 ")) << host;
  }
  for (const char* host :
       {"evil.example", "evil.example:9790", "localhost.evil.example", "127.0.0.1.evil.example", "",
        "127.0.0.1:evil", "localhost:", "[::1", "[::2]", "127.0.0.2", "localhost@evil.example"}) {
    EXPECT_THAT(Ask("/healthz", host), StartsWith("HTTP/1.1 403 ")) << host;
  }
  EXPECT_THAT(Exchange("GET /healthz HTTP/1.1\r\n\r\n"), StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(Exchange(Get("/healthz", "localhost", "Host: evil.example\r\n")), StartsWith("HTTP/1.1 403 "));
}

TEST_F(Http, AnyNameIsAnsweredWhereOthersMayReach) {
  Start({}, "0.0.0.0:0");
  EXPECT_THAT(Ask("/healthz", "box.example:9790"), StartsWith("HTTP/1.1 200 "));
}

TEST_F(Http, NonsenseIsRefusedAndHarmsNothing) {
  Start();
  const auto status = [&](const std::string& bytes) { return Exchange(bytes).substr(0, 12); };
  EXPECT_EQ(status("hello\r\n\r\n"), "HTTP/1.1 400");
  EXPECT_EQ(status(std::string("\0\xff\x16\x03\x01\r\n\r\n", 9)), "HTTP/1.1 400");
  EXPECT_EQ(status("GET / HTTP/9.9\r\nHost: localhost\r\n\r\n"), "HTTP/1.1 400");
  EXPECT_EQ(status("GET http://localhost/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"), "HTTP/1.1 400");
  EXPECT_EQ(status(Get("/metrics", "localhost", "Content-Length: 5\r\n") + "hello"), "HTTP/1.1 413");
  EXPECT_EQ(
      status(Get("/metrics", "localhost", "Transfer-Encoding: chunked\r\n") + "5\r\nhello\r\n0\r\n\r\n"),
      "HTTP/1.1 413");
  EXPECT_EQ(status(Get("/metrics", "localhost", "Content-Length: 99999999999999\r\n")), "HTTP/1.1 413");
  EXPECT_EQ(status(Get("/metrics", "localhost", "X: " + std::string(9000, 'x') + "\r\n")), "HTTP/1.1 431");
  EXPECT_EQ(status(Get("/" + std::string(3000, 'a'))), "HTTP/1.1 414");
  EXPECT_EQ(status(Get("/api/pages?cells=63", "localhost", "Connection: close\r\n")), "HTTP/1.1 400");
  EXPECT_EQ(status(Get("/api/pages?cells=4097", "localhost", "Connection: close\r\n")), "HTTP/1.1 400");
  EXPECT_EQ(status(Get("/api/pages?cells=-1", "localhost", "Connection: close\r\n")), "HTTP/1.1 400");
  EXPECT_EQ(status(Get("/api/stream?cells=x", "localhost")), "HTTP/1.1 400");
  ExpectServing();
}

TEST_F(Http, NoPathLeadsOutOfTheAssets) {
  Start();
  for (const char* target :
       {"/../etc/passwd", "/assets/../../etc/passwd", "/assets/%2e%2e/%2e%2e/etc/passwd",
        "/assets//etc/passwd", "/assets/", "/assets", "//", "/index.html", "/assets/chart.min.js/",
        "/assets/chart.min.js%00", "/%2f", "/api", "/api/status/"}) {
    EXPECT_THAT(Ask(target), StartsWith("HTTP/1.1 404 ")) << target;
  }
}

TEST_F(Http, AssetsAreAskedForAnewAndAnsweredOnceTheyChanged) {
  Start();
  const std::string whole = Ask("/assets/chart.min.js");
  const std::string reply = whole.substr(0, whole.find("\r\n\r\n") + 4);
  EXPECT_THAT(reply, HasSubstr("Cache-Control: no-cache"));
  const std::size_t at = reply.find("ETag: ") + 6;
  const std::string etag = reply.substr(at, reply.find("\r\n", at) - at);
  EXPECT_EQ(etag.size(), 34U) << etag;
  const auto with = [&](const std::string& known) {
    return Exchange(
        Get("/assets/chart.min.js", "localhost", "If-None-Match: " + known + "\r\nConnection: close\r\n"));
  };
  EXPECT_THAT(with(etag), StartsWith("HTTP/1.1 304 "));
  EXPECT_EQ(BodyOf(with(etag)), "");
  EXPECT_THAT(with("\"old\", W/" + etag), StartsWith("HTTP/1.1 304 "));
  EXPECT_EQ(with("\"old\"").substr(0, 13), "HTTP/1.1 200 ");
}

TEST_F(Http, AnswersOfAMomentShareOneSnapshotAndNobodyAskingCostsNone) {
  Start();
  std::this_thread::sleep_for(milliseconds(20));
  EXPECT_EQ(taken_, 0);
  for (int i = 0; i < 5; ++i) {
    Ask("/metrics");
    Ask("/api/status");
    Ask("/healthz");
    Ask("/api/pages");
  }
  EXPECT_EQ(taken_, 1);
  EXPECT_EQ(painted_, 1);
  clock_.now_ns += HttpSite::kSharedNs;
  Ask("/metrics");
  Ask("/api/pages?cells=100");
  EXPECT_EQ(taken_, 2);
  EXPECT_EQ(painted_, 2);
  EXPECT_EQ(site_.counts().scrapes, 6U);
  EXPECT_EQ(site_.counts().requests, 22U);
}

TEST_F(Http, ADispatcherThatDoesNotAnswerIsSaidAndNotAskedAgainAtOnce) {
  fail_ = true;
  Start();
  const std::string health = Ask("/healthz");
  EXPECT_THAT(health, StartsWith("HTTP/1.1 503 "));
  EXPECT_EQ(BodyOf(health), R"({"status":"unreachable"})");
  EXPECT_THAT(Ask("/metrics"), StartsWith("HTTP/1.1 503 "));
  EXPECT_EQ(json::parse(BodyOf(Ask("/api/status")))["error"]["code"], "unreachable");
  EXPECT_EQ(taken_, 1);
  fail_ = false;
  draining_ = true;
  clock_.now_ns += HttpSite::kFailedNs;
  EXPECT_EQ(BodyOf(Ask("/healthz")), R"({"status":"draining"})");
}

TEST_F(Http, ConnectionsAreKeptAndPipelined) {
  Start();
  Line line(port_);
  line.Send(Get("/healthz") + Get("/healthz") + Get("/nothing"));
  EXPECT_THAT(line.Read("there is no such page"), HasSubstr("404"));
  line.Forget();
  line.Send(Get("/healthz"));
  EXPECT_THAT(line.Read("\"ok\"}"), StartsWith("HTTP/1.1 200 "));
  EXPECT_FALSE(line.closed);
  line.Send("GET /healthz HTTP/1.0\r\n\r\n");
  line.Read();
  EXPECT_TRUE(line.closed) << "HTTP/1.0 ends with its answer";
}

TEST_F(Http, ARequestThatNeverEndsIsDropped) {
  HttpLimits limits;
  limits.header_ms = 200;
  Start(limits);
  Line line(port_);
  line.Send("GET /healthz HTTP/1.1\r\n");
  std::atomic<bool> stop{false};
  std::thread drip([&] {
    for (int i = 0; i < 2000 && !stop; ++i) {
      line.Send("X: y\r\n");
      std::this_thread::sleep_for(milliseconds(10));
    }
  });
  line.Read();
  stop = true;
  drip.join();
  EXPECT_TRUE(line.closed);
  ExpectServing();
}

TEST_F(Http, AFloodOfConnectionsKeepsNobodyOut) {
  Start();
  std::vector<std::unique_ptr<Line>> flood;
  for (int i = 0; i < 200; ++i) {
    flood.push_back(std::make_unique<Line>(port_));
    if (i % 2 == 0) flood.back()->Send("GET /healthz HT");
  }
  ExpectServing();
  std::size_t open = 0;
  for (const auto& line : flood) {
    line->Read("", milliseconds(20));
    open += line->closed ? 0 : 1;
  }
  EXPECT_LE(open, 64U);
}

TEST_F(Http, AStreamTellsStatusPagesAndEvents) {
  HttpLimits limits;
  limits.stream_ms = 20;
  Start(limits);
  Line line(port_);
  line.Send(Get("/api/stream?cells=128"));
  const std::string first = line.Read("\"pages\":128");
  EXPECT_THAT(first, StartsWith("HTTP/1.1 200 "));
  EXPECT_THAT(first, HasSubstr("Content-Type: text/event-stream"));
  const std::string at = "id: " + std::to_string(events_.Next() - 1);
  EXPECT_THAT(first, HasSubstr(at + "\nevent: status\ndata: {")) << "the client has all events up to here";
  EXPECT_THAT(first, HasSubstr(at + "\nevent: pages\ndata: {"));
  events_.Add({"evict", 0, "llm\n\ndata: x", "cpu-0", 4096, "command"});
  const std::string told = line.Read("\"name\":\"evict\"");
  const std::string next = "id: " + std::to_string(events_.Next() - 1);
  EXPECT_THAT(told, HasSubstr(next + "\nevent: event\ndata: {"));
  EXPECT_THAT(told, HasSubstr("llm\\n\\ndata: x")) << "one line whatever names hold";
  line.Forget();
  const int before = taken_;
  clock_.now_ns += HttpSite::kSharedNs;
  EXPECT_THAT(line.Read("event: status"), HasSubstr(next + "\nevent: status"));
  EXPECT_GT(taken_, before);
  EXPECT_THAT(line.Read("", milliseconds(300)), Not(HasSubstr("event: pages"))) << "nothing changed";
}

// The events of a stream's beginning, by their texts, up to the first status.
std::vector<std::string> EventsOf(Line& line) {
  std::vector<std::string> out;
  const std::string all = line.Read("event: status");
  for (std::size_t at = 0; (at = all.find("\"text\":\"", at)) != std::string::npos;) {
    at += 8;
    out.push_back(all.substr(at, all.find('"', at) - at));
  }
  return out;
}

TEST_F(Http, AStreamGoesOnWhereAnotherEnded) {
  Start();
  for (int i = 0; i < 5; ++i) events_.Add({"limit", 0, "", "", 0, std::to_string(i)});
  const auto ids = events_.Last();
  const auto told = [&](const std::string& query, const std::string& header) {
    Line line(port_);
    line.Send(Get("/api/stream" + query, "127.0.0.1", header));
    return EventsOf(line);
  };
  const auto header = [](std::uint64_t id) { return "Last-Event-ID: " + std::to_string(id) + "\r\n"; };
  using Texts = std::vector<std::string>;
  // Until what was added has been passed on to nobody, it may still be told as new.
  ASSERT_TRUE(Until([&] { return told("", "").empty(); }));
  EXPECT_EQ(told("", header(ids[2].id)), (Texts{"3", "4"}));
  EXPECT_EQ(told("?last_event_id=" + std::to_string(ids[3].id), ""), Texts{"4"});
  EXPECT_EQ(told("?last_event_id=" + std::to_string(ids[3].id), header(ids[0].id)), Texts{"4"});
  EXPECT_EQ(told("", header(ids[4].id)), Texts{});
  EXPECT_EQ(told("", header(1)), (Texts{"0", "1", "2", "3", "4"})) << "of a daemon before this one";
  EXPECT_EQ(told("", header(~0ULL)), (Texts{"0", "1", "2", "3", "4"})) << "of none that is known";
  EXPECT_EQ(told("", "Last-Event-ID: 1f\r\n"), Texts{});
  EXPECT_THAT(Ask("/api/stream?last_event_id=x"), StartsWith("HTTP/1.1 400 "));
  for (std::size_t i = 0; i < EventLog::kHeld; ++i) events_.Add({"evict", 0, "", "", 0, "more"});
  Texts missed;
  ASSERT_TRUE(Until([&] { return told("", "").empty(); }));
  missed = told("", header(ids[2].id));
  EXPECT_EQ(missed, Texts(EventLog::kKept, "more")) << "as many as are kept";
}

TEST_F(Http, WithoutListenersNothingIsCollected) {
  HttpLimits limits;
  limits.stream_ms = 5;
  Start(limits);
  {
    Line line(port_);
    line.Send(Get("/api/stream"));
    line.Read("event: pages");
    clock_.now_ns += HttpSite::kSharedNs;
    const int before = taken_;
    EXPECT_TRUE(Until([&] { return taken_ > before; }));
  }
  // Its going is noticed at once; what was under way may still end.
  int last = -1;
  EXPECT_TRUE(Until([&] {
    clock_.now_ns += HttpSite::kSharedNs;
    std::this_thread::sleep_for(milliseconds(50));
    return std::exchange(last, taken_.load()) == taken_;
  }));
}

TEST_F(Http, AStreamWhoseClientStopsReadingHoldsNobodyAndIsDropped) {
  padding_ = 1 << 20;
  HttpLimits limits;
  limits.stream_ms = 5;
  limits.write_ms = 500;
  Start(limits);
  Line stuck(port_, 4096);
  stuck.Send(Get("/api/stream"));
  Line reading(port_);
  reading.Send(Get("/api/stream"));
  // All along: on a busy machine what follows takes longer than a write may.
  std::future<std::string> heard =
      std::async(std::launch::async, [&] { return reading.Read("\"text\":\"late\""); });
  for (int i = 0; i < 100; ++i) {
    clock_.now_ns += HttpSite::kSharedNs;
    events_.Add({"limit", 0, "", "", 0, std::to_string(i)});
    std::this_thread::sleep_for(milliseconds(2));
  }
  ExpectServing();
  // It was given up: what it finds is what its buffers hold, and an end; nothing that came later.
  std::this_thread::sleep_for(milliseconds(2'000));
  events_.Add({"limit", 0, "", "", 0, "late"});
  const std::string all = heard.get();
  EXPECT_NE(all.find("\"text\":\"99\""), std::string::npos);
  EXPECT_NE(all.find("\"text\":\"late\""), std::string::npos);
  const std::string found = stuck.Read();
  EXPECT_TRUE(stuck.closed);
  EXPECT_NE(found.find("event: status"), std::string::npos);
  EXPECT_EQ(found.find("\"text\":\"late\""), std::string::npos);
}

TEST_F(Http, StreamsAreBoundedAndLeaveRoomForAnswers) {
  HttpLimits limits;
  limits.streams = 4;
  Start(limits);
  std::vector<std::unique_ptr<Line>> lines;
  for (int i = 0; i < 4; ++i) {
    lines.push_back(std::make_unique<Line>(port_));
    lines.back()->Send(Get("/api/stream"));
    lines.back()->Read("event: pages");
  }
  EXPECT_THAT(Exchange(Get("/api/stream")), StartsWith("HTTP/1.1 503 "));
  ExpectServing();
  lines.pop_back();
  EXPECT_TRUE(Until([&] {
    Line line(port_);
    line.Send(Get("/api/stream"));
    return line.Read("\r\n\r\n").starts_with("HTTP/1.1 200 ");
  }));
}

TEST_F(Http, EndsWithClientsOfEveryKind) {
  Start();
  Line idle(port_), half(port_), listening(port_);
  half.Send("GET /heal");
  listening.Send(Get("/api/stream"));
  listening.Read("event: pages");
  server_.reset();
  idle.Read();
  half.Read();
  listening.Read();
  EXPECT_TRUE(idle.closed && half.closed && listening.closed);
  events_.Add({"detach", 0, "", "", 0, ""});
}

TEST_F(Http, APortInUseIsRefusedWithAHint) {
  Start();
  const auto second =
      HttpServer::Bind(*ParseHttpAddress("127.0.0.1:" + std::to_string(port_)), site_, events_, HttpLimits{});
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), Code::kAlreadyExists);
  EXPECT_THAT(second.status().message(), HasSubstr("Hint: "));
  const auto foreign = HttpServer::Bind(*ParseHttpAddress("203.0.113.7:0"), site_, events_, HttpLimits{});
  ASSERT_FALSE(foreign.ok());
  EXPECT_EQ(foreign.status().code(), Code::kInvalidArgument);
}

TEST(HttpAddress, IsReadAndWritten) {
  for (const auto& [text, ip, port, loopback] : std::vector<std::tuple<std::string, std::string, int, bool>>{
           {"127.0.0.1:9790", "127.0.0.1", 9790, true},
           {"localhost:0", "127.0.0.1", 0, true},
           {"[::1]:80", "::1", 80, true},
           {"0.0.0.0:80", "0.0.0.0", 80, false},
           {"[::]:80", "::", 80, false},
           {"127.3.2.1:80", "127.3.2.1", 80, true},
           {"10.0.0.1:65535", "10.0.0.1", 65535, false}}) {
    const auto address = ParseHttpAddress(text);
    ASSERT_TRUE(address.ok()) << text;
    EXPECT_EQ(address->ip, ip);
    EXPECT_EQ(address->port, port);
    EXPECT_EQ(address->loopback, loopback) << text;
    if (!text.starts_with("localhost")) {
      EXPECT_EQ(ToText(*address), text);
    }
  }
  for (const char* bad : {"", "9790", ":9790", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1",
                          "127.0.0.1:1x", "::1:80", "[127.0.0.1]:80", "[::1]", "example.org:80",
                          "http://127.0.0.1:80", "127.0.0.1:80:80", "[::1]:80]"}) {
    const auto address = ParseHttpAddress(bad);
    ASSERT_FALSE(address.ok()) << bad;
    EXPECT_EQ(address.status().code(), Code::kInvalidArgument);
    EXPECT_THAT(address.status().message(), HasSubstr("Hint: "));
  }
}

TEST(EventLog, NumbersEventsOneByOne) {
  EventLog log(100);
  for (int i = 0; i < 4; ++i) log.Add({"limit", 0, "", "", 0, ""});
  const auto ids = [&](std::uint64_t after, std::uint64_t before) {
    std::vector<std::uint64_t> out;
    for (const Event& event : log.Between(after, before)) out.push_back(event.id);
    return out;
  };
  using Ids = std::vector<std::uint64_t>;
  EXPECT_EQ(ids(0, ~0ULL), (Ids{100, 101, 102, 103}));
  EXPECT_EQ(ids(101, log.Next()), (Ids{102, 103}));
  EXPECT_EQ(ids(100, 102), Ids{101});
  EXPECT_EQ(ids(103, 104), Ids{});
  EXPECT_EQ(ids(104, 104), (Ids{100, 101, 102, 103})) << "no event of this log";
  EXPECT_EQ(ids(0, 50), Ids{});
  for (std::size_t i = 0; i < EventLog::kHeld; ++i) log.Add({"limit", 0, "", "", 0, ""});
  EXPECT_EQ(ids(0, log.Next()).size(), EventLog::kKept);
  EXPECT_EQ(ids(0, log.Next()).back(), log.Next() - 1);
  EXPECT_EQ(ids(0, 103), Ids{}) << "they are held no more";
  EXPECT_EQ(log.dropped(), 0U) << "looking again is no loss";
  EXPECT_GT(EventLog().Next(), 1'600'000'000'000'000U) << "greater than all of a log before it";
}

TEST(EventLog, KeepsAReadersPlaceAndCountsWhatItMissed) {
  EventLog log;
  std::uint64_t place = log.Next();
  int woken = 0;
  const int watch = log.Watch([&] { ++woken; });
  for (std::size_t i = 0; i < 3; ++i) log.Add({"limit", 0, "", "", i, ""});
  EXPECT_EQ(log.Since(place).size(), 3U);
  EXPECT_TRUE(log.Since(place).empty());
  log.Unwatch(watch);
  for (std::size_t i = 0; i < EventLog::kHeld + 5; ++i) log.Add({"evict", 0, "", "", i, ""});
  EXPECT_EQ(woken, 3);
  const auto late = log.Since(place);
  ASSERT_EQ(late.size(), EventLog::kHeld);
  EXPECT_EQ(late[0].bytes, 5U);
  EXPECT_EQ(log.dropped(), 5U);
  EXPECT_EQ(log.Last().size(), EventLog::kKept);
  EXPECT_EQ(log.Counts().at("evict"), EventLog::kHeld + 5);
}

}  // namespace
}  // namespace bitpager::daemon
