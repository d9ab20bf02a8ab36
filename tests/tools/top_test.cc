// What top shows, as pure functions: cells of text, rates between snapshots, frames, keys, JSON.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <clocale>
#include <nlohmann/json.hpp>

#include "tools/cli/cells.h"
#include "tools/cli/rates.h"
#include "tools/cli/top_json.h"
#include "tools/cli/top_view.h"

namespace bitpager::cli {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::Le;
using ::testing::Not;
using ::testing::SizeIs;

constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;

class Utf8Text : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_NE(std::setlocale(LC_CTYPE, "C.UTF-8"), nullptr); }
  void TearDown() override { std::setlocale(LC_CTYPE, "C"); }
};

TEST_F(Utf8Text, ShowsNothingThatMovesTheCursorOrDeceives) {
  EXPECT_EQ(Shown("a\033[2Jb\n\t\x7f", true), "a?[2Jb???");
  EXPECT_EQ(Shown("\xC2\x9B"
                  "31m",
                  true),
            "?31m")
      << "CSI in one character";
  EXPECT_EQ(Shown("\xE2\x80\xAE"
                  "cod",
                  true),
            "?cod")
      << "right-to-left override";
  EXPECT_EQ(Shown("a\xE2\x80\x8B"
                  "b",
                  true),
            "a?b")
      << "zero width";
  EXPECT_EQ(Shown(std::string("a\0b", 3), true), "a?b");
}

TEST_F(Utf8Text, ReplacesWhatIsNoUtf8) {
  EXPECT_EQ(Shown("\xFF\xC0\x80", true), "???");
  EXPECT_EQ(Shown("\xE2\x82", true), "??") << "cut short";
  EXPECT_EQ(Shown("\xED\xA0\x80", true), "???") << "a surrogate";
  EXPECT_EQ(Shown("\xF4\x90\x80\x80", true), "????") << "beyond Unicode";
}

TEST_F(Utf8Text, KeepsLettersAndCountsWideOnesTwice) {
  EXPECT_EQ(Shown("größe-模型", true), "größe-模型");
  EXPECT_EQ(CellsOf("größe-模型"), 10U);
  EXPECT_EQ(Shown("größe", false), "gr??e") << "a terminal without UTF-8; one mark for each character";
}

TEST_F(Utf8Text, TakesFewMarksOnOneLetter) {
  const std::string mark = "\xCC\x81";
  EXPECT_EQ(Shown("e" + mark, true), "e" + mark);
  EXPECT_EQ(CellsOf("e" + mark), 1U);
  EXPECT_EQ(Shown("e" + mark + mark + mark, true), "e" + mark + mark + "?");
  EXPECT_EQ(Shown(mark, true), "?");
}

TEST_F(Utf8Text, FitsExactly) {
  EXPECT_EQ(Fit("abc", 5), "abc  ");
  EXPECT_EQ(Fit("abc", 5, true), "  abc");
  EXPECT_EQ(Fit("abcdef", 4), "abc~");
  EXPECT_EQ(Fit("模型模型", 5), "模型~");
  EXPECT_EQ(Fit("模型模型", 4), "模~ ") << "half of a wide character is a blank";
  EXPECT_EQ(Fit("abc", 0), "");
}

daemon::JobSnapshot Job(std::uint64_t id, const std::string& name, std::uint64_t resident) {
  daemon::JobSnapshot job;
  job.id = id;
  job.name = name;
  job.device = "GPU-a";
  job.sessions = 1;
  job.resident_bytes = resident;
  return job;
}

