// Events, their join, the feed from a real telemetry server, and files of whole lines.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <zmq.hpp>

#include "tools/cli/event.h"
#include "tools/cli/feed.h"
#include "tools/cli/output.h"
#include "tools/cli/signals.h"

namespace bitpager::cli {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using wire::Code;

std::string BodyOf(const std::string& name, int time, const std::string& job = "llm") {
  return json{{"schema_version", 1}, {"name", name}, {"time_unix_ms", time}, {"job", job},
              {"device", "GPU-a"},   {"bytes", 7},   {"text", "words"}}
      .dump();
}
std::string KeptReply(const std::vector<std::string>& bodies) {
  json out = {{"schema_version", 1}, {"events", json::array()}};
  for (const std::string& body : bodies) out["events"].push_back(json::parse(body));
  return out.dump();
}
std::vector<std::string> NamesOf(const std::vector<Event>& events) {
  std::vector<std::string> out;
  for (const Event& event : events) out.push_back(event.name);
  return out;
}
bool AddLive(EventJoin& join, const std::string& body) {
  return join.AddLive(*EventFromJson(body));
}

TEST(EventFromJson, ReadsTheKeysAndPassesOverTheRest) {
  const auto event =
      EventFromJson(R"({"name":"evict","time_unix_ms":5,"job":"a","bytes":9,"text":"t","new":[1]})");
  ASSERT_TRUE(event.ok());
  EXPECT_EQ(event->name, "evict");
  EXPECT_EQ(event->time_unix_ms, 5);
  EXPECT_EQ(event->bytes, 9U);
  EXPECT_THAT(event->json, HasSubstr("\"new\":[1]"));
  for (const char* bad : {"", "[]", "{}", R"({"name":7})", R"({"name":"a")", "null"}) {
    EXPECT_EQ(EventFromJson(bad).status().code(), Code::kProtocol) << bad;
  }
  EXPECT_TRUE(EventFromJson(R"({"name":"a","time_unix_ms":"x","bytes":-1.5,"job":{}})").ok());
}

TEST(EventText, IsOneLineWhateverTheTextHolds) {
  Event event{"evict", 0, "llm", "GPU-a", 3U << 20, "by\nlimit\033[2J", ""};
  const std::string text = EventText(event, true, false);
  EXPECT_THAT(text, HasSubstr("evict llm 3 MiB GPU-a: by?limit?[2J"));
  event.time_unix_ms = std::numeric_limits<std::int64_t>::max();
  EXPECT_THAT(EventText(event, true, false), HasSubstr("evict"));
}

TEST(EventJoin, GivesEachEventOnce) {
  EventJoin join;
  EXPECT_THAT(NamesOf(join.AddKept(KeptReply({BodyOf("a", 1), BodyOf("b", 2)}))), ElementsAre("a", "b"));
  EXPECT_FALSE(AddLive(join, BodyOf("b", 2))) << "published while it was also kept";
  EXPECT_TRUE(AddLive(join, BodyOf("c", 3)));
  EXPECT_THAT(
      NamesOf(join.AddKept(KeptReply({BodyOf("a", 1), BodyOf("b", 2), BodyOf("c", 3), BodyOf("d", 4)}))),
      ElementsAre("d"));
}

TEST(EventJoin, GivesTwinsTwice) {
  EventJoin join;
  EXPECT_THAT(join.AddKept(KeptReply({BodyOf("a", 1), BodyOf("a", 1)})), SizeIs(2));
  EXPECT_THAT(join.AddKept(KeptReply({BodyOf("a", 1), BodyOf("a", 1), BodyOf("a", 1)})), SizeIs(1));
  EXPECT_TRUE(AddLive(join, BodyOf("b", 2)));
  EXPECT_TRUE(AddLive(join, BodyOf("b", 2)));
}

TEST(EventJoin, TakesNonsenseForNothingAndForgets) {
  EventJoin join;
  for (const char* bad : {"", "[]", "{}", R"({"events":7})", R"({"events":[1,{"name":""}]})",
                          R"({"error":{"message":"unknown query"}})"}) {
    EXPECT_THAT(join.AddKept(bad), SizeIs(0)) << bad;
  }
  for (int i = 0; i < 20000; ++i) EXPECT_TRUE(AddLive(join, BodyOf("e", i)));
  EXPECT_FALSE(join.AddKept(KeptReply({BodyOf("e", 19999)})).size()) << "the newest are remembered";
}

// A daemon's outside that can be ended and started again: a ROUTER that answers as told, a PUB.
class Outside {
 public:
  explicit Outside(const std::string& socket)
      : router_(context_, zmq::socket_type::router), publisher_(context_, zmq::socket_type::pub) {
    router_.set(zmq::sockopt::linger, 0);
    publisher_.set(zmq::sockopt::linger, 100);
    router_.bind("ipc://" + socket + ".status");
    publisher_.bind("ipc://" + socket + ".events");
  }
  // Answers what waits; the body of each query is kept.
  void Answer(const std::string& status, const std::string& kept) {
    zmq::message_t id;
    while (router_.recv(id, zmq::recv_flags::dontwait)) {
      zmq::message_t body;
      ASSERT_TRUE(router_.recv(body, zmq::recv_flags::dontwait));
      asked.push_back(body.to_string());
      router_.send(id, zmq::send_flags::sndmore);
      router_.send(zmq::buffer(body.to_string() == kEventsQuery ? kept : status), zmq::send_flags::none);
    }
  }
  void Publish(const std::string& body) {
    publisher_.send(zmq::buffer(std::string("topic")), zmq::send_flags::sndmore);
    publisher_.send(zmq::buffer(body), zmq::send_flags::none);
  }
  std::vector<std::string> asked;

