// The HTTP server's stream of status, pages and events, over real sockets: where it goes on, what it costs,
// and that a client which stops reading holds nobody.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/daemon/http_fixture.h"

namespace bitpager::daemon {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

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
  const int before = taken_;
  clock_.now_ns += HttpSite::kSharedNs;
  EXPECT_TRUE(Until([&] { return taken_ > before; }));
  line.Forget();
  EXPECT_THAT(line.Read("event: status"), HasSubstr(next + "\nevent: status"));
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
    const int before = taken_;
    clock_.now_ns += HttpSite::kSharedNs;
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
  limits.write_ms = 1000;
  Start(limits);
  Line stuck(port_, 4096);
  stuck.Send(Get("/api/stream"));
  Line reading(port_);
  reading.Send(Get("/api/stream"));
  ASSERT_THAT(reading.Read("event: status"), HasSubstr("event: status")) << "events are told from here on";
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

}  // namespace
}  // namespace bitpager::daemon