daemon::Snapshot Machine(std::uint64_t uptime_ms) {
  daemon::Snapshot s;
  s.version = "0.1.0";
  s.pid = 7;
  s.uptime_ms = uptime_ms;
  s.socket_path = "/run/bitpager/bitpager.sock";
  s.page_bytes = 4096;
  s.host_budget_bytes = 8 * kGiB;
  s.host_committed_bytes = 2 * kGiB;
  s.devices.resize(2);
  for (std::size_t i = 0; i < 2; ++i) {
    s.devices[i].kind = "cuda";
    s.devices[i].uuid = i == 0 ? "GPU-a" : "GPU-b";
    s.devices[i].gpu = std::to_string(i);
    s.devices[i].name = "H100";
    s.devices[i].budget_bytes = 4 * kGiB;
    s.devices[i].used_bytes = i == 0 ? kGiB : 4 * kGiB;
    s.devices[i].free_bytes = 4 * kGiB - s.devices[i].used_bytes;
  }
  s.jobs = {Job(1, "small", 1 << 20), Job(2, "large", kGiB), Job(3, "middle", 1 << 25)};
  s.sessions.resize(3);
  return s;
}

TEST(Rates, AreDifferencesOverTheDaemonsTime) {
  daemon::Snapshot before = Machine(10'000);
  daemon::Snapshot now = Machine(12'000);
  now.jobs[1].loaded_bytes = 8192;
  now.jobs[1].stored_bytes = 40960;
  now.jobs[1].evictions_by_reason = {12, 0, 5, 0, 0, 3, 0};
  now.devices[0].evictions_by_reason = {14, 0, 5, 0, 0, 3, 0};
  now.jobs[1].steps = 5;
  now.jobs[1].stall_ns = 500'000'000;
  now.totals.loaded_bytes = 8192;
  now.totals.stall_ns = 600'000'000;
  const auto rates = RatesOf(before, now);
  ASSERT_TRUE(rates);
  EXPECT_DOUBLE_EQ(rates->seconds, 2);
  ASSERT_THAT(rates->jobs, SizeIs(3));
  EXPECT_DOUBLE_EQ(rates->jobs[1].to_device_bytes, 4096);
  EXPECT_DOUBLE_EQ(rates->jobs[1].to_host_bytes, 20480);
  EXPECT_DOUBLE_EQ(rates->jobs[1].steps, 2.5);
  EXPECT_DOUBLE_EQ(rates->jobs[1].evictions, 10);
  EXPECT_DOUBLE_EQ(rates->jobs[1].stall_ratio, 0.25);
  EXPECT_DOUBLE_EQ(rates->jobs[0].to_device_bytes, 0);
  EXPECT_DOUBLE_EQ(rates->all.to_device_bytes, 4096);
  EXPECT_DOUBLE_EQ(rates->all.evictions, 11) << "those of ended jobs too";
  EXPECT_DOUBLE_EQ(rates->all.stall_ratio, 0.1) << "of three ranks' time";
}

TEST(Rates, OfAJobThatCameCountFromItsStart) {
  daemon::Snapshot before = Machine(10'000);
  daemon::Snapshot now = Machine(11'000);
  before.jobs[0].id = 99;  // another one, that has ended
  before.jobs[0].steps = 1000;
  now.jobs[0].steps = 3;
  EXPECT_DOUBLE_EQ(RatesOf(before, now)->jobs[0].steps, 3);
}

TEST(Rates, AreUnknownAcrossDaemonsAndNeverNegative) {
  daemon::Snapshot before = Machine(10'000);
  daemon::Snapshot now = Machine(11'000);
  before.jobs[0].steps = 7;
  before.jobs[0].stall_ns = 5;
  EXPECT_DOUBLE_EQ(RatesOf(before, now)->jobs[0].steps, 0);
  EXPECT_FALSE(RatesOf(now, before)) << "back in time";
  EXPECT_FALSE(RatesOf(now, now));
  now.pid = 8;
  EXPECT_FALSE(RatesOf(before, now));
}

TopView ViewOf(daemon::Snapshot now) {
  TopView view;
  view.now = std::move(now);
  view.rates = Rates{1, {}, std::vector<JobRates>(view.now.jobs.size())};
  view.utf8 = true;
  return view;
}

std::vector<std::string> TextOf(const Frame& frame) {
  std::vector<std::string> out;
  for (const TextLine& line : frame) {
    std::string text;
    for (const Span& span : line) text += span.text;
    out.push_back(text);
  }
  return out;
}

std::string AllText(const Frame& frame) {
  std::string out;
  for (const std::string& line : TextOf(frame)) out += line + "\n";
  return out;
}

std::vector<std::size_t> WidthsOf(const Frame& frame) {
  std::vector<std::size_t> out;
  for (const std::string& line : TextOf(frame)) out.push_back(CellsOf(line));
  return out;
}

class TopFrame : public Utf8Text {
 protected:
  static std::vector<std::string> Names(const TopView& view, const TopState& state) {
    std::vector<std::string> out;
    for (const std::size_t job : SortedJobs(view, state)) out.push_back(view.now.jobs[job].name);
    return out;
  }
  static TopState SortedBy(const std::string& title) {
    TopState state;
    for (state.sort = 0; state.sort < SortColumns(); ++state.sort) {
      if (SortName(state.sort) == title) return state;
    }
    ADD_FAILURE() << title;
    return state;
  }
};

TEST_F(TopFrame, HasTotalsABarForEachDeviceAndTheJobs) {
  TopView view = ViewOf(Machine(3'720'000));
  view.rates->all = {1.5 * kGiB, kGiB / 2.0, 12.25, 34, 0.07};
  view.now.draining = true;
  view.now.devices[1].pressure_ratio = 0.25;
  const std::string text = AllText(LayOut(view, {}, {80, 24}));
  EXPECT_THAT(text,
              AllOf(HasSubstr("bitpagerd 0.1.0  draining  up 1h02m  pid 7"), HasSubstr("3 jobs  3 sessions"),
                    HasSubstr("12.2 steps/s"), HasSubstr("to device 1.5 GiB/s"), HasSubstr("stalled 7%")));
  EXPECT_THAT(text, AllOf(HasSubstr("GPU 0 [##########"), HasSubstr("1 GiB of 4 GiB"),
                          HasSubstr("4 GiB of 4 GiB"), HasSubstr("pressure 25%"), HasSubstr("host  [")));
  EXPECT_LT(text.find("large"), text.find("middle")) << "by what is resident";
  EXPECT_LT(text.find("middle"), text.find("small"));
  EXPECT_THAT(text, AllOf(HasSubstr("q quit"), HasSubstr("s sort: RESIDENT")));
}

TEST_F(TopFrame, FitsEverySize) {
  TopView view = ViewOf(Machine(1000));
  for (int i = 0; i < 40; ++i) view.now.jobs.push_back(Job(100 + i, "模型" + std::to_string(i), i));
  view.now.devices.resize(10, view.now.devices[0]);
  view.now.devices[1].disk_budget_bytes = kGiB;
  view.rates->jobs.resize(view.now.jobs.size());
  view.newest.resize(4);
  for (Event& event : view.newest)
    event = {"evict", 1000, "模型", "GPU-a", kGiB, std::string(300, 'x'), "{}"};
  for (const bool help : {false, true}) {
    for (std::size_t columns = 1; columns <= 200; columns += columns < 44 ? 1 : 13) {
      for (std::size_t rows = 1; rows <= 60; rows += rows < 20 ? 1 : 7) {
        TopState state;
        state.help = help;
        state.first_row = 35;
        const Frame frame = LayOut(view, state, {columns, rows});
        ASSERT_LE(frame.size(), rows);
        ASSERT_THAT(WidthsOf(frame), Each(Le(columns))) << columns << "x" << rows << "\n" << AllText(frame);
      }
    }
  }
}

TEST_F(TopFrame, TheDiskHasABarWhereThereIsOne) {
  TopView view = ViewOf(Machine(1000));
  EXPECT_THAT(AllText(LayOut(view, {}, {80, 24})), Not(HasSubstr("disk")));
  for (daemon::DeviceSnapshot& device : view.now.devices) {
    device.disk_budget_bytes = 4 * kGiB;
    device.disk_committed_bytes = kGiB / 2;
  }
  view.now.jobs[0].disk_bytes = 3 * kGiB;
  const std::string text = AllText(LayOut(view, {}, {300, 24}));
  EXPECT_THAT(text, AllOf(HasSubstr("host  ["), HasSubstr("disk  ["), HasSubstr("1 GiB of 8 GiB  committed"),
                          HasSubstr("DISK"), HasSubstr("3 GiB")));
}

TEST_F(TopFrame, At40By10StillNamesJobsBarsAndKeys) {
  TopView view = ViewOf(Machine(1000));
  for (int i = 0; i < 9; ++i) view.now.jobs.push_back(Job(100 + i, "job" + std::to_string(i), 5));
  view.rates->jobs.resize(view.now.jobs.size());
  const std::string text = AllText(LayOut(view, {}, {40, 10}));
  EXPECT_THAT(text, AllOf(HasSubstr("bitpagerd"), HasSubstr("GPU 0 ["), HasSubstr("RESIDENT"),
                          HasSubstr("STEPS/s"), HasSubstr("large"), HasSubstr("of 12"), HasSubstr("q quit")));
}

TEST_F(TopFrame, SortsByEveryColumnAndBack) {
  TopView view = ViewOf(Machine(1000));
  view.rates->jobs[2].steps = 9;
  view.rates->jobs[0].steps = 4;
  using Order = std::vector<std::string>;
  EXPECT_EQ(Names(view, SortedBy("JOB")), (Order{"large", "middle", "small"}));
  EXPECT_EQ(Names(view, SortedBy("STEPS/s")), (Order{"middle", "small", "large"}));
  TopState state = SortedBy("RESIDENT");
  EXPECT_EQ(Names(view, state), (Order{"large", "middle", "small"}));
  state = After(Key::kReverse, view, state, {80, 24});
  EXPECT_EQ(Names(view, state), (Order{"small", "middle", "large"}));
  const std::size_t first = state.sort;
  for (std::size_t i = 0; i < SortColumns(); ++i) {
    EXPECT_EQ(state.sort, (first + i) % SortColumns());
    EXPECT_THAT(Names(view, state), SizeIs(3));
    state = After(Key::kSort, view, state, {80, 24});
  }
  EXPECT_EQ(state.sort, first);
}

TEST_F(TopFrame, ScrollsWithinTheTable) {
  TopView view = ViewOf(Machine(1000));
  for (int i = 0; i < 100; ++i) view.now.jobs.push_back(Job(100 + i, "j" + std::to_string(1000 + i), 1));
  view.rates->jobs.resize(view.now.jobs.size());
  const TopSize size{80, 24};
  TopState state = SortedBy("JOB");
  state = After(Key::kUp, view, state, size);
  EXPECT_EQ(state.first_row, 0U);
  state = After(Key::kDown, view, state, size);
  EXPECT_EQ(state.first_row, 1U);
  state = After(Key::kPageDown, view, state, size);
  const std::size_t page = state.first_row - 1;
  EXPECT_GT(page, 5U);
  state = After(Key::kEnd, view, state, size);
  EXPECT_EQ(state.first_row, 103 - page);
  EXPECT_THAT(AllText(LayOut(view, state, size)), AllOf(HasSubstr("small"), HasSubstr("of 103")));
  EXPECT_EQ(After(Key::kPageDown, view, state, size).first_row, state.first_row);
  view.now.jobs.resize(4);  // they ended meanwhile
  view.rates->jobs.resize(4);
  EXPECT_THAT(AllText(LayOut(view, state, size)), AllOf(HasSubstr("large"), HasSubstr("small")));
  EXPECT_EQ(After(Key::kNone, view, state, size).first_row, 0U);
}

TEST_F(TopFrame, OtherColumnsComeByTheArrows) {
  const TopView view = ViewOf(Machine(1000));
  TopState state;
  const TopSize size{40, 10};
  EXPECT_THAT(AllText(LayOut(view, state, size)), Not(HasSubstr("QUOTA")));
  std::string seen;
  for (std::size_t i = 0; i < SortColumns(); ++i) {
    seen += AllText(LayOut(view, state, size));
    state = After(Key::kRight, view, state, size);
  }
  for (std::size_t i = 0; i < SortColumns(); ++i) EXPECT_THAT(seen, HasSubstr(SortName(i)));
  for (std::size_t i = 0; i < SortColumns(); ++i) state = After(Key::kLeft, view, state, size);
  EXPECT_EQ(state.first_column, 0U);
}

TEST_F(TopFrame, SaysThatTheDaemonIsAwayAndKeepsTheFigures) {
  TopView view = ViewOf(Machine(1000));
  view.trouble = "AWAY since 12:00:00";
  const std::string text = AllText(LayOut(view, {}, {60, 20}));
  EXPECT_THAT(text, AllOf(HasSubstr("AWAY since 12:00:00"), HasSubstr("large"), Not(HasSubstr("steps/s"))));
}

TEST_F(TopFrame, HostileNamesNeverReachTheTerminalRaw) {
  TopView view = ViewOf(Machine(1000));
  view.now.version = "\033]0;x\007";
  view.now.socket_path = "/tmp/\n\n";
  view.now.devices[0].name = "GPU\033[2J";
  view.now.jobs[0].name =
      "\xE2\x80\xAE"
      "evil\r\xFF";
  view.now.errors["bad\033code"] = 1;
  view.newest.resize(1);
  view.newest[0] = {"evict\033[1m", 0, "j\n", "u\b", 5, "text\033[0m\x9b", "{}"};
  for (const TopSize size : {TopSize{200, 50}, TopSize{40, 10}, TopSize{0, 0}}) {
    for (const std::string& line : TextOf(LayOut(view, {}, size))) {
      for (const char c : line) EXPECT_GE(static_cast<unsigned char>(c), 0x20) << line;
      EXPECT_EQ(Shown(line, true), line);
    }
  }
}

TEST_F(TopFrame, WithoutAWidthShowsEveryColumnAndJob) {
  TopView view = ViewOf(Machine(1000));
  for (int i = 0; i < 100; ++i) view.now.jobs.push_back(Job(100 + i, "j" + std::to_string(i), 1));
  view.rates->jobs.resize(view.now.jobs.size());
  const std::string text = AllText(LayOut(view, {}, {}));
  for (std::size_t i = 0; i < SortColumns(); ++i) EXPECT_THAT(text, HasSubstr(SortName(i)));
  EXPECT_THAT(text, AllOf(HasSubstr("j99"), Not(HasSubstr("q quit"))));
}

TEST_F(TopFrame, RatesAreDashesUntilTheyAreKnown) {
  TopView view = ViewOf(Machine(1000));
  view.rates.reset();
  const std::string text = AllText(LayOut(view, {}, {80, 24}));
  EXPECT_THAT(text, AllOf(HasSubstr("rates come with the next sample"), HasSubstr(" - ")));
}

TEST(TopJson, IsOneLineOfIntegerBytes) {
  TopView view = ViewOf(Machine(1000));
  view.rates->jobs[1].to_device_bytes = 1234.6;
  view.now.jobs[0].name = "a\nb\xFF";
  const std::string line = TopJson(view, {{"attach", 1, "large", "", 0, "", R"({"name":"attach"})"}});
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const auto parsed = nlohmann::json::parse(line);
  EXPECT_EQ(parsed["schema_version"], 1);
  EXPECT_EQ(parsed["jobs"][1]["to_device_bytes_per_s"], 1235);
  EXPECT_TRUE(parsed["jobs"][1]["resident_bytes"].is_number_unsigned());
  EXPECT_EQ(parsed["devices"][1]["gpu"], "1");
  EXPECT_EQ(parsed["jobs"][0]["evictions"]["pressure"], 0);
  EXPECT_EQ(parsed["events"][0]["name"], "attach");
}

}  // namespace
}  // namespace bitpager::cli