 private:
  zmq::context_t context_;
  zmq::socket_t router_;
  zmq::socket_t publisher_;
};

class Feeding : public ::testing::Test {
 protected:
  Feeding() {
    char name[] = "/tmp/bitpager-watch-XXXXXX";
    folder_ = ::mkdtemp(name);
    target_.socket = folder_ + "/b.sock";
    target_.timeout_ms = 20000;
  }
  ~Feeding() override { std::filesystem::remove_all(folder_); }

  // Turns `feed` and answers until `done` holds of an item.
  template <typename Done>
  bool TurnUntil(Feed& feed, Outside* outside, Done done) {
    const auto end = steady_clock::now() + std::chrono::seconds(30);
    while (steady_clock::now() < end) {
      Feed::Item item = feed.Next(steady_clock::now() + milliseconds(10), {});
      items_.push_back(item);
      if (outside != nullptr) outside->Answer(status_, kept_);
      if (done(item)) return true;
    }
    return false;
  }
  std::size_t Count(const std::string& event) const {
    return static_cast<std::size_t>(std::count_if(items_.begin(), items_.end(), [&](const Feed::Item& item) {
      return item.kind == Feed::Item::Kind::kEvent && item.event.name == event;
    }));
  }

  std::string folder_;
  Target target_;
  std::string status_ = R"({"schema_version":1})";
  std::string kept_ = KeptReply({BodyOf("kept", 1)});
  std::vector<Feed::Item> items_;
};

using Kind = Feed::Item::Kind;

TEST_F(Feeding, NobodyThereIsSaidAtOnce) {
  Feed feed(target_, {milliseconds(100), {kStatusQuery}, true});
  EXPECT_EQ(feed.Start().code(), Code::kUnreachable);
}

TEST_F(Feeding, KeptEventsThenLiveOnesAndAnswersAtTheInterval) {
  Outside outside(target_.socket);
  Feed feed(target_, {milliseconds(50), {kStatusQuery}, true});
  ASSERT_TRUE(feed.Start().ok());
  ASSERT_TRUE(TurnUntil(feed, &outside, [](const Feed::Item& item) { return item.kind == Kind::kEvent; }));
  int replies = 0;
  ASSERT_TRUE(TurnUntil(feed, &outside, [&](const Feed::Item& item) {
    outside.Publish(BodyOf("live", 2));
    replies += item.kind == Kind::kReply ? 1 : 0;
    return replies >= 5 && Count("live") >= 3;
  }));
  EXPECT_EQ(Count("kept"), 1U) << "the second look gives nothing twice";
}

TEST_F(Feeding, AnEventBeforeTheSubscriptionIsFoundByTheSecondLook) {
  Outside outside(target_.socket);
  Feed feed(target_, {milliseconds(50), {}, true});
  ASSERT_TRUE(feed.Start().ok());
  ASSERT_TRUE(TurnUntil(feed, &outside, [](const Feed::Item& item) { return item.kind == Kind::kEvent; }));
  kept_ = KeptReply({BodyOf("kept", 1), BodyOf("missed", 2)});
  EXPECT_TRUE(TurnUntil(feed, &outside, [](const Feed::Item& item) { return item.event.name == "missed"; }));
}

TEST_F(Feeding, SaysThatTheDaemonWentAndFindsTheNext) {
  auto outside = std::make_unique<Outside>(target_.socket);
  Feed feed(target_, {milliseconds(50), {kStatusQuery}, true});
  ASSERT_TRUE(feed.Start().ok());
  ASSERT_TRUE(
      TurnUntil(feed, outside.get(), [](const Feed::Item& item) { return item.kind == Kind::kReply; }));
  outside.reset();
  std::filesystem::remove(target_.socket + ".status");
  ASSERT_TRUE(TurnUntil(feed, nullptr, [](const Feed::Item& item) { return item.kind == Kind::kLost; }));
  EXPECT_EQ(items_.back().status.code(), Code::kDaemonLost);
  outside = std::make_unique<Outside>(target_.socket);
  ASSERT_TRUE(
      TurnUntil(feed, outside.get(), [](const Feed::Item& item) { return item.kind == Kind::kBack; }));
  EXPECT_TRUE(
      TurnUntil(feed, outside.get(), [](const Feed::Item& item) { return item.kind == Kind::kReply; }));
}

TEST_F(Feeding, ADaemonThatIsSilentIsLostAfterTheTimeout) {
  target_.timeout_ms = 100;
  Outside outside(target_.socket);
  Feed feed(target_, {milliseconds(50), {kStatusQuery}, false});
  ASSERT_TRUE(feed.Start().ok());
  ASSERT_TRUE(TurnUntil(feed, nullptr, [](const Feed::Item& item) { return item.kind == Kind::kLost; }));
  EXPECT_THAT(items_.back().status.message(), HasSubstr("did not answer within 100 ms"));
}

TEST_F(Feeding, ASignalIsHeardInAFloodOfEvents) {
  const Signals signals{SIGUSR1};
  const std::array<Input, 1> inputs = {Input{signals.fd()}};
  Outside outside(target_.socket);
  Feed feed(target_, {milliseconds(50), {}, true});
  ASSERT_TRUE(feed.Start().ok());
  ASSERT_TRUE(TurnUntil(feed, &outside, [&](const Feed::Item&) {
    outside.Publish(BodyOf("live", 2));
    return Count("live") > 0;
  }));
  for (int i = 0; i < 500; ++i) outside.Publish(BodyOf("live", 2));
  ::raise(SIGUSR1);
  EXPECT_EQ(feed.Next(steady_clock::now() + std::chrono::seconds(10), inputs).kind, Kind::kInput);
  EXPECT_EQ(signals.Take(), SIGUSR1);
  EXPECT_EQ(signals.Take(), 0);
}

TEST_F(Feeding, AnOutputThatNobodyReadsEndsTheWait) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const std::array<Input, 1> inputs = {Input{ends[1], true}};
  Feed feed(target_, {});
  EXPECT_EQ(feed.Next(steady_clock::now() + milliseconds(1), inputs).kind, Kind::kNothing);
  ::close(ends[0]);
  EXPECT_EQ(feed.Next(steady_clock::now() + std::chrono::seconds(10), inputs).kind, Kind::kInput);
  ::close(ends[1]);
}

