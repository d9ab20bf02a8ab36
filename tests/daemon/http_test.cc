// The HTTP server over real sockets: what it answers, whom it refuses, and that no client holds it up.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "tests/daemon/http_fixture.h"

namespace bitpager::daemon {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

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

}  // namespace
}  // namespace bitpager::daemon
