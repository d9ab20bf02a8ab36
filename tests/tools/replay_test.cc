// Replay: the optimum, the reading of traces, and what the policies move.
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

#include "tools/replay_main/optimum.h"
#include "tools/replay_main/simulate.h"
#include "tools/replay_main/trace.h"

namespace bitpager::replay {
namespace {

using paging::Access;

std::vector<Visit> Cycles(std::uint32_t pages, int steps, Access access) {
  std::vector<Visit> visits;
  for (int step = 0; step < steps; ++step) {
    for (std::uint32_t i = 0; i < pages; ++i) visits.push_back({i, access});
  }
  return visits;
}

TEST(Optimum, CountsNothingWhenEverythingFits) {
  const Moves moves = Optimum(Cycles(10, 5, Access::kUpdate), 10);
  EXPECT_EQ(moves.in, 0U);
  EXPECT_EQ(moves.out, 0U);
}

TEST(Optimum, OfACycleIsItsMissingPart) {
  const Moves moves = Optimum(Cycles(100, 11, Access::kUpdate), 40);
  EXPECT_NEAR(static_cast<double>(moves.in), 600, 20);
}

TEST(Optimum, OfPagesNeverWrittenIsNothing) {
  EXPECT_EQ(Optimum(Cycles(100, 5, Access::kRead), 10).in, 0U);
}

TEST(Optimum, CopiesNothingInThatIsOverwritten) {
  const Moves moves = Optimum(Cycles(100, 5, Access::kOverwrite), 10);
  EXPECT_EQ(moves.in, 0U);
  EXPECT_GT(moves.out, 300U);
}

class TraceFile : public testing::Test {
 protected:
  wire::Result<Trace> Read(const std::string& text) {
    const std::string path = testing::TempDir() + "/replay_test.trace";
    std::ofstream(path) << text;
    auto trace = ReadTrace(path);
    std::remove(path.c_str());
    return trace;
  }
  static constexpr const char* kHeader = R"({"format": "bitpager-trace", "version": 1, "page_bytes": 4096})";
};

TEST_F(TraceFile, HoldsRequestsOfNamedJobsAndExtents) {
  auto trace = Read(std::string(kHeader) + R"(
# a comment
{"job": "a", "extent": "arena", "first": 0, "count": 8, "access": "update"}
{"job": "b", "extent": "arena", "first": 4, "count": 4, "access": "read"}

{"job": "a", "extent": "arena", "first": 16, "count": 4, "access": "overwrite"}
)");
  ASSERT_TRUE(trace.ok()) << trace.status().message();
  EXPECT_EQ(trace->page_bytes, 4096U);
  EXPECT_EQ(trace->jobs, (std::vector<std::string>{"a", "b"}));
  ASSERT_EQ(trace->extents.size(), 2U);
  EXPECT_EQ(trace->extents[0].pages, 20U);
  EXPECT_EQ(trace->extents[1].pages, 8U);
  EXPECT_EQ(trace->requests.size(), 3U);
}

TEST_F(TraceFile, NamesTheLineThatIsWrong) {
  const std::string bad[] = {
      R"({"job": "a", "extent": "x", "first": -1, "count": 8, "access": "update"})",
      R"({"job": "a", "extent": "x", "first": 0, "count": 0, "access": "update"})",
      R"({"job": "a", "extent": "x", "first": 18446744073709551615, "count": 8, "access": "update"})",
      R"({"job": "a", "extent": "x", "first": 0, "count": 8, "access": "write"})",
      R"({"job": 7, "extent": "x", "first": 0, "count": 8, "access": "read"})",
      R"([1, 2])",
      R"({"job": )",
  };
  for (const std::string& line : bad) {
    auto trace = Read(std::string(kHeader) + "\n" + line + "\n");
    ASSERT_FALSE(trace.ok()) << line;
    EXPECT_NE(trace.status().message().find(":2: "), std::string::npos) << trace.status().message();
  }
}

TEST_F(TraceFile, RefusesOtherVersionsAndFormats) {
  EXPECT_EQ(Read(R"({"format": "bitpager-trace", "version": 2})").status().code(),
            wire::Code::kUnknownVersion);
  EXPECT_EQ(Read(R"({"version": 1})").status().code(), wire::Code::kInvalidArgument);
  EXPECT_EQ(Read(kHeader).status().code(), wire::Code::kInvalidArgument);
  EXPECT_EQ(ReadTrace("/nonexistent/trace").status().code(), wire::Code::kNotFound);
}

class Synthetic : public testing::TestWithParam<const char*> {};

TEST_P(Synthetic, ScanAwareStaysNearTheOptimum) {
  auto trace = MakeTrace(GetParam());
  ASSERT_TRUE(trace.ok());
  for (const std::uint64_t percent : {50U, 10U}) {
    SimulatorConfig config;
    config.frames = trace->pages() * percent / 100;
    auto outcome = Simulate(*trace, config);
    ASSERT_TRUE(outcome.ok()) << outcome.status().message();
    EXPECT_GE(outcome->visits, trace->pages());
    EXPECT_LE(static_cast<double>(outcome->moved.in), 1.15 * static_cast<double>(outcome->optimum.in))
        << percent;
  }
}

INSTANTIATE_TEST_SUITE_P(All, Synthetic, testing::Values("cyclic", "zigzag", "checkpointing", "two-jobs"));

TEST(Simulate, ShowsThatLruMovesTheWholeCycle) {
  auto trace = MakeTrace("cyclic");
  ASSERT_TRUE(trace.ok());
  SimulatorConfig config;
  config.policy = paging::Policy::kLru;
  config.frames = trace->pages() / 2;
  auto outcome = Simulate(*trace, config);
  ASSERT_TRUE(outcome.ok());
  EXPECT_GE(outcome->moved.in, outcome->optimum.in * 19 / 10);
}

TEST(Simulate, RefusesABudgetUnderOneWindow) {
  auto trace = MakeTrace("two-jobs");
  ASSERT_TRUE(trace.ok());
  SimulatorConfig config;
  config.frames = 15;
  EXPECT_EQ(Simulate(*trace, config).status().code(), wire::Code::kBudgetExceeded);
}

TEST(Simulate, RunsInLittleWithTheWindowThatFits) {
  auto trace = MakeTrace("two-jobs");
  ASSERT_TRUE(trace.ok());
  EXPECT_EQ(WindowThatFits(*trace, 63), 31U);
  EXPECT_EQ(WindowThatFits(*trace, 64), SimulatorConfig{}.window_pages);
  EXPECT_EQ(WindowThatFits(*trace, trace->pages()), SimulatorConfig{}.window_pages);
  EXPECT_EQ(WindowThatFits(*trace, 1), 1U);
  SimulatorConfig config;
  config.frames = 15;
  config.window_pages = WindowThatFits(*trace, config.frames);
  EXPECT_TRUE(Simulate(*trace, config).ok());
}

TEST(MakeTrace, NamesTheTracesThatExist) {
  EXPECT_NE(MakeTrace("nothing").status().message().find("checkpointing"), std::string::npos);
}

}  // namespace
}  // namespace bitpager::replay