std::string ContentOf(const std::string& path) {
  std::ostringstream out;
  out << std::ifstream(path).rdbuf();
  return out.str();
}

TEST_F(Feeding, OutputIsANewFileOfWholeLines) {
  const std::string path = folder_ + "/lines";
  {
    auto out = LineOutput::Create(path);
    ASSERT_TRUE(out.ok());
    EXPECT_TRUE(out->Write("one").ok());
    EXPECT_TRUE(out->Write("two").ok());
    EXPECT_TRUE(out->Sync().ok());
  }
  EXPECT_EQ(ContentOf(path), "one\ntwo\n");
  EXPECT_EQ(LineOutput::Create(path).status().code(), Code::kAlreadyExists);
  EXPECT_EQ(ContentOf(path), "one\ntwo\n");
  EXPECT_EQ(LineOutput::Create(folder_ + "/none/lines").status().code(), Code::kNotFound);
  EXPECT_TRUE(LineOutput::Create("/dev/null").ok());
}

TEST_F(Feeding, AFileThatIsBeingWrittenIsRefused) {
  auto first = LineOutput::Create(folder_ + "/lines");
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(LineOutput::Create(folder_ + "/lines").status().code(), Code::kAlreadyExists);
}

TEST_F(Feeding, APipeThatIsNotReadIsNoTrapForASignal) {
  const Signals signals{SIGUSR1};
  const std::string path = folder_ + "/pipe";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  const wire::UniqueFd reader(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  auto out = LineOutput::Create(path);
  ASSERT_TRUE(out.ok());
  out->StopAt(signals.fd());
  EXPECT_TRUE(out->Write("a line").ok());
  ::raise(SIGUSR1);
  EXPECT_EQ(out->Write(std::string(1 << 20, 'x')).code(), Code::kUnreachable);
}

TEST_F(Feeding, AFullDiskLeavesWholeLinesAndIsSaid) {
  EXPECT_EQ(LineOutput::Create("/dev/full")->Write("x").code(), Code::kBudgetExceeded);
  const std::string path = folder_ + "/lines";
  auto out = LineOutput::Create(path);
  ASSERT_TRUE(out.ok());
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit limit{1000, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  const std::string line(299, 'x');
  wire::Status status;
  int lines = 0;
  for (; status.ok() && lines < 10; ++lines) status = out->Write(line);
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, SIG_DFL);
  EXPECT_EQ(lines, 4);
  EXPECT_EQ(status.code(), Code::kBudgetExceeded);
  EXPECT_THAT(status.message(), HasSubstr("it has 900 bytes in whole lines"));
  EXPECT_EQ(ContentOf(path).size(), 900U);
}

}  // namespace
}  // namespace bitpager::cli
